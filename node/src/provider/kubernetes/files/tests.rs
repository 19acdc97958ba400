use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use raftserve_model::spec::MountContent;

use super::*;

const CLUSTER: ClusterId = ClusterId([0x0a; 16]);

fn file(mode: u32, text: &str) -> MountedFile {
    MountedFile {
        mode,
        bytes: text.as_bytes().into(),
    }
}

fn one(destination: Destination, mode: u32, text: &str) -> FileMount {
    FileMount {
        destination,
        content: MountContent::File(file(mode, text)),
    }
}

fn many(destination: Destination) -> FileMount {
    FileMount {
        destination,
        content: MountContent::Directory(BTreeMap::from([
            ("a b".to_owned(), file(0o600, "a")),
            ("bin/$x 'y'".to_owned(), file(0o751, "#!/bin/sh\necho hi")),
        ])),
    }
}

/// All kinds there are.
fn mounts() -> Vec<FileMount> {
    vec![
        one(
            Destination::Absolute("/etc/app.conf".to_owned()),
            0o600,
            "c",
        ),
        many(Destination::Absolute("/opt/app".to_owned())),
        one(Destination::Home(".ssh/id".to_owned()), 0o400, "hush"),
        many(Destination::Working("-app".to_owned())),
    ]
}

/// Lays the volume out below `root` as a kubelet does.
fn lay_out(root: &Path, mounts: &[FileMount]) {
    let data = secret("s", ("p", "u"), CLUSTER, mounts)["data"].take();
    let volume = volume("s", mounts);
    for item in volume["secret"]["items"].as_array().unwrap() {
        let path = root.join(item["path"].as_str().unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = data[item["key"].as_str().unwrap()].clone();
        let bytes: ByteString = serde_json::from_value(bytes).unwrap();
        fs::write(&path, bytes.0).unwrap();
        let mode = item["mode"]
            .as_u64()
            .map_or(0o444, |it| u32::try_from(it).unwrap());
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
}

/// Places what is to be copied, as the container's first process does, with `umask` and `home`.
fn place(volume: &Path, home: &str, work: &Path) -> Output {
    let script = format!("umask 022\n{PLACE}\nplace \"$1\"");
    let output = Command::new("/bin/sh")
        .args(["-c", &script, "raftserve"])
        .arg(volume.join(TO_COPY))
        .env("HOME", home)
        .current_dir(work)
        .output();
    output.unwrap()
}

fn is(path: &Path, text: &str, mode: u32) {
    assert_eq!(
        fs::read_to_string(path).unwrap(),
        text,
        "{}",
        path.display()
    );
    let found = fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(found, mode, "{}: {found:o}", path.display());
}

#[test]
fn absolute_destinations_are_mounted_each_by_a_part_of_one_volume_that_anybody_can_read() {
    let root = tempfile::tempdir().unwrap();
    lay_out(root.path(), &mounts());
    let parts: Vec<(String, String)> = volume_mounts(&mounts())
        .iter()
        .map(|it| {
            assert_eq!(
                (&it["name"], &it["readOnly"]),
                (&VOLUME.into(), &true.into())
            );
            let text = |key: &str| it[key].as_str().unwrap().to_owned();
            (text("mountPath"), text("subPath"))
        })
        .collect();
    let expected = [
        ("/etc/app.conf", "mount-0"),
        ("/opt/app", "mount-1"),
        ("/run/raftserve-files", "copy"),
    ];
    assert_eq!(parts, expected.map(|(to, part)| (to.into(), part.into())));
    is(&root.path().join("mount-0"), "c", 0o444);
    is(&root.path().join("mount-1/a b"), "a", 0o444);
    is(
        &root.path().join("mount-1/bin/$x 'y'"),
        "#!/bin/sh\necho hi",
        0o555,
    );
}

#[test]
fn the_container_copies_what_goes_to_its_home_and_working_directory() {
    let root = tempfile::tempdir().unwrap();
    let (volume, home, work) = ["volume", "home", "work"]
        .map(|it| root.path().join(it))
        .into();
    for directory in [&volume, &home, &work] {
        fs::create_dir(directory).unwrap();
    }
    lay_out(&volume, &mounts());
    // What the image has there gives way.
    fs::create_dir(home.join(".ssh")).unwrap();
    fs::write(home.join(".ssh/id"), "theirs").unwrap();
    fs::set_permissions(home.join(".ssh/id"), PermissionsExt::from_mode(0o444)).unwrap();
    for _ in 0..2 {
        let placed = place(&volume, home.to_str().unwrap(), &work);
        assert!(placed.status.success(), "{placed:?}");
    }
    is(&home.join(".ssh/id"), "hush", 0o400);
    is(&work.join("-app/a b"), "a", 0o600);
    is(&work.join("-app/bin/$x 'y'"), "#!/bin/sh\necho hi", 0o751);
    assert!(!Path::new("/etc/app.conf").exists());

    fs::remove_file(home.join(".ssh/id")).unwrap();
    fs::create_dir(home.join(".ssh/id")).unwrap();
    let refused = place(&volume, home.to_str().unwrap(), &work);
    let said = String::from_utf8(refused.stdout).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said.starts_with("file_mounts.~/.ssh/id cannot be put in place (HOME is "),
        "{said}"
    );
    assert!(said.contains("there is a directory"), "{said}");
    let refused = place(&volume, "/proc/nobody", &work);
    let said = String::from_utf8(refused.stdout).unwrap();
    assert!(
        said.contains("HOME is /proc/nobody") && said.contains("mkdir"),
        "{said}"
    );
}

/// What the shell would do as [`PLACE`] has it, where `stubs` stand for the programs that change something.
fn place_by(stubs: &str, home: &str, destination: Destination) -> Output {
    let root = tempfile::tempdir().unwrap();
    lay_out(root.path(), &[one(destination, 0o600, "x")]);
    let script = format!("{stubs}\n{PLACE}\nplace \"$1\"");
    let output = Command::new("/bin/sh")
        .args(["-c", &script, "raftserve"])
        .arg(root.path().join(TO_COPY))
        .env("HOME", home)
        .current_dir(root.path())
        .output();
    output.unwrap()
}

#[test]
fn a_home_that_is_the_root_directory_takes_files() {
    // Each says what it would do, and the last fails, so that it is told.
    let stubs = r#"mkdir() { [ -d "$2" ] && echo "in $2"; }
        rm() { :; }
        cp() { echo "to $2"; }
        chmod() { echo "of $2"; return 1; }"#;
    for home in ["/", ""] {
        let destination = Destination::Home("raftserve-test".to_owned());
        let placed = place_by(stubs, home, destination);
        let said = String::from_utf8(placed.stdout).unwrap();
        let steps = "in / to /raftserve-test of /raftserve-test\n";
        assert!(said.ends_with(steps), "{said}");
    }
}

#[test]
fn why_a_file_cannot_be_put_in_place_is_one_line_as_it_was_said() {
    let stubs = r#"mkdir() { printf '%s\n' 'a  *' 'b\nc'; return 1; }"#;
    let refused = place_by(stubs, "/", Destination::Working("x".to_owned()));
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stdout).unwrap();
    assert!(said.ends_with("): a * b\\nc\n"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn the_secret_is_the_pods_and_the_largest_fits_in_what_kubernetes_takes() {
    use raftserve_model::spec::{FILE_PATH_BYTES_MAX, FILES_BYTES_MAX, FILES_MAX};
    let each = "x".repeat(FILES_BYTES_MAX / FILES_MAX);
    let longest = |number: usize| format!("{number:0>width$}", width = FILE_PATH_BYTES_MAX - 4);
    let files = (0..FILES_MAX).map(|number| (longest(number), file(0o755, &each)));
    let most = [FileMount {
        destination: Destination::Home("d".to_owned()),
        content: MountContent::Directory(files.collect()),
    }];
    let secret = secret("s", ("p", "u"), CLUSTER, &most);
    assert_eq!(secret["metadata"]["name"], "s-files");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], "u");
    let data: BTreeMap<String, ByteString> =
        serde_json::from_value(secret["data"].clone()).unwrap();
    assert_eq!(data.len(), FILES_MAX + 1);
    let bytes: usize = data.values().map(|it| it.0.len()).sum();
    assert!(bytes <= 1 << 20, "{bytes} bytes");
}
