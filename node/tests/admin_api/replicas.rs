//! Replicas, their logs and their sessions.

use std::time::Duration;

use raftserve_model::{Generation, Incarnation, ReplicaId, ServiceId, ServiceVersion, SessionKey};
use raftserve_node::admin::errors::Reason;
use raftserve_node::admin::v1;
use raftserve_node::admin::v1::get_session_request::Session as Which;
use raftserve_node::peer::Remarks;
use raftserve_store::Outcome;
use raftserve_store::command::{Action, Change};

use crate::lab::{Lab, YAML, apply_request};

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
pub(crate) async fn ready_replica(lab: &Lab, service: ServiceId) -> ReplicaId {
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
