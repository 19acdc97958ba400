//! The admin API over real connections, on a real peer: errors, writes, watches, and what any gRPC
//! tool relies on.
#![expect(clippy::unwrap_used, reason = "a panic is a test's answer")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use prost::Message;
use raftserve_model::{Generation, Incarnation, ReplicaId, ServiceId, ServiceVersion, SessionKey};
use raftserve_node::admin::errors::{Reason, violations};
use raftserve_node::admin::v1::get_session_request::Session as Which;
use raftserve_node::admin::v1::{self, IfExists};
use raftserve_node::peer::Remarks;
use raftserve_store::Outcome;
use raftserve_store::command::{Action, Change};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

#[path = "admin_api/bare.rs"]
mod bare;
#[path = "admin_api/lab.rs"]
mod lab;

use lab::{Lab, YAML, apply_request, tool};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_yaml_names_field_and_line_and_changes_nothing() {
    let lab = Lab::start().await;
    let yaml =
        "service:\n  readiness_probe: /\n  replicas: two\nresources:\n  ports: 8080\nrun: x\n";
    let asked = v1::ApplyServiceRequest {
        yaml: yaml.to_owned(),
        ..apply_request("web")
    };
    let status = lab.services().apply(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(Reason::of(&status), Some(Reason::InvalidSpec));
    let found = violations(&status);
    assert_eq!(found[0].field, "service.replicas", "{status:?}");
    assert_eq!(found[0].line, Some(3), "{status:?}");
    let listed = lab
        .services()
        .list(v1::ListServicesRequest::default())
        .await;
    assert_eq!(listed.unwrap().into_inner().services, []);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lives_from_apply_to_delete() {
    let lab = Lab::start().await;
    let mut services = lab.services();

    let rehearsed = v1::ApplyServiceRequest {
        validate_only: true,
        ..apply_request("web")
    };
    let planned = services.apply(rehearsed).await.unwrap().into_inner();
    assert_eq!(
        (planned.version, planned.service_id, planned.log_index),
        (1, 0, 0)
    );

    let applied = services
        .apply(apply_request("web"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((applied.name.as_str(), applied.version), ("web", 1));
    assert_eq!((applied.existed, applied.wanted_replicas), (false, 2));
    assert_eq!(applied.endpoint, "http://127.0.0.1:30001");

    let again = services.apply(apply_request("web")).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert_eq!(Reason::of(&again), Some(Reason::ServiceExists));
    let put = v1::ApplyServiceRequest {
        if_exists: IfExists::Update.into(),
        ..apply_request("web")
    };
    let put = services.apply(put).await.unwrap().into_inner();
    assert_eq!(
        (put.version, put.existed, put.service_id),
        (2, true, applied.service_id)
    );

    let update = v1::UpdateServiceRequest {
        name: "web".into(),
        yaml: format!(
            "name: other\n{}",
            YAML.replace("replicas: 2", "replicas: 3")
        ),
        ..v1::UpdateServiceRequest::default()
    };
    let updated = services.update(update.clone()).await.unwrap().into_inner();
    assert_eq!((updated.version, updated.wanted_replicas), (3, 3));
    assert!(updated.warnings[0].contains("name: other"), "{updated:?}");
    assert_eq!(updated.warnings.len(), 1, "{updated:?}");
    let same = v1::UpdateServiceRequest {
        validate_only: true,
        ..update.clone()
    };
    let same = services.update(same).await.unwrap().into_inner();
    let told = &same.warnings[1];
    assert!(told.starts_with("nothing differs from version 3"), "{told}");
    let nowhere = v1::UpdateServiceRequest {
        name: "nowhere".into(),
        ..update
    };
    let status = services.update(nowhere).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::NoSuchService));

    let get = v1::GetServiceRequest {
        name: "web".into(),
        stale: false,
    };
    let got = services.get(get.clone()).await.unwrap().into_inner();
    assert!(got.log_index >= updated.log_index);
    let web = got.service.unwrap();
    assert_eq!((web.version, web.wanted_replicas), (3, 3));
    assert_eq!(web.status(), v1::ServiceStatus::NoReplica);
    assert!(web.yaml.contains("replicas: 3"));

    let delete = v1::DeleteServiceRequest {
        name: "web".into(),
        purge: true,
        request_id: None,
    };
    services.delete(delete.clone()).await.unwrap();
    assert_eq!(services.get(get).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        services.delete(delete).await.unwrap_err().code(),
        Code::NotFound
    );
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_changed_only_under_its_condition_and_read_back_everywhere() {
    let labs = Lab::start_many(3).await;
    let put = |key: &str, value: &'static str, if_modified_index| v1::PutKeyRequest {
        key: key.to_owned(),
        value: value.into(),
        if_modified_index,
        request_id: None,
    };
    let get = v1::GetKeyRequest {
        key: "a/1".to_owned(),
        stale: false,
    };
    let missing = labs[0].keys().get(get.clone()).await.unwrap_err();
    assert_eq!(Reason::of(&missing), Some(Reason::NoSuchKey));

    let first = labs[0].keys().put(put("a/1", "x", Some(0))).await.unwrap();
    let first = first.into_inner();
    assert_eq!(
        (first.version, first.created_index),
        (1, first.modified_index)
    );
    for (lab, stale_index) in labs.iter().zip([0, first.modified_index + 1, 1]) {
        let status = lab.keys().put(put("a/1", "y", Some(stale_index))).await;
        let status = status.unwrap_err();
        assert_eq!(Reason::of(&status), Some(Reason::KeyConflict));
        let got = lab.keys().get(get.clone()).await.unwrap().into_inner();
        assert_eq!(got.entry.unwrap().value, "x");
    }
    let second = put("a/1", "y", Some(first.modified_index));
    let second = labs[1].keys().put(second).await.unwrap().into_inner();
    assert_eq!(
        (second.version, second.created_index),
        (2, first.created_index)
    );

    for key in ["a/2", "b"] {
        labs[2].keys().put(put(key, "z", None)).await.unwrap();
    }
    let list = |page_token: String| v1::ListKeysRequest {
        prefix: "a/".to_owned(),
        page_size: 1,
        page_token,
        ..v1::ListKeysRequest::default()
    };
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let page = labs[0].keys().list(list(token)).await.unwrap().into_inner();
        assert_eq!(page.total, 3);
        listed.extend(page.entries.into_iter().map(|entry| entry.key));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ["a/1", "a/2"]);

    let delete = v1::DeleteKeyRequest {
        key: "a/1".to_owned(),
        if_modified_index: Some(second.modified_index),
        request_id: None,
    };
    let deleted = labs[0].keys().delete(delete.clone()).await.unwrap();
    assert!(deleted.into_inner().existed);
    let again = labs[1].keys().delete(delete).await.unwrap_err();
    assert_eq!(Reason::of(&again), Some(Reason::KeyConflict));
    for lab in labs {
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_are_bounded_and_the_field_is_named() {
    let lab = Lab::start().await;
    for (key, value, field) in [
        (String::new(), 1, "key"),
        ("k".repeat(257), 1, "key"),
        ("a\nb".to_owned(), 1, "key"),
        ("k".to_owned(), (64 << 10) + 1, "value"),
    ] {
        let put = v1::PutKeyRequest {
            key,
            value: vec![7; value].into(),
            ..v1::PutKeyRequest::default()
        };
        let status = lab.keys().put(put).await.unwrap_err();
        assert_eq!(violations(&status)[0].field, field);
    }
    let largest = v1::PutKeyRequest {
        key: "k".repeat(256),
        value: vec![7; 64 << 10].into(),
        ..v1::PutKeyRequest::default()
    };
    lab.keys().put(largest).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_repeated_under_its_id_is_executed_once() {
    let lab = Lab::start().await;
    let opened = lab.cluster().open_client(v1::OpenClientRequest {}).await;
    let request_id = Some(v1::RequestId {
        client_id: opened.unwrap().into_inner().client_id,
        sequence: 1,
        acknowledged: 0,
    });
    let asked = v1::ApplyServiceRequest {
        request_id,
        if_exists: IfExists::Update.into(),
        ..apply_request("web")
    };
    for _ in 0..3 {
        let applied = lab.services().apply(asked.clone()).await.unwrap();
        assert_eq!(applied.into_inner().version, 1);
    }
    let unknown = v1::ApplyServiceRequest {
        request_id: Some(v1::RequestId {
            client_id: 1_000_000,
            sequence: 1,
            acknowledged: 0,
        }),
        ..asked
    };
    let status = lab.services().apply(unknown).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::UnknownClient));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_come_in_pages_by_name() {
    let lab = Lab::start().await;
    for (name, was_alone) in [
        ("b", None),
        ("d", Some("b was alone")),
        ("a", None),
        ("c", None),
    ] {
        let put = lab.services().apply(apply_request(name)).await.unwrap();
        let warned = put.into_inner().warnings;
        let right = |said: &str| warned.len() == 1 && warned[0].starts_with(said);
        assert!(was_alone.map_or(warned.is_empty(), right), "{warned:?}");
    }
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let asked = v1::ListServicesRequest {
            page_size: 3,
            page_token,
            stale: true,
        };
        let page = lab.services().list(asked).await.unwrap().into_inner();
        names.extend(page.services.into_iter().map(|service| service.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "d"]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_where_it_broke_off() {
    let lab = Lab::start().await;
    let watch = |from_index, service: &str| v1::WatchEventsRequest {
        from_index,
        service_name: service.to_owned(),
    };
    lab.services().apply(apply_request("web")).await.unwrap();
    lab.services().apply(apply_request("other")).await.unwrap();

    let mut first = lab
        .events()
        .watch(watch(Some(0), "web"))
        .await
        .unwrap()
        .into_inner();
    let created = first.message().await.unwrap().unwrap();
    assert_eq!(created.events[0].kind, "SERVICE_CREATED");
    let bookmark = first.message().await.unwrap().unwrap();
    assert_eq!(bookmark.events, []);
    assert!(bookmark.log_index > created.log_index);
    drop(first);

    let update = v1::ApplyServiceRequest {
        if_exists: IfExists::Update.into(),
        ..apply_request("web")
    };
    let updated = lab.services().apply(update).await.unwrap().into_inner();
    let resumed = watch(Some(bookmark.log_index + 1), "web");
    let mut second = lab.events().watch(resumed).await.unwrap().into_inner();
    let batch = second.message().await.unwrap().unwrap();
    assert_eq!(batch.log_index, updated.log_index);
    assert_eq!(
        (batch.events[0].kind.as_str(), batch.events[0].version),
        ("SERVICE_UPDATED", 2)
    );

    // A watch that is open when something happens is told of it.
    let mut live = lab
        .events()
        .watch(watch(None, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(live.message().await.unwrap().unwrap().events, []);
    let third = lab
        .services()
        .apply(apply_request("third"))
        .await
        .unwrap()
        .into_inner();
    loop {
        let batch = live.message().await.unwrap().unwrap();
        if !batch.events.is_empty() {
            assert_eq!(batch.log_index, third.log_index);
            assert_eq!(batch.events[0].service_name, "third");
            break;
        }
    }

    // And of the end of the peer.
    lab.closing.cancel();
    let end = loop {
        match live.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(Reason::of(&end.unwrap_err()), Some(Reason::Stopping));
    lab.stop().await;
}

/// One replica of the service, whose `run` has begun, and what follows, as a controller would write it.
async fn started_replica(lab: &Lab, service: ServiceId, then: &[Change]) {
    let consensus = lab.consensus();
    let limit = Duration::from_secs(10);
    let start = Action::StartControl {
        node: consensus.node_id(),
        incarnation: Incarnation(1),
    };
    let (index, _) = consensus.propose(start, limit).await.unwrap();
    let replica = ReplicaId { service, number: 1 };
    let mut changes = vec![
        Change::Create {
            service,
            version: ServiceVersion(1),
            port: 20_000,
        },
        Change::Provisioning { replica },
        Change::Started {
            replica,
            address: "127.0.0.1:20000".into(),
        },
    ];
    changes.extend_from_slice(then);
    let control = Action::Control {
        generation: Generation(index.0),
        changes,
    };
    let (_, outcome) = consensus.propose(control, limit).await.unwrap();
    assert_eq!(outcome, Outcome::Done);
}

/// The same, made ready.
async fn ready_replica(lab: &Lab, service: ServiceId) -> ReplicaId {
    let replica = ReplicaId { service, number: 1 };
    started_replica(lab, service, &[Change::Ready { replica }]).await;
    replica
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_peer_tells_why_a_replica_that_starts_is_not_ready_as_the_leader_sees_it() {
    let labs = Lab::start_many(3).await;
    let applied = labs[0].services().apply(apply_request("web")).await;
    let service = ServiceId(applied.unwrap().into_inner().service_id);
    let replica = ReplicaId { service, number: 1 };
    started_replica(&labs[0], service, &[]).await;
    let leader = labs.iter().find(|lab| {
        let leadership = *lab.consensus().leadership().borrow();
        leadership.is_self
    });
    let leader = leader.unwrap().consensus();
    for seen in ["answers 404", ""] {
        let remark = |seen: &str| (replica, seen.to_owned());
        leader.remark(Remarks {
            replicas: Some(seen)
                .filter(|it| !it.is_empty())
                .map(remark)
                .into_iter()
                .collect(),
            ..Remarks::default()
        });
        for lab in &labs {
            let mut replicas = lab.replicas();
            let listed = replicas.list(v1::ListReplicasRequest::default()).await;
            let shown = listed.unwrap().into_inner().replicas;
            assert_eq!(shown[0].status(), v1::ReplicaStatus::Starting);
            assert_eq!(shown[0].reason, seen);
        }
    }
    for lab in labs {
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_their_logs_and_their_sessions_are_shown() {
    let lab = Lab::start().await;
    let affinity = "_metadata:\n  raftserve:\n    session_affinity:\n      header: x-session\n";
    let asked = v1::ApplyServiceRequest {
        yaml: format!("{YAML}{affinity}"),
        ..apply_request("web")
    };
    let applied = lab.services().apply(asked).await.unwrap().into_inner();
    let service = ServiceId(applied.service_id);
    let replica = ready_replica(&lab, service).await;

    let listed = lab
        .replicas()
        .list(v1::ListReplicasRequest::default())
        .await;
    let shown = listed.unwrap().into_inner().replicas;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].status(), v1::ReplicaStatus::Ready);
    assert_eq!(shown[0].endpoint, "http://127.0.0.1:20000");

    let logs = |replica_id, tail_lines| v1::StreamLogsRequest {
        service_name: "web".into(),
        replica_id,
        tail_lines,
        follow: false,
    };
    let mut stream = lab
        .logs()
        .stream(logs(1, Some(1)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(&*stream.message().await.unwrap().unwrap().data, b"second\n");
    assert_eq!(stream.message().await.unwrap(), None);
    let status = lab.logs().stream(logs(9, None)).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::NoSuchReplica));

    let keys = ["alice", "bob"].map(|value| SessionKey::of(service, value.as_bytes()));
    let bind = Action::BindSessions {
        service,
        keys: keys.to_vec(),
    };
    lab.consensus()
        .propose(bind, Duration::from_secs(10))
        .await
        .unwrap();
    let list = v1::ListSessionsRequest {
        service_name: "web".into(),
        ..v1::ListSessionsRequest::default()
    };
    let sessions = lab
        .sessions()
        .list(list.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(sessions.total, 2);
    let mut expected: Vec<String> = keys.iter().map(ToString::to_string).collect();
    expected.sort();
    let shown: Vec<String> = sessions.sessions.into_iter().map(|one| one.key).collect();
    assert_eq!(shown, expected);
    let get = |session| v1::GetSessionRequest {
        service_name: "web".into(),
        session: Some(session),
        stale: false,
    };
    let got = lab
        .sessions()
        .get(get(Which::Value("alice".into())))
        .await
        .unwrap();
    assert_eq!(got.into_inner().session.unwrap().replica_id, replica.number);
    let status = lab
        .sessions()
        .get(get(Which::Value("eve".into())))
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::NoSuchSession));

    let terminate = v1::TerminateReplicaRequest {
        service_name: "web".into(),
        replica_id: 1,
        ..v1::TerminateReplicaRequest::default()
    };
    lab.replicas().terminate(terminate.clone()).await.unwrap();
    let status = lab.replicas().terminate(terminate).await.unwrap_err();
    assert_eq!(Reason::of(&status), Some(Reason::AlreadyStopping));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_readiness_and_reflection_names_every_service() {
    let lab = Lab::start().await;
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut health = HealthClient::new(lab.channel());
    let serving = health.check(check("")).await.unwrap().into_inner();
    assert_eq!(serving.status(), ServingStatus::Serving);
    let mut watch = health
        .watch(check("raftserve.v1.Services"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    lab.ready.send_replace(false);
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );

    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answer: ServerReflectionResponse = ServerReflectionClient::new(lab.channel())
        .server_reflection_info(tokio_stream::iter([list]))
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<String> = listed.service.into_iter().map(|one| one.name).collect();
    for service in [
        "Services", "Replicas", "Logs", "Events", "Sessions", "Cluster",
    ] {
        let name = format!("raftserve.v1.{service}");
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_another_language_finds_its_way() {
    if !tool("python3 with grpcio", "python3", &["-c", "import grpc"]) {
        return;
    }
    let lab = Lab::start().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/admin_api/client.py");
    let address = lab.address.to_string();
    let ran = tokio::process::Command::new("python3")
        .args([script, &address])
        .output()
        .await
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{out}{err}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_members_tell_of_the_cluster() {
    let lab = Lab::start().await;
    let status = lab
        .cluster()
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(status.quorum, "{}", status.quorum_reason);
    assert_eq!((status.node_id, status.leader_id), (1, 1));
    assert_eq!(status.cluster_id.len(), 32);
    let members = lab
        .cluster()
        .members(v1::MembersRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(members.members.len(), 1);
    let only = &members.members[0];
    assert!(only.leader && only.voter && only.asked, "{only:?}");
    let stranger = v1::TransferLeaderRequest { target: Some(9) };
    let refused = lab.cluster().transfer_leader(stranger).await.unwrap_err();
    assert_eq!(Reason::of(&refused), Some(Reason::NoSuchMember));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_every_call_is_answered_within_two_seconds() {
    let mut labs = Lab::start_many(3).await;
    labs[0]
        .services()
        .apply(apply_request("web"))
        .await
        .unwrap();
    for lab in labs.drain(1..) {
        lab.stop().await;
    }
    let lab = labs.pop().unwrap();
    // The first call may find a leader that does not know yet that it has lost its followers.
    for reasons in [&[Reason::NotProposed, Reason::OutcomeUnknown][..]; 2] {
        let begun = Instant::now();
        let status = lab
            .services()
            .apply(apply_request("two"))
            .await
            .unwrap_err();
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(status.code(), Code::Unavailable);
        let reason = Reason::of(&status).unwrap();
        assert!(reasons.contains(&reason), "{status:?}");
    }
    let get = |stale| v1::GetServiceRequest {
        name: "web".into(),
        stale,
    };
    let begun = Instant::now();
    let status = lab.services().get(get(false)).await.unwrap_err();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(Reason::of(&status), Some(Reason::NoQuorum));
    let said = status.message();
    assert!(
        said.starts_with("the service cannot be told: "),
        "a read that failed: {said}"
    );
    lab.services().get(get(true)).await.unwrap();
    let status = lab
        .cluster()
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!status.quorum && !status.quorum_reason.is_empty());
    let in_time = async |call: BoxFuture<'_, Status>| {
        let begun = Instant::now();
        let status = call.await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}: {status:?}");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        status
    };
    let (mut first, mut second, mut third) = (lab.cluster(), lab.cluster(), lab.cluster());
    let compare = first.compare_states(v1::CompareStatesRequest {});
    in_time(compare.map(Result::unwrap_err).boxed()).await;
    let finalize = second.finalize(v1::FinalizeRequest {});
    let status = in_time(finalize.map(Result::unwrap_err).boxed()).await;
    let said = status.message();
    assert!(!said.contains("no linearizable read"), "{said}");
    let transfer = third.transfer_leader(v1::TransferLeaderRequest { target: None });
    let status = in_time(transfer.map(Result::unwrap_err).boxed()).await;
    assert_eq!(Reason::of(&status), Some(Reason::NoQuorum), "{status:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_message_is_refused() {
    let lab = Lab::start().await;
    let asked = v1::ApplyServiceRequest {
        envs: [("K".to_owned(), "v".repeat(3 << 20))].into(),
        ..apply_request("web")
    };
    let status = lab.services().apply(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_a_single_key_that_is_broken_ends_as_any_broken_call_does() {
    let lab = Lab::start().await;
    let asked = v1::GetKeyRequest {
        key: "k".to_owned(),
        stale: false,
    };
    let whole = bare::framed(&asked);
    let too_long = [&[0, 0, 2, 0, 0][..], &[0; 100_000]].concat();
    let compressed = [&[1], &whole[1..]].concat();
    // As much as it says never comes.
    let mut cut_short = whole.to_vec();
    cut_short[4] += 1;
    let garbage = [0, 0, 0, 0, 2, 0xff, 0xff];
    let broken: [(&str, bare::Header, Bytes, Code); 7] = [
        ("nothing", None, Bytes::new(), Code::Internal),
        (
            "a half",
            None,
            whole.slice(..whole.len() - 1),
            Code::Internal,
        ),
        (
            "no message",
            None,
            Bytes::copy_from_slice(&garbage),
            Code::Internal,
        ),
        (
            "compressed, and not how",
            None,
            compressed.into(),
            Code::Internal,
        ),
        ("cut short", None, cut_short.into(), Code::Internal),
        ("too long", None, too_long.into(), Code::OutOfRange),
        (
            "compressed",
            Some(("grpc-encoding", "gzip")),
            whole.clone(),
            Code::Unimplemented,
        ),
    ];
    for (what, header, body, expected) in broken {
        // The last one is answered by tonic.
        for method in ["Put", "Get", "Delete", "List"] {
            let path = format!("/raftserve.v1.KeyValue/{method}");
            let (_, status) = bare::call(&lab, &path, header, vec![body.clone()]).await;
            assert_eq!(status.code(), expected, "{what} to {method}: {status:?}");
        }
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_a_single_key_may_come_in_pieces_and_answers_with_one_message() {
    let lab = Lab::start().await;
    let put = v1::PutKeyRequest {
        key: "k".to_owned(),
        value: vec![7; 40_000].into(),
        ..v1::PutKeyRequest::default()
    };
    let whole = bare::framed(&put);
    let mut pieces: Vec<Bytes> = (0..9).map(|at| whole.slice(at..at + 1)).collect();
    pieces.extend([whole.slice(9..20_000), whole.slice(20_000..)]);
    let (_, status) = bare::call(&lab, "/raftserve.v1.KeyValue/Put", None, pieces).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    let get = bare::framed(&v1::GetKeyRequest {
        key: "k".to_owned(),
        stale: false,
    });
    let (answer, status) = bare::call(&lab, "/raftserve.v1.KeyValue/Get", None, vec![get]).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    let answer = v1::GetKeyResponse::decode(answer.slice(5..)).unwrap();
    assert_eq!(answer.entry.unwrap().value, put.value);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_keys_that_is_not_sent_whole_ends_when_its_caller_said() {
    let lab = Lab::start().await;
    let connection = bare::Connection::open(&lab).await;
    // The last one is answered by tonic.
    for method in ["Put", "Get", "Delete", "List"] {
        let path = format!("/raftserve.v1.KeyValue/{method}");
        let call = connection.call(&path, Some(("grpc-timeout", "50m")), stream::pending());
        // Without a word of its caller it may take 15 s.
        let ended = tokio::time::timeout(Duration::from_secs(10), call).await;
        let (_, status) = ended.expect("in time");
        assert_eq!(status.code(), Code::Cancelled, "{method}: {status:?}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_calls_of_keys_there_are_so_many_at_once_and_no_more() {
    let lab = Lab::start().await;
    const AT_ONCE: usize = 1_024;
    const EACH: usize = 64;
    let connections = (0..=AT_ONCE / EACH).map(|_| bare::Connection::open(&lab));
    let connections = futures_util::future::join_all(connections).await;
    let mut unfinished: FuturesUnordered<_> = connections
        .iter()
        .flat_map(|connection| std::iter::repeat_n(connection, EACH))
        .map(|connection| connection.call("/raftserve.v1.KeyValue/Put", None, stream::pending()))
        .collect();
    for _ in 0..EACH {
        let (_, status) = unfinished.next().await.unwrap();
        let reason = Reason::of(&status);
        assert_eq!(reason, Some(Reason::TooManyRequests), "{status:?}");
    }
    // The last one is answered by tonic.
    for method in ["Get", "List"] {
        let path = format!("/raftserve.v1.KeyValue/{method}");
        let (_, status) = bare::call(&lab, &path, None, vec![Bytes::new()]).await;
        let reason = Reason::of(&status);
        assert_eq!(
            reason,
            Some(Reason::TooManyRequests),
            "{method}: {status:?}"
        );
    }
    drop(unfinished);
    drop(connections);
    lab.stop().await;
}

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
