//! The YAML file that `raftserve dev` was given, read and checked before anything is started.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use raftserve_model::ServiceName;
use raftserve_model::spec::{ParseOptions, SPEC_SOURCE_BYTES_MAX, ServiceSpec};

use crate::admin::v1;
use crate::local_files;

/// A service YAML without faults.
#[derive(Clone)]
pub(super) struct ServiceFile {
    /// What the service is called.
    pub(super) name: ServiceName,
    /// The file's text.
    pub(super) yaml: String,
    /// The files that it names.
    pub(super) files: Vec<v1::MountedFile>,
}

impl ServiceFile {
    /// Reads the file. The service is called `name` if that is given, else as the file says, else as
    /// the file is called without its ending.
    ///
    /// # Errors
    /// If it cannot be read, or with every fault in it.
    pub(super) fn read(path: &Path, name: Option<&str>) -> Result<Self> {
        let shown = path.display();
        let length = fs::metadata(path)
            .with_context(|| format!("cannot read {shown}"))?
            .len();
        if usize::try_from(length).map_or(true, |length| length > SPEC_SOURCE_BYTES_MAX) {
            bail!("{shown} has {length} bytes; a service YAML has at most {SPEC_SOURCE_BYTES_MAX}");
        }
        let yaml = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let parsed = ServiceSpec::parse(&yaml, ParseOptions::default()).map_err(|faults| {
            anyhow!("{shown} is no service YAML that can be served:\n{faults}")
        })?;
        let name = match (name, parsed.name) {
            (Some(name), _) => name.parse()?,
            (None, Some(name)) => name,
            (None, None) => stem(path)?,
        };
        let files = local_files::read(&parsed.local_sources).with_context(|| shown.to_string())?;
        Ok(Self { name, yaml, files })
    }
}

fn stem(path: &Path) -> Result<ServiceName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem.parse().with_context(|| {
        format!(
            "the file's name cannot be the service's name; give one with -n, or as `name:` in {}",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str =
        "service:\n  readiness_probe: /\nresources:\n  ports: 8080\nrun: serve 8080\n";

    fn read(file: &str, yaml: &str, name: Option<&str>) -> Result<ServiceFile> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(file);
        fs::write(&path, yaml).unwrap();
        ServiceFile::read(&path, name)
    }

    #[test]
    fn name_is_taken_from_the_flag_then_the_file_then_its_stem() {
        let named = format!("name: inside\n{PLAIN}");
        let name = |yaml, name| read("web.yaml", yaml, name).unwrap().name.to_string();
        assert_eq!(name(&named, Some("flag")), "flag");
        assert_eq!(name(&named, None), "inside");
        assert_eq!(name(PLAIN, None), "web");
    }

    #[test]
    fn faults_are_told_with_their_remedy() {
        let fault = |file, yaml, name| format!("{:#}", read(file, yaml, name).err().unwrap());
        let unknown = fault("web.yaml", "service:\n  replicaz: 2\n", None);
        assert!(
            unknown.contains("replicaz") && unknown.contains("line 2"),
            "{unknown}"
        );
        let stem = fault("9 lives.yaml", PLAIN, None);
        assert!(stem.contains("-n"), "{stem}");
        assert!(fault("web.yaml", PLAIN, Some("no/name")).contains("no/name"));
        let mounts = format!("{PLAIN}file_mounts: {{a: /no/such}}\n");
        let unsent = fault("web.yaml", &mounts, None);
        assert!(
            unsent.contains("file_mounts.a: cannot read /no/such"),
            "{unsent}"
        );
        let absent = ServiceFile::read(Path::new("/no/such.yaml"), None)
            .err()
            .unwrap();
        assert!(format!("{absent:#}").contains("/no/such.yaml"));
    }
}
