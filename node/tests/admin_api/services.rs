//! Services: applied, listed, watched, deleted.

use raftserve_node::admin::errors::{Reason, violations};
use raftserve_node::admin::v1::{self, IfExists};
use tonic::Code;

use crate::lab::{Lab, YAML, apply_request};

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
    assert_eq!(
        same.warnings[1],
        "nothing differs from version 3, whose replicas are kept"
    );
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
