//! Files of the caller's machine: which are named, and whether those that came along are they.

use std::sync::Arc;

use super::*;

fn sent(mount: &str, path: &str, mode: u32, bytes: impl AsRef<[u8]>) -> SentFile {
    SentFile {
        mount: mount.to_owned(),
        path: path.to_owned(),
        file: file(mode, bytes),
    }
}

fn file(mode: u32, bytes: impl AsRef<[u8]>) -> MountedFile {
    MountedFile {
        mode,
        bytes: Arc::from(bytes.as_ref()),
    }
}

fn with_files(more: &str, files: Vec<SentFile>) -> Result<Parsed, String> {
    let options = ParseOptions {
        files: Some(files),
        ..ParseOptions::default()
    };
    ServiceSpec::parse(&minimal("{}", more), options).map_err(|errors| errors.to_string())
}

#[track_caller]
fn refused(more: &str, files: Vec<SentFile>) -> String {
    match with_files(more, files) {
        Ok(parsed) => panic!("accepted: {:?}", parsed.spec),
        Err(said) => said,
    }
}

const TWO: &str = "\
envs: {WHERE: conf}
file_mounts:
  ~/.ssh/./id: ~/.ssh/id_ed25519
  $WHERE: ./$WHERE
";

fn both() -> Vec<SentFile> {
    vec![
        sent("conf", "a.txt", 0o644, "a"),
        sent("conf", "bin/b", 0o755, "bb"),
        sent("~/.ssh/id", "", 0o600, "hush"),
    ]
}

#[test]
fn files_and_directories_are_put_where_the_yaml_says() {
    let parsed = with_files(TWO, both()).unwrap();
    assert_eq!(
        parsed.spec.file_mounts,
        [
            FileMount {
                destination: Destination::Home(".ssh/id".to_owned()),
                content: MountContent::File(file(0o600, "hush")),
            },
            FileMount {
                destination: Destination::Working("conf".to_owned()),
                content: MountContent::Directory(BTreeMap::from([
                    ("a.txt".to_owned(), file(0o644, "a")),
                    ("bin/b".to_owned(), file(0o755, "bb")),
                ])),
            },
        ]
    );
    let sources: Vec<(String, String)> = parsed
        .local_sources
        .iter()
        .map(|it| (it.destination.to_string(), it.source.clone()))
        .collect();
    let pairs = [("~/.ssh/id", "~/.ssh/id_ed25519"), ("conf", "./conf")];
    assert_eq!(sources, pairs.map(|(to, from)| (to.into(), from.into())));

    let unlooked = accept(&minimal("{}", TWO));
    assert_eq!(unlooked.local_sources, parsed.local_sources);
    assert_eq!(unlooked.spec.file_mounts, []);
    assert!(!unlooked.spec.runs_the_same(&parsed.spec));
}

#[test]
fn what_was_not_sent_as_the_yaml_names_it_is_refused_by_name() {
    for (without, said) in [
        (
            0..3,
            "file_mounts.~/.ssh/id: no file was sent for it: \"~/.ssh/id_ed25519\" is on the machine of whoever asks",
        ),
        (
            0..2,
            "file_mounts.conf: no file was sent for it: \"./$WHERE\" is",
        ),
    ] {
        let mut files = both();
        files.drain(without);
        let told = refused(TWO, files);
        assert!(told.contains(said), "{told}");
        assert!(told.contains("raftserve up"), "{told}");
    }
    for (extra, said) in [
        (sent("etc", "x", 0, ""), "\"etc\", which is no destination"),
        (
            sent("~/../x", "x", 0, ""),
            "\"~/../x\", which is no destination",
        ),
        (
            sent("conf", "", 0, ""),
            "file_mounts.conf: both a file and a directory",
        ),
        (sent("conf", "a.txt", 0, ""), "\"a.txt\" was sent twice"),
        (sent("conf", "./a.txt", 0, ""), "\"a.txt\" was sent twice"),
        (
            sent("conf", "bin", 0, ""),
            "\"bin\" is both a file and a directory",
        ),
        (sent("conf", "../x", 0, ""), "the path \"../x\" holds `..`"),
        (sent("conf", "/x", 0, ""), "the path \"/x\" is not relative"),
        (sent("conf", ".", 0, ""), "the path \".\" is not relative"),
        (sent("conf", "a\nb", 0, ""), "holds a control character"),
        (
            sent("conf", &"x".repeat(251), 0, ""),
            "is longer than 255 bytes",
        ),
        (sent("conf", "x", 0o4755, ""), "\"x\" has mode 4755"),
    ] {
        let mut files = both();
        files.push(extra);
        let told = refused(TWO, files);
        assert!(told.contains(said), "{said} in {told}");
    }
    let mut files = both();
    files.push(sent("conf", &"x".repeat(250), 0, ""));
    let spec = with_files(TWO, files).unwrap().spec;
    let modes = spec.file_mounts[1].files().map(|(_, file)| file.mode);
    assert_eq!(modes.last(), Some(FILE_MODE), "where none is given");
}

#[test]
fn files_that_lack_are_no_fault_where_the_yaml_has_another() {
    let mounts = "file_mounts: {a: a, b: b}\n";
    let told = refused(mounts, Vec::new());
    assert_eq!(told.matches("no file was sent").count(), 2, "{told}");
    for fault in ["num_nodes: 2\n", "service_account: x\n"] {
        let told = refused(&format!("{mounts}{fault}"), Vec::new());
        assert!(!told.contains("no file was sent"), "{told}");
    }
    // The last that is looked at.
    let long = format!("{mounts}setup: {}\n", "x".repeat(128 << 10));
    let told = refused(&long, Vec::new());
    assert!(!told.contains("no file was sent"), "{told}");
}

#[test]
fn the_order_in_the_yaml_makes_no_other_specification() {
    let one = with_files("file_mounts:\n  /c: c\n  ~/b: b\n  a: a\n", three());
    let other = with_files("file_mounts:\n  a: a\n  /c: c\n  ~/b: b\n", three());
    let (one, other) = (one.unwrap().spec, other.unwrap().spec);
    assert!(one.runs_the_same(&other));
    assert_eq!(one.file_mounts.len(), 3);
}

fn three() -> Vec<SentFile> {
    ["/c", "a", "~/b"]
        .map(|to| sent(to, "", 0o644, to))
        .to_vec()
}

#[test]
fn destinations_read_back_as_they_are_written() {
    for text in [
        "a",
        "./a",
        "a~",
        "a/~",
        "a/./~b//c",
        "~/a",
        "~/~",
        "~/~/b",
        "~//a/.",
        "/a",
        "//a",
        "/./~/a",
        ".//a",
        "~/./~x",
    ] {
        let read = Destination::parse(text).unwrap();
        assert_eq!(Destination::parse(&read.to_string()), Ok(read), "{text}");
    }
    for text in ["./~/a", ".//~", "././~root/x"] {
        let (problem, _) = Destination::parse(text).unwrap_err();
        assert!(problem.contains("begins with ~"), "{text}: {problem}");
    }
}

#[test]
fn destinations_name_no_secrets() {
    let with = |mount: &str| {
        minimal(
            "{}",
            &format!("envs: {{WHERE: conf}}\nsecrets: {{KEY: hush}}\nfile_mounts: {{{mount}}}\n"),
        )
    };
    for mount in ["$KEY: x", "'a/${KEY}/b': x", "$WHERE/$KEY: $KEY"] {
        let told = refuse(&with(mount));
        let said = "the destination names the secret KEY";
        assert!(told.len() == 1 && told[0].contains(said), "{told:?}");
        assert!(!told[0].contains("hush"), "{told:?}");
    }
    let taken = accept(&with("$WHERE/$OTHER: $KEY"));
    let source = &taken.local_sources[0];
    assert_eq!(
        (source.destination.to_string(), source.source.as_str()),
        ("conf/$OTHER".to_owned(), "hush")
    );
}

#[test]
fn all_files_have_768_kib_together_and_no_more() {
    let mounts = "file_mounts: {a: a, b: b}";
    let sized = |bytes: usize| {
        let most = vec![b'x'; FILES_BYTES_MAX - 10];
        vec![sent("a", "", 0, most), sent("b", "", 0, vec![b'x'; bytes])]
    };
    assert!(with_files(mounts, sized(10)).is_ok());
    let told = refused(mounts, sized(11));
    assert!(
        told.contains("file_mounts: 786433 bytes in all, and 786432 are allowed"),
        "{told}"
    );
    assert!(told.contains("into the image"), "{told}");

    let many = |count: usize| {
        let one = |number: usize| sent("a", &number.to_string(), 0, "");
        (0..count).map(one).collect::<Vec<_>>()
    };
    assert!(with_files("file_mounts: {a: a}", many(FILES_MAX)).is_ok());
    let told = refused("file_mounts: {a: a}", many(FILES_MAX + 1));
    assert!(told.contains("257 files, and 256 are allowed"), "{told}");
}

#[test]
fn destinations_that_would_do_harm_are_refused_by_name() {
    for (destination, said) in [
        ("/", "root directory"),
        ("~", "the home"),
        (".", "the working"),
        ("~/.", "the home"),
        ("/proc/self/x", "belongs to the kernel"),
        ("/sys", "belongs to the kernel"),
        ("/dev/./termination-log", "belongs to the kernel"),
        ("/run", "to raftserve"),
        ("/run/raftserve/set-up", "to raftserve"),
        ("~/a/../../x", "`..`"),
        ("../x", "`..`"),
        ("~root/x", "somebody else's home"),
        ("conf/", "ends with a slash"),
        ("\"a\\tb\"", "control character"),
    ] {
        let told = refuse(&minimal(
            "{}",
            &format!("file_mounts: {{{destination}: x}}"),
        ));
        assert!(
            told.len() == 1 && told[0].contains("file_mounts.") && told[0].contains(said),
            "{destination}: {told:?}"
        );
    }
    for destination in [
        "/etc/app.conf",
        "/process",
        "~/.config/app",
        "a..b",
        ".env",
        "/run/app",
    ] {
        accept(&minimal(
            "{}",
            &format!("file_mounts: {{{destination}: x}}"),
        ));
    }
}

#[test]
fn destinations_that_meet_are_refused() {
    for (mounts, met) in [
        ("{/a: x, /a/b: y}", "file_mounts./a"),
        ("{/a/b: x, /a: y}", "file_mounts./a/b"),
        ("{./a: x, a: y}", "file_mounts.a"),
        ("{~/a: x, a: y}", "file_mounts.~/a"),
        ("{/models/x: y}", "volumes./models"),
        ("{/models: y}", "volumes./models"),
    ] {
        let told = refuse(&minimal(
            "{}",
            &format!("volumes: {{/models: claim}}\nfile_mounts: {mounts}"),
        ));
        let within = format!("is the same as, or within, {met};");
        assert!(
            told.len() == 1 && told[0].contains(&within),
            "{mounts}: {told:?}"
        );
    }
    accept(&minimal(
        "{}",
        "file_mounts: {/a: x, /ab: y, a: z, /ac/d: u, /ac/e: v}",
    ));
}

#[test]
fn sources_that_are_not_local_are_refused_with_what_to_do() {
    for (source, said) in [
        ("s3://bucket/x", "is in a bucket"),
        ("https://example.com/x", "is in a bucket"),
        (
            "{name: bucket, mode: MOUNT}",
            "a storage object is valid in SkyServe",
        ),
        ("x/", "the source ends with a slash"),
        ("''", "the source is empty"),
        ("7", "expected a text"),
    ] {
        let told = refuse(&minimal("{}", &format!("file_mounts: {{/data: {source}}}")));
        assert!(
            told.len() == 1 && told[0].contains("file_mounts./data") && told[0].contains(said),
            "{source}: {told:?}"
        );
    }
    let told = refuse(&minimal("{}", "file_mounts: {/data: s3://bucket/x}"));
    assert!(told[0].contains("fetch them in setup"), "{told:?}");
    let told = refuse(&minimal("{}", "file_mounts: [a]"));
    assert!(told[0].contains("expected a mapping"), "{told:?}");
    let told = refuse(&format!(
        "{}file_mounts: {{a: b}}\n",
        super::placement::STATIC
    ));
    assert!(told[0].contains("the provider is static"), "{told:?}");
}

#[test]
fn files_survive_the_log_and_leave_documents_without_them_as_they_were() {
    let config = bincode::config::standard();
    let encode = |spec: &ServiceSpec| bincode::encode_to_vec(spec, config).unwrap();
    let decode = |bytes: &[u8]| bincode::decode_from_slice::<ServiceSpec, _>(bytes, config);
    let mut files = both();
    files[0] = sent("conf", "a.txt", 0o644, [0, 1, 0, 255]);
    let spec = with_files(TWO, files).unwrap().spec;
    let bytes = encode(&spec);
    let (decoded, read) = decode(&bytes).unwrap();
    assert_eq!((&decoded, read), (&spec, bytes.len()));

    // As an array of bytes, which is how a build from before files has it.
    let without = accept(&minimal("{}", TWO)).spec;
    let document = serde_json::to_vec(&without).unwrap();
    assert_eq!(
        encode(&without),
        bincode::encode_to_vec(&document, config).unwrap()
    );
    let (stored, _): (Vec<u8>, usize) = bincode::decode_from_slice(&bytes, config).unwrap();
    assert!(serde_json::from_slice::<ServiceSpec>(&stored).is_err());

    for damaged in [&stored[..stored.len() - 1], &[&stored[..], b"x"].concat()] {
        let damaged = bincode::encode_to_vec(damaged, config).unwrap();
        assert!(decode(&damaged).is_err());
    }
}

#[test]
fn contents_are_shown_nowhere() {
    let mut files = both();
    files[2] = sent("~/.ssh/id", "", 0o600, "hush, hush");
    let spec = with_files(TWO, files).unwrap().spec;
    let shown = format!("{spec:?} {:?} {}", spec.file_mounts, spec.source_masked());
    assert!(!shown.contains("hush"), "{shown}");
    assert!(!shown.contains("104, 117, 115, 104"), "{shown}");
    assert!(!shown.contains("aHVzaCwgaHVza"), "{shown}");
    assert_eq!(
        spec.render()["file_mounts"],
        serde_json::json!({
            "conf/a.txt": "1 bytes, mode 644",
            "conf/bin/b": "2 bytes, mode 755",
            "~/.ssh/id": "10 bytes, mode 600",
        })
    );
}
