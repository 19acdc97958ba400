//! The chart, as helm renders it: each file of values in `chart/tests/values` gives the objects in `chart/tests/golden`,
//! and each in `chart/tests/refused` is refused with the words of its first line.
//!
//! `RAFTSERVE_WRITE_GOLDEN=1` writes what is rendered now, to be reviewed as a diff.

mod schema;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use jepsen_tests::binary;

/// What is drawn anew in each rendering, since no cluster keeps it.
const DRAWN: [&str; 5] = ["tls.crt:", "tls.key:", "ca.crt:", "admin-token:", "tokens:"];

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../chart")
}

fn helm(verb: &[&str], values: &Path) -> anyhow::Result<Output> {
    Command::new("helm")
        .args(verb)
        .arg(chart())
        .arg("--values")
        .arg(values)
        .output()
        .context("cannot run helm")
}

/// What an installation with these values would be, on a cluster with the Gateway API.
const RENDER: [&str; 6] = [
    "template",
    "serve",
    "--namespace",
    "serving",
    "--api-versions",
    "gateway.networking.k8s.io/v1",
];

fn render(values: &Path) -> anyhow::Result<Output> {
    helm(&RENDER, values)
}

/// The files of a folder of the chart's tests, in order.
fn files(folder: &str) -> anyhow::Result<Vec<PathBuf>> {
    let folder = chart().join("tests").join(folder);
    let entries = fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

/// The rendering without what is drawn anew.
fn masked(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let key = line.trim_start();
        match DRAWN.iter().find(|drawn| key.starts_with(**drawn)) {
            Some(drawn) => format!("{}{drawn} (drawn)\n", &line[..line.len() - key.len()]),
            None => format!("{line}\n"),
        }
    });
    lines.collect()
}

#[test]
fn each_file_of_values_renders_as_reviewed() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever changes the chart says so by it"
    )]
    let write = std::env::var_os("RAFTSERVE_WRITE_GOLDEN").is_some();
    let all = files("values")?;
    ensure!(all.len() >= 8, "{all:?}");
    for values in all {
        let output = render(&values)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", values.display());
        let rendered = masked(&String::from_utf8(output.stdout)?);
        let name = values.file_name().context("a file has a name")?;
        let golden = chart().join("tests/golden").join(name);
        if write {
            fs::write(&golden, &rendered)?;
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        let differs = rendered
            .lines()
            .zip(expected.lines())
            .position(|(rendered, expected)| rendered != expected);
        ensure!(
            rendered == expected,
            "{} renders otherwise from line {}: if that is meant, RAFTSERVE_WRITE_GOLDEN=1 writes it, and git diff shows it",
            values.display(),
            differs.map_or(0, |line| line + 1)
        );
    }
    Ok(())
}

#[test]
fn each_contradiction_is_refused_with_a_sentence() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    for values in files("refused")? {
        let text = fs::read_to_string(&values)?;
        let words = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let words = words.with_context(|| format!("{}: no words", values.display()))?;
        let output = render(&values)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{} is taken", values.display());
        ensure!(said.contains(words), "{}: {said}", values.display());
        let repeated = said.contains("a-secret");
        ensure!(!repeated, "{} tells the secret", values.display());
    }
    Ok(())
}

#[test]
fn lint_finds_nothing() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    for values in files("values")? {
        let output = helm(&["lint", "--strict"], &values)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}: {said}", values.display());
    }
    Ok(())
}

/// The lines of the StatefulSet's `key`, in what helm renders.
fn of_set<'a>(rendered: &'a str, key: &str) -> anyhow::Result<Vec<&'a str>> {
    let mut objects = rendered.split("\n---\n");
    let set = objects.find(|it| it.contains("\nkind: StatefulSet\n"));
    let mut lines = set.context("no StatefulSet")?.lines();
    let first = lines.find(|line| line.trim_start().starts_with(key) && line.starts_with("  "));
    let first = first.with_context(|| format!("no {key}"))?;
    let inner = lines.take_while(|line| line.starts_with("   "));
    Ok(std::iter::once(first).chain(inner).collect())
}

#[test]
fn an_upgrade_from_the_previous_chart_changes_nothing_that_cannot_be_changed() -> anyhow::Result<()>
{
    if !have_helm() {
        return Ok(());
    }
    let walked = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/kubernetes/ha-load-balancer/values.yaml");
    let rendered = |chart: &Path| -> anyhow::Result<String> {
        let output = Command::new("helm")
            .args(["template", "serve"])
            .arg(chart)
            .arg("--values")
            .arg(&walked)
            .output()
            .context("cannot run helm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", chart.display());
        Ok(String::from_utf8(output.stdout)?)
    };
    let (now, before) = (
        rendered(&chart())?,
        rendered(&chart().join("tests/previous"))?,
    );
    ensure!(before.contains("-previous\n"), "its own version");
    for fixed in [
        "serviceName:",
        "podManagementPolicy:",
        "selector:",
        "volumeClaimTemplates:",
    ] {
        let (now, before) = (of_set(&now, fixed)?, of_set(&before, fixed)?);
        // A text is the same with and without.
        let same = |lines: &[&str]| lines.join("\n").replace('"', "");
        ensure!(
            same(&now) == same(&before),
            "{now:#?}\ninstead of\n{before:#?}"
        );
    }
    Ok(())
}

#[test]
fn a_release_whose_name_no_service_can_have_is_refused_with_a_sentence() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    for name in ["a.b", "1a"] {
        let output = Command::new("helm")
            .args(["template", name])
            .arg(chart())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{name} is taken");
        ensure!(said.contains("set fullnameOverride to"), "{said}");
    }
    Ok(())
}

/// Labels may have a dot, and those of the selector must stay as they are in what is installed.
#[test]
fn a_dotted_name_is_taken_where_the_full_name_is_set() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let values = folder.path().join("values.json");
    fs::write(
        &values,
        r#"{"nameOverride": "a.b", "fullnameOverride": "ab"}"#,
    )?;
    let output = render(&values)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let rendered = String::from_utf8(output.stdout)?;
    ensure!(rendered.contains("app.kubernetes.io/name: \"a.b\"\n"));
    ensure!(rendered.contains("\n  name: \"ab\"\n"));
    Ok(())
}

#[test]
fn the_grace_is_shared_out_between_waiting_and_draining() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let values = folder.path().join("grace.json");
    for (grace, hold, drain) in [(60, 35, 15), (75, 35, 30), (120, 55, 55), (600, 295, 295)] {
        fs::write(
            &values,
            format!(r#"{{"terminationGracePeriodSeconds": {grace}}}"#),
        )?;
        let output = render(&values)?;
        let rendered = String::from_utf8(output.stdout)?;
        for flag in [
            format!("--hold-grace={hold}s\n"),
            format!("--drain-grace={drain}s\n"),
        ] {
            ensure!(rendered.contains(&flag), "no {flag} of {grace}: {rendered}");
        }
        ensure!(hold + drain + 10 <= grace, "{grace}");
    }
    Ok(())
}

#[test]
fn the_notes_warn_of_what_is_allowed_and_may_do_harm() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let values = folder.path().join("values.json");
    fs::write(&values, "{}")?;
    let warnings = [
        "resources.limits.cpu lets a peer be throttled",
        "--replicas=0` deletes every volume",
        "cannot agree to within their grace costs the volumes too",
    ];
    let plain = notes(&values)?;
    for warning in warnings {
        ensure!(!plain.contains(warning), "{plain}");
    }
    fs::write(
        &values,
        r#"{"resources": {"limits": {"cpu": 4}}, "storage": {"whenScaled": "Delete"}, "service": {"type": "LoadBalancer"}}"#,
    )?;
    let warned = notes(&values)?;
    // Some load balancers have a name, and no address.
    let either = "{{with index .status.loadBalancer.ingress 0}}{{or .hostname .ip}}{{end}}";
    for words in warnings.iter().chain([&either]) {
        ensure!(warned.contains(words), "no {words:?}: {warned}");
    }
    Ok(())
}

/// The flags of the peers, in all that was rendered.
fn flags_rendered() -> anyhow::Result<BTreeSet<String>> {
    let mut flags = BTreeSet::new();
    for golden in files("golden")? {
        let text = fs::read_to_string(&golden)?;
        let arguments = of_set(&text, "args:")?;
        let arguments = arguments.iter().map(|line| line.trim_start());
        // Those of `extraArgs` are quoted.
        let own = arguments.filter_map(|line| line.strip_prefix("- --"));
        flags.extend(own.map(|it| format!("--{}", it.split('=').next().unwrap_or(it))));
    }
    Ok(flags)
}

#[test]
fn no_flag_of_the_chart_is_taken_among_the_further_ones() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let flags = flags_rendered()?;
    ensure!(flags.len() > 20, "{flags:?}");
    let folder = tempfile::tempdir()?;
    let values = folder.path().join("values.json");
    for flag in flags {
        fs::write(
            &values,
            format!(r#"{{"log": {{"access": true}}, "extraArgs": ["{flag}=x"]}}"#),
        )?;
        let output = render(&values)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{flag} is taken");
        let words = format!("extraArgs[0]: {flag} is for the chart to set");
        ensure!(said.contains(&words), "{said}");
    }
    Ok(())
}

#[test]
fn the_notes_tell_how_the_admin_api_is_reached_from_outside() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let values = folder.path().join("values.json");
    let cases = [
        (
            r#"{"adminService": {"type": "NodePort", "nodePort": 32443}}"#,
            [
                "https://NODE:32443\n",
                "--tls-server-name serve-raftserve-admin.\n",
            ],
        ),
        (
            r#"{"adminService": {"type": "LoadBalancer"}, "certificates": {"extraNames": ["a.b.c", "::1"]}}"#,
            [
                "{{or .hostname .ip}}{{end}}'):7000\n",
                "made for: a.b.c, ::1.\n",
            ],
        ),
        (
            r#"{"adminService": {"type": "NodePort"}, "certificates": {"existingSecret": "own"}}"#,
            [
                "https://NODE:NODEPORT\n",
                "is not for localhost or that host, add --tls-server-name",
            ],
        ),
    ];
    for (given, all) in cases {
        fs::write(&values, given)?;
        let notes = notes(&values)?;
        for words in all {
            ensure!(notes.contains(words), "no {words:?} for {given}: {notes}");
        }
    }
    Ok(())
}

/// What `helm install` would say at its end. Asks no cluster.
fn notes(values: &Path) -> anyhow::Result<String> {
    let install = [
        "install",
        "serve",
        "--namespace",
        "serving",
        "--dry-run=client",
    ];
    let output = helm(&install, values)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", values.display());
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, notes) = text.split_once("NOTES:").context("no notes")?;
    Ok(notes.to_owned())
}

/// What stands in for `kubectl` and `raftserve` where the notes are followed: the latter writes down how it was called.
const STAND_INS: [(&str, &str); 2] = [
    ("kubectl", "#!/bin/sh\nprintf Zm9yZ2Vk\n"),
    (
        "raftserve",
        "#!/bin/sh\necho \"$RAFTSERVE_SERVER $RAFTSERVE_CA_FILE $RAFTSERVE_TOKEN $*\" >>\"$CALLS\"\n",
    ),
];

#[test]
fn whoever_follows_the_notes_asks_the_forwarded_port_with_tls_in_each_step() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    for (name, text) in STAND_INS {
        let program = folder.path().join(name);
        fs::write(&program, text)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    let values = folder.path().join("values.json");
    fs::write(&values, "{}")?;
    let notes = notes(&values)?;
    let of_steps = notes
        .lines()
        .skip_while(|line| !line.starts_with("2. "))
        .take_while(|line| !line.starts_with("Replicas run in this namespace"));
    let commands = of_steps.filter_map(|line| line.strip_prefix("     "));
    // Curl asks the service, which is not there.
    let commands: Vec<&str> = commands.filter(|it| !it.starts_with("curl ")).collect();
    let calls = folder.path().join("calls");
    let ran = Command::new("sh")
        .args(["-e", "-c", &format!("{}\nwait\n", commands.join("\n"))])
        .current_dir(folder.path())
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .env("CALLS", &calls)
        .output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{said}: {commands:#?}");
    let authorities = folder.path().canonicalize()?.join("raftserve-ca.crt");
    ensure!(fs::read_to_string(&authorities)? == "forged");
    let way = format!("https://localhost:7000 {} forged ", authorities.display());
    let made = fs::read_to_string(&calls)?;
    ensure!(
        made == format!("{way}cluster status\n{way}up service.yaml --name chat\n"),
        "{made}"
    );
    let forwarded = "port-forward service/serve-raftserve-admin 7000:7000 &";
    ensure!(commands[0].ends_with(forwarded), "{commands:#?}");
    Ok(())
}

#[test]
fn the_notes_tell_three_steps_and_how_to_be_let_in() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let tokens = folder.path().join("tokens.json");
    let hash = "0123456789abcdef".repeat(4);
    fs::write(
        &tokens,
        format!(r#"{{"auth": {{"tokens": ["ci:admin:{hash}"]}}}}"#),
    )?;
    for values in files("values")?.iter().chain([&tokens]) {
        let notes = notes(values)?;
        let given = fs::read_to_string(values)?;
        let has = |value: &str| given.contains(value);
        let way = match has("authCredentials") || has("auth:") {
            _ if *values == tokens => "--token-stdin",
            true => "raftserve-ca.crt\n     raftserve cluster status",
            false => "admin-token",
        };
        for words in [
            "\n1. Wait",
            "helm test serve --namespace serving",
            "\n2. Reach",
            way,
            "\n3. Bring",
        ] {
            ensure!(
                notes.contains(words),
                "no {words:?} for {}: {notes}",
                values.display()
            );
        }
        let many = match () {
            () if has("replicas: 1\n") => "1 peer starts as",
            () if has("replicas: 5\n") => "5 peers start as",
            () => "3 peers start as",
        };
        ensure!(notes.contains(many), "no {many:?}: {notes}");
        ensure!(
            notes.contains("--tls-server-name") == has("certificates:"),
            "{}: {notes}",
            values.display()
        );
        for gap in ["<no value>", "<nil>", "%!"] {
            ensure!(!notes.contains(gap), "{}: {notes}", values.display());
        }
    }
    Ok(())
}

/// The values by their paths, and their defaults as they stand.
fn defaults() -> anyhow::Result<Vec<(String, String)>> {
    let values = fs::read_to_string(chart().join("values.yaml"))?;
    let mut path: Vec<&str> = Vec::new();
    let mut all = Vec::new();
    for line in values.lines() {
        let key = line.trim_start();
        let Some((name, default)) = key.split_once(':').filter(|_| !key.starts_with('#')) else {
            continue;
        };
        path.truncate((line.len() - key.len()) / 2);
        path.push(name);
        if !default.is_empty() {
            all.push((path.join("."), default.trim().to_owned()));
        }
    }
    ensure!(all.len() > 50, "{} values", all.len());
    Ok(all)
}

/// Each is a text for people and a number or a word of its own for YAML.
#[test]
fn names_that_look_like_something_else_stay_texts() -> anyhow::Result<()> {
    if !have_helm() {
        return Ok(());
    }
    let account = "serviceAccount.name=123";
    let settings = [
        "fullnameOverride=true",
        account,
        "storage.volumeNames={1,2,3}",
        "storage.storageClassName=123",
    ];
    let mut command = Command::new("helm");
    command.args(["template", "true", "--namespace", "123"]);
    command.arg(chart());
    for setting in settings {
        command.args(["--set-string", setting]);
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let rendered = String::from_utf8(output.stdout)?;
    for key in ["instance", "volumeName", "serviceAccountName", "  name"] {
        for word in ["true", "1", "123"] {
            let bare = format!("{key}: {word}\n");
            ensure!(!rendered.contains(&bare), "{bare}");
            let listed = format!("[{word}]");
            ensure!(!rendered.contains(&listed), "{listed}");
        }
    }
    ensure!(
        rendered.contains("volumeName: \"1\""),
        "they are rendered at all"
    );
    Ok(())
}

#[test]
fn the_table_of_values_is_whole() -> anyhow::Result<()> {
    let readme = fs::read_to_string(chart().join("README.md"))?;
    let values = defaults()?;
    for (path, default) in &values {
        let row = format!("| `{path}` | `{default}` | ");
        ensure!(readme.contains(&row), "chart/README.md lacks {row}");
    }
    let (_, table) = readme.split_once("## Values").context("no table")?;
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let count = rows.count();
    ensure!(
        count == values.len(),
        "chart/README.md has {count} rows for {} values",
        values.len()
    );
    Ok(())
}

fn have_helm() -> bool {
    binary::have_with("helm", "version")
}
