//! The command line is a client of the API.

use std::collections::BTreeMap;

use crate::lab::{Lab, YAML};
use crate::replicas::ready_replica;

/// Everything that one run of the binary said.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn cli(lab: &Lab, words: &[&str]) -> Ran {
    let ran = tokio::process::Command::new(env!("CARGO_BIN_EXE_raftserve"))
        .args(words)
        .env("RAFTSERVE_SERVER", lab.servers())
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap();
    Ran {
        code: ran.status.code(),
        out: String::from_utf8(ran.stdout).unwrap(),
        err: String::from_utf8(ran.stderr).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_is_a_client_of_it() {
    let lab = Lab::start().await;
    let file = lab.dir.path().join("web.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, YAML).unwrap();

    let refused = cli(&lab, &["up", path]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(refused.err.contains("give -y"), "{}", refused.err);
    let up = cli(&lab, &["up", path, "-y", "--async"]).await;
    assert_eq!(up.code, Some(0), "{}", up.err);
    assert_eq!(
        up.out,
        "Service web is coming up.\nEndpoint: http://127.0.0.1:30001\n"
    );
    let twice = cli(&lab, &["up", path, "-y", "--async"]).await;
    assert_eq!(twice.code, Some(6), "{}", twice.err);
    assert!(twice.err.contains("raftserve update"), "{}", twice.err);

    let endpoint = cli(&lab, &["status", "--endpoint"]).await;
    assert_eq!(endpoint.out, "http://127.0.0.1:30001\n");
    let json = cli(&lab, &["status", "web", "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["services"][0]["status"], "NO_REPLICA");
    let nowhere = cli(&lab, &["status", "nowhere"]).await;
    assert_eq!(nowhere.code, Some(3), "{}", nowhere.err);

    std::fs::write(&file, YAML.replace("replicas: 2", "replicas: x")).unwrap();
    let bad = cli(&lab, &["update", "web", path, "-y"]).await;
    assert_eq!(bad.code, Some(2));
    let line = YAML
        .lines()
        .position(|line| line.contains("replicas"))
        .unwrap()
        + 1;
    assert!(
        bad.err.contains(&format!("{line} |   replicas: x")),
        "{}",
        bad.err
    );

    let events = cli(&lab, &["events", "--no-follow", "--output", "json"]).await;
    let kinds: Vec<String> = events
        .out
        .lines()
        .map(|line| serde_json::from_str::<BTreeMap<String, serde_json::Value>>(line).unwrap())
        .map(|event| event["kind"].as_str().unwrap().to_owned())
        .collect();
    assert!(kinds.contains(&"SERVICE_CREATED".to_owned()), "{kinds:?}");
    let put = ["kv", "put", "k", "v", "--if-absent"];
    let first = cli(&lab, &put).await;
    assert_eq!(first.code, Some(0), "{}", first.err);
    let again = cli(&lab, &put).await;
    assert_eq!(again.code, Some(6), "{}", again.err);
    assert!(again.err.contains("key k exists already"), "{}", again.err);
    let far = ["kv", "watch", "--from", "999999", "--no-follow"];
    let nothing = cli(&lab, &far).await;
    assert_eq!((nothing.code, nothing.out.as_str()), (Some(0), ""));
    assert!(
        nothing.err.contains("from index 999999 on"),
        "{}",
        nothing.err
    );
    let members = cli(&lab, &["cluster", "members"]).await;
    assert!(members.out.contains("leader"), "{}", members.out);
    let down = cli(&lab, &["down", "w*", "-y", "--purge"]).await;
    assert_eq!(down.code, Some(0), "{}", down.err);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_waits_until_the_replicas_are_ready() {
    let lab = Lab::start().await;
    let file = lab.dir.path().join("web.yaml");
    std::fs::write(&file, YAML.replace("replicas: 2", "replicas: 1")).unwrap();
    let words = ["up", file.to_str().unwrap(), "-y"];
    let up = cli(&lab, &words);
    let control = async {
        let mut applied = lab.consensus().applied();
        let service = loop {
            let state = lab.consensus().state();
            if let Some(service) = state.services().next() {
                break service.id;
            }
            applied.changed().await.unwrap();
        };
        ready_replica(&lab, service).await
    };
    let (up, _) = tokio::join!(up, control);
    assert_eq!(up.code, Some(0), "{}", up.err);
    assert!(up.err.contains("web replica 1 READY"), "{}", up.err);
    assert!(up.out.starts_with("Service web is up.\n"), "{}", up.out);
    lab.stop().await;
}
