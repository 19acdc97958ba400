//! What is told of the cluster, with a quorum and without one, and what any gRPC tool relies on.

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use raftserve_node::admin::errors::Reason;
use raftserve_node::admin::v1;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::lab::{Lab, apply_request, tool};

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
