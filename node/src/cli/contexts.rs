//! Named clusters, with what it takes to reach them: kept in one file that only its owner may read.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::failure::{Exit, Failure};

/// Where this user's settings are, as the environment says.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigHome {
    /// The directory of settings.
    #[arg(long, env = "XDG_CONFIG_HOME", hide = true)]
    pub config_home: Option<PathBuf>,
    /// The user's own directory.
    #[arg(long, env = "HOME", hide = true)]
    pub home: Option<PathBuf>,
}

impl ConfigHome {
    /// The file of contexts; none if the environment names no directory.
    fn file(&self) -> Option<PathBuf> {
        // As the XDG base directory specification has it: what is not absolute is ignored.
        let absolute = |path: &&PathBuf| path.is_absolute();
        let of_home = || Some(self.home.as_ref()?.join(".config"));
        let config = self.config_home.as_ref().filter(absolute).cloned();
        let config = config.or_else(of_home)?;
        Some(config.join("raftserve").join("contexts.json"))
    }
}

/// A cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    /// Admin addresses of its peers.
    pub(super) servers: Vec<String>,
    /// The authorities of its peers' certificates, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) authorities: Option<String>,
    /// The name that their certificates are for, if not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tls_server_name: Option<String>,
    /// The credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Token>,
    /// The release that the login is for, if `kubectl` found it: such a context has no servers. Files of earlier versions
    /// say nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) release: Option<Home>,
}

impl Context {
    /// The same, where what was `given` counts first.
    pub(super) fn overridden(self, given: Self) -> Self {
        Self {
            servers: match given.servers.is_empty() {
                true => self.servers,
                false => given.servers,
            },
            authorities: given.authorities.or(self.authorities),
            tls_server_name: given.tls_server_name.or(self.tls_server_name),
            token: given.token.or(self.token),
            release: given.release.or(self.release),
        }
    }

    /// Whether its login is for the release that was `found`. Where the release's authorities cannot be seen, they may be
    /// those of the login, which then nobody else's certificate may be of.
    pub(super) fn is_for(&self, found: &Home) -> bool {
        let release = self.release.as_ref();
        let known = release.and_then(|release| release.authorities.as_ref());
        let same_authorities = match (known.or(self.authorities.as_ref()), &found.authorities) {
            (Some(known), Some(found)) => known.trim() == found.trim(),
            (Some(_), None) => true,
            (None, _) => release.is_some(),
        };
        let same_place = release.is_none_or(|release| release.is_at(found));
        self.servers.is_empty() && same_place && same_authorities
    }
}

/// Where a release of the chart is, and who vouches for its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Home {
    /// The context of `kubectl` that its Kubernetes cluster is known by, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kube_context: Option<String>,
    pub(super) namespace: String,
    /// Of its StatefulSet.
    pub(super) name: String,
    /// What its Secret has as `ca.crt`, PEM; none if that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) authorities: Option<String>,
}

impl Home {
    /// Whether the names are the same.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        let names = |home: &Self| {
            let Self {
                kube_context,
                namespace,
                name,
                authorities: _,
            } = home.clone();
            (kube_context, namespace, name)
        };
        names(self) == names(other)
    }
}

impl std::fmt::Display for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in namespace {}", self.name, self.namespace)?;
        match &self.kube_context {
            Some(context) => write!(f, " of kube context {context}"),
            None => Ok(()),
        }
    }
}

/// A credential.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    /// The bearer token.
    pub(super) token: String,
    /// Whose it is.
    pub(super) name: String,
    /// When it ends, if it does, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_unix_ms: Option<u64>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    /// The one that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) current: Option<String>,
    /// By name.
    #[serde(default)]
    pub(super) contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Reads the file; none is there before the first login.
    ///
    /// # Errors
    /// If there is one that cannot be used.
    pub(super) fn load(home: &ConfigHome) -> Result<Self, Failure> {
        let Some(path) = home.file() else {
            return Ok(Self::default());
        };
        match fs::read(&path) {
            Ok(text) => {
                warn_if_readable(&path);
                serde_json::from_slice(&text).map_err(|error| {
                    Failure::usage(format!("cannot read {}: {error}", path.display()))
                        .remedy("mend it, or move it away and log in again")
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Writes the file anew, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn save(&self, home: &ConfigHome) -> Result<PathBuf, Failure> {
        let path = home.file().ok_or_else(|| {
            Failure::usage("there is no place for contexts")
                .remedy("set HOME, or XDG_CONFIG_HOME to an absolute path")
        })?;
        let write = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(Path::new("/"));
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
            let fresh = path.with_extension(format!("json.{}", std::process::id()));
            let _ = fs::remove_file(&fresh);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&fresh)?;
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|error| failed("write", &path, &error))?;
        Ok(path)
    }

    /// The context of that name.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn named(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let remedy = match known.is_empty() {
                true => "`raftserve login` and `raftserve context add` make one".to_owned(),
                false => format!("there are: {}", known.join(", ")),
            };
            Failure::new(Exit::NotFound, format!("there is no context {name}")).remedy(remedy)
        })
    }

    /// The context that is used when none is named.
    pub(super) fn current(&self) -> Option<&Context> {
        self.contexts.get(self.current.as_ref()?)
    }

    /// The context that has all these servers, so that what was given for them is sent to no others.
    /// With its name.
    pub(super) fn of_servers(&self, servers: &[String]) -> Option<(&str, &Context)> {
        let mut all = self.contexts.iter();
        let found = all.find(|(_, context)| {
            let mut servers = servers.iter();
            servers.all(|server| context.servers.contains(server))
        });
        found.map(|(name, context)| (name.as_str(), context))
    }

    /// The context whose login is for the release that was `found`, with its name; that in use first.
    pub(super) fn of_release(&self, found: &Home) -> Option<(&str, &Context)> {
        let is_used = |name: &String| self.current.as_ref() == Some(name);
        let all = self.contexts.iter();
        let mut fitting: Vec<_> = all.filter(|(_, context)| context.is_for(found)).collect();
        fitting.sort_by_key(|(name, _)| !is_used(name));
        let (name, context) = fitting.first()?;
        Some((name.as_str(), context))
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {what} {}: {error}", path.display()))
}

/// A file that others may read has been tampered with, or copied.
fn warn_if_readable(path: &Path) {
    let mode = fs::metadata(path).map(|found| found.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o077 != 0) {
        eprintln!(
            "warning: {} holds credentials, and others may read it: chmod 600 it",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(folder: &Path) -> ConfigHome {
        ConfigHome {
            config_home: Some(folder.join("config")),
            home: None,
        }
    }

    fn one() -> Contexts {
        let context = Context {
            servers: vec!["https://a:1".to_owned(), "https://b:1".to_owned()],
            token: Some(Token {
                token: "s3cret".to_owned(),
                name: "ann".to_owned(),
                expires_unix_ms: Some(5),
            }),
            release: Some(release("a", Some("pem"))),
            ..Context::default()
        };
        Contexts {
            current: Some("prod".to_owned()),
            contexts: [("prod".to_owned(), context)].into(),
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = home(folder.path());
        assert_eq!(Contexts::load(&home).unwrap(), Contexts::default());
        let path = one().save(&home).unwrap();
        one().save(&home).unwrap();
        assert_eq!(Contexts::load(&home).unwrap(), one());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::write(&path, "{\"contexts\": 7}").unwrap();
        assert_eq!(Contexts::load(&home).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn the_file_is_where_the_environment_says() {
        let of = |config: Option<&str>, home: Option<&str>| {
            let home = ConfigHome {
                config_home: config.map(PathBuf::from),
                home: home.map(PathBuf::from),
            };
            home.file()
        };
        let file = |text: &str| Some(PathBuf::from(text));
        assert_eq!(
            of(Some("/c"), Some("/h")),
            file("/c/raftserve/contexts.json")
        );
        let in_home = file("/h/.config/raftserve/contexts.json");
        assert_eq!(of(None, Some("/h")), in_home);
        assert_eq!(of(Some("relative"), Some("/h")), in_home);
        assert_eq!(of(None, None), None);
    }

    fn release(kube_context: &str, authorities: Option<&str>) -> Home {
        Home {
            kube_context: Some(kube_context.to_owned()),
            namespace: "serving".to_owned(),
            name: "prod".to_owned(),
            authorities: authorities.map(str::to_owned),
        }
    }

    fn login(authorities: Option<&str>, release: Option<Home>) -> Context {
        Context {
            authorities: authorities.map(str::to_owned),
            release,
            ..Context::default()
        }
    }

    #[test]
    fn a_login_is_for_the_release_with_its_names_and_authorities() {
        let own = login(Some("a"), Some(release("a", Some("a"))));
        assert!(own.is_for(&release("a", Some("a\n"))));
        assert!(own.is_for(&release("a", None)));
        assert!(!own.is_for(&release("a", Some("b"))), "installed anew");
        assert!(!own.is_for(&release("b", Some("a"))), "of a shared issuer");
        let elsewhere = Home {
            namespace: "staging".to_owned(),
            ..release("a", Some("a"))
        };
        assert!(!own.is_for(&elsewhere));
        // With a file of authorities, beside those of the release.
        let with_file = login(Some("file"), Some(release("a", Some("a"))));
        assert!(with_file.is_for(&release("a", Some("a"))));
        let system = login(None, Some(release("a", None)));
        assert!(system.is_for(&release("a", None)));
        assert!(!system.is_for(&release("b", None)));
        let with_servers = Context {
            servers: vec!["https://a:1".to_owned()],
            ..own
        };
        assert!(!with_servers.is_for(&release("a", Some("a"))));
    }

    #[test]
    fn a_login_of_an_earlier_version_is_for_whoever_has_its_authorities() {
        let text = r#"{"current": "kubernetes", "contexts": {"kubernetes": {
            "servers": [], "authorities": "a", "tls_server_name": "localhost",
            "token": {"token": "s3cret", "name": "ann", "expires_unix_ms": 5}
        }}}"#;
        let contexts: Contexts = serde_json::from_str(text).unwrap();
        let kept = contexts.named("kubernetes").unwrap();
        assert!(kept.is_for(&release("any", Some("a"))));
        assert!(!kept.is_for(&release("any", Some("b"))));
        assert!(!login(None, None).is_for(&release("any", Some("b"))));
    }

    #[test]
    fn of_several_logins_to_a_release_that_in_use_counts() {
        let own = || login(Some("a"), Some(release("a", Some("a"))));
        let other = login(Some("b"), Some(release("b", Some("b"))));
        let mut contexts = Contexts {
            current: Some("other".to_owned()),
            contexts: [("ann", own()), ("bob", own()), ("other", other)]
                .map(|(name, context)| (name.to_owned(), context))
                .into(),
        };
        let found = |contexts: &Contexts| {
            let found = contexts.of_release(&release("a", Some("a")));
            found.map(|(name, _)| name.to_owned())
        };
        assert_eq!(found(&contexts).as_deref(), Some("ann"));
        contexts.current = Some("bob".to_owned());
        assert_eq!(found(&contexts).as_deref(), Some("bob"));
        contexts.contexts.retain(|name, _| name == "other");
        assert_eq!(found(&contexts), None);
    }

    #[test]
    fn a_credential_goes_with_its_own_servers_only_and_is_not_shown() {
        let contexts = one();
        assert!(contexts.of_servers(&["https://b:1".to_owned()]).is_some());
        let mixed = ["https://b:1".to_owned(), "https://c:1".to_owned()];
        assert!(contexts.of_servers(&mixed).is_none());
        assert_eq!(contexts.named("test").unwrap_err().exit, Exit::NotFound);
        assert!(!format!("{contexts:?}").contains("s3cret"));
    }
}
