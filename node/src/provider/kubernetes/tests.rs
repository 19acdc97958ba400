//! What two leaders, one of them late, and strangers can do to each other's pods: nothing.

mod api;

use kube::runtime::watcher::Event;
use raftserve_model::spec::{Destination, FileMount, MountContent, MountedFile, Placement};
use raftserve_model::{ReplicaId, ServiceId, ServiceVersion};

use tokio::time::timeout;

use self::api::Api;
use super::*;

const OURS: ClusterId = ClusterId([0xaa; 16]);
const THEIRS: ClusterId = ClusterId([0xbb; 16]);
const THIRD: ClusterId = ClusterId([0xcc; 16]);

fn site(api: &Api, cluster: ClusterId) -> Site {
    Site {
        cluster,
        client: api.client(),
        namespace: "ns".to_owned(),
        default_image: "image:1".to_owned(),
        cache: Arc::default(),
        home: None,
    }
}

/// As [`site`], of a peer that is a pod and is told to have replicas in `namespace`.
fn at_home(api: &Api, namespace: &str) -> Site {
    let home = Home::with("rs".to_owned(), "rs-0.x:7001", api.client()).unwrap();
    Site {
        namespace: namespace.to_owned(),
        home: Some(Arc::new(home)),
        ..site(api, OURS)
    }
}

fn launch() -> ReplicaLaunch {
    ReplicaLaunch {
        replica: ReplicaKey {
            name: "web".parse().unwrap(),
            id: ReplicaId {
                service: ServiceId(7),
                number: 3,
            },
        },
        version: ServiceVersion(1),
        setup: None,
        run: "serve".to_owned(),
        envs: BTreeMap::new(),
        secrets: BTreeMap::new(),
        port: 8080,
        resources: BTreeMap::new(),
        placement: Placement::default(),
        file_mounts: Vec::new(),
        stop_grace: Duration::ZERO,
        lifeline: None,
    }
}

fn name() -> String {
    labels::pod_name(OURS, &launch().replica)
}

/// Somebody else's pod.
fn stranger(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "uid": "stranger", "resourceVersion": "1" },
        "spec": { "containers": [], "schedulingGates": [{ "name": labels::GATE }] },
    })
}

async fn held(site: &Site) -> Hold {
    match create::ensure(site, launch()).await.unwrap() {
        Launched::Held(hold) => hold,
        Launched::Started => panic!("it runs"),
    }
}

#[tokio::test]
async fn creating_twice_is_creating_once_whoever_asks() {
    let api = Api::default();
    let (one, other) = (site(&api, OURS), site(&api, OURS));
    let (first, second) = tokio::join!(held(&one), held(&other));
    assert_eq!((first.uid.clone(), api.count()), (second.uid, 1));
    create::admit(&one, first.clone()).await.unwrap();
    // The other leader, too late to hold it, sees that it was let go.
    let late = create::ensure(&other, launch()).await.unwrap();
    assert_eq!((late, api.count()), (Launched::Started, 1));
    create::admit(&other, first).await.unwrap();
}

#[tokio::test]
async fn a_pod_of_somebody_else_is_not_adopted() {
    let api = Api::default();
    api.replace(&name(), stranger(&name()));
    let refused = create::ensure(&site(&api, OURS), launch())
        .await
        .unwrap_err();
    assert!(matches!(refused, ProviderError::Create { .. }), "{refused}");
}

#[tokio::test]
async fn the_gate_of_another_pod_that_came_to_the_name_stays_closed() {
    let api = Api::default();
    let site = site(&api, OURS);
    let hold = held(&site).await;
    api.replace(&name(), stranger(&name()));
    let refused = create::admit(&site, hold).await.unwrap_err();
    assert!(matches!(refused, ProviderError::Tombstoned(_)), "{refused}");
    assert_eq!(api.pod(&name()), Some(stranger(&name())));
}

#[tokio::test(start_paused = true)]
async fn another_pod_that_came_to_the_name_meanwhile_is_not_deleted() {
    let api = Api::default();
    let site = site(&api, OURS);
    held(&site).await;
    // Between the look and the deletion.
    api.meddle(|method, objects| {
        if *method == http::Method::DELETE {
            objects.insert(format!("pods/{}", name()), stranger(&name()));
        }
    });
    let replica = launch().replica;
    stop::stop(&site, &replica, Duration::ZERO).await.unwrap();
    assert_eq!(api.pod(&name()), Some(stranger(&name())));
}

#[tokio::test(start_paused = true)]
async fn what_was_stopped_is_gone_and_stopping_again_changes_nothing() {
    let api = Api::default();
    let site = site(&api, OURS);
    let hold = held(&site).await;
    let replica = launch().replica;
    for _ in 0..2 {
        stop::stop(&site, &replica, Duration::ZERO).await.unwrap();
        assert_eq!(api.count(), 0);
    }
    let late = create::admit(&site, hold).await.unwrap_err();
    assert!(matches!(late, ProviderError::Tombstoned(_)), "{late}");
}

#[tokio::test]
async fn that_pods_may_not_be_made_is_told_with_the_permission_that_lacks() {
    let api = Api::default();
    api.forbid(&http::Method::POST);
    let refused = create::ensure(&site(&api, OURS), launch())
        .await
        .unwrap_err();
    // It is tried again until they may.
    let ProviderError::Unavailable { reason, .. } = &refused else {
        panic!("{refused}");
    };
    assert!(
        reason.contains("grant this peer's service account"),
        "{reason}"
    );
}

#[tokio::test]
async fn what_is_taken_over_runs_on_and_its_former_cluster_is_told() {
    let api = Api::default();
    let (ours, theirs) = (site(&api, OURS), site(&api, THEIRS));
    let hold = held(&ours).await;
    create::admit(&ours, hold).await.unwrap();
    let watched = ours.cache.pod(&name()).unwrap();
    for _ in 0..2 {
        theirs.take_over(OURS).await.unwrap();
    }
    let pod = api.pod(&name()).unwrap();
    assert_eq!(
        pod["metadata"]["labels"][labels::CLUSTER],
        THEIRS.to_string()
    );
    assert_eq!(pod["metadata"]["uid"], "uid-1");
    let told = ProviderError::TakenOver {
        cluster: OURS,
        by: THEIRS,
    };
    // At the start of a reign, and when the watch loses sight of it.
    let refused = ours.refresh(true).await.unwrap_err();
    assert_eq!(refused.to_string(), told.to_string());
    assert_eq!(ours.taken(&watched).await.unwrap(), Some(THEIRS));
    theirs.refresh(true).await.unwrap();

    // A third cluster gets it from those who have it, and from nobody else.
    let third = site(&api, THIRD);
    let refused = third.take_over(OURS).await.unwrap_err();
    assert_eq!(refused.to_string(), told.to_string());
    third.take_over(THEIRS).await.unwrap();
    for former in [&ours, &theirs] {
        let refused = former.refresh(true).await.unwrap_err();
        assert!(matches!(refused, ProviderError::TakenOver { by, .. } if by == THIRD));
    }
}

#[tokio::test]
async fn a_pod_whose_status_changes_at_the_same_time_is_taken_over_all_the_same() {
    let api = Api::default();
    let (ours, theirs) = (site(&api, OURS), site(&api, THEIRS));
    held(&ours).await;
    api.conflict(2);
    theirs.take_over(OURS).await.unwrap();
    let pod = api.pod(&name()).unwrap();
    let owner = &pod["metadata"]["labels"][labels::CLUSTER];
    assert_eq!(*owner, THEIRS.to_string());
    // However often it is changed, it is never taken for gone.
    api.conflict(usize::MAX);
    let third = site(&api, THIRD);
    let refused = third.take_over(THEIRS).await.unwrap_err();
    let later = matches!(refused, ProviderError::Unavailable { .. });
    assert!(later, "{refused}");
}

#[tokio::test]
async fn a_gate_that_could_not_be_opened_for_another_change_is_opened_later() {
    let api = Api::default();
    let site = site(&api, OURS);
    let hold = held(&site).await;
    api.conflict(1);
    let refused = create::admit(&site, hold.clone()).await.unwrap_err();
    let later = matches!(refused, ProviderError::Unavailable { .. });
    assert!(later, "{refused}");
    create::admit(&site, hold).await.unwrap();
}

/// A cluster that has seen its pod, which another one takes over.
async fn taken_over(api: &Api) -> (Site, Site) {
    let (ours, theirs) = (site(api, OURS), site(api, THEIRS));
    watch::note(&ours, Event::Init).await;
    held(&ours).await;
    watch::note(&ours, Event::InitDone).await;
    assert_eq!(ours.cache.observe().unwrap().len(), 1);
    theirs.take_over(OURS).await.unwrap();
    (ours, theirs)
}

fn is_taken(site: &Site) -> bool {
    let seen = site.cache.observe();
    matches!(seen, Err(ProviderError::TakenOver { by: THEIRS, .. }))
}

#[tokio::test]
async fn a_former_cluster_that_looks_again_in_its_reign_sees_nothing_to_replace() {
    let (ours, _theirs) = taken_over(&Api::default()).await;
    assert!(!is_taken(&ours), "nobody has told it");
    for _ in 0..2 {
        ours.refresh(true).await.unwrap_err();
        assert!(is_taken(&ours));
        // Whoever waits for changes is not woken by the same again.
        assert!(!ours.cache.taken_over(OURS, THEIRS));
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_without_a_pod_that_nobody_told_to_go_is_believed_only_if_it_is_not_another_clusters()
 {
    let api = Api::default();
    let (ours, _theirs) = taken_over(&api).await;
    // The watch was broken off, and its next list is without the pod.
    watch::note(&ours, Event::Init).await;
    api.forbid_kind("pods");
    let ends = timeout(Duration::from_secs(60), watch::note(&ours, Event::InitDone));
    assert!(ends.await.is_err(), "it cannot be told");
    assert_eq!(ours.cache.observe().unwrap().len(), 1);
    assert!(ours.cache.trouble().is_some());
    api.allow_kind("pods");
    watch::note(&ours, Event::InitDone).await;
    assert!(is_taken(&ours));
}

#[tokio::test]
async fn a_list_without_a_pod_that_is_gone_is_believed() {
    let api = Api::default();
    let ours = site(&api, OURS);
    held(&ours).await;
    api.remove(&name());
    watch::note(&ours, Event::Init).await;
    watch::note(&ours, Event::InitDone).await;
    assert!(ours.cache.observe().unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_that_ended_is_not_mistaken_for_one_taken_over() {
    let api = Api::default();
    let site = site(&api, OURS);
    held(&site).await;
    let pod = site.cache.pod(&name()).unwrap();
    // Deleted by force, it had no time to say that it would go.
    api.replace(&name(), stranger(&name()));
    assert_eq!(site.taken(&pod).await.unwrap(), None);
}

#[tokio::test]
async fn replicas_are_looked_for_where_they_were_made_and_moved_only_when_there_are_none() {
    let api = Api::default();
    let (before, after) = (at_home(&api, "ns"), at_home(&api, "models"));
    // The first that sees to them says where.
    before.refresh(true).await.unwrap();
    assert_eq!(api.record("rs-cluster")["replicas"], "ns");

    let refused = after.refresh(true).await.unwrap_err().to_string();
    for said in [
        "in namespace ns",
        "in models",
        "back to ns",
        "configmap rs-cluster",
    ] {
        assert!(refused.contains(said), "{refused}");
    }
    assert!(after.cache.trouble().unwrap().contains("none is touched"));
    let unseen = after.cache.observe().unwrap_err().to_string();
    assert!(unseen.contains("namespace ns"), "{unseen}");
    assert_eq!(api.record("rs-cluster")["replicas"], "ns");
    // The peers that are told of the right one go on.
    before.refresh(true).await.unwrap();

    // With all services down there is nothing to lose.
    after.refresh(false).await.unwrap();
    assert_eq!(after.cache.trouble(), None);
    assert_eq!(api.record("rs-cluster")["replicas"], "models");
    assert!(before.refresh(true).await.is_err());
    assert_eq!(api.record("rs-cluster")["cluster"], OURS.to_string());
}

#[tokio::test]
async fn of_two_peers_with_different_namespaces_one_has_its_way() {
    let api = Api::default();
    let (one, other) = (at_home(&api, "a"), at_home(&api, "b"));
    one.refresh(false).await.unwrap();
    // Between the look and the word, the other was faster.
    api.meddle(|method, objects| {
        if *method == http::Method::PATCH {
            let record = objects.get_mut("configmaps/rs-cluster").unwrap();
            record["data"]["replicas"] = "c".into();
            record["metadata"]["resourceVersion"] = "later".into();
        }
    });
    let refused = other.refresh(false).await.unwrap_err();
    assert!(
        matches!(refused, ProviderError::Unavailable { .. }),
        "{refused}"
    );
    assert_eq!(api.record("rs-cluster")["replicas"], "c");
}

#[tokio::test]
async fn without_the_permission_to_read_the_record_peers_do_without() {
    let api = Api::default();
    api.forbid_kind("configmaps");
    at_home(&api, "ns").refresh(true).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_another_came_in_place_of_is_not_taken_over() {
    let api = Api::default();
    let (ours, theirs) = (site(&api, OURS), site(&api, THEIRS));
    held(&ours).await;
    // Between the list and the change.
    api.meddle(|method, objects| {
        if *method == http::Method::PATCH {
            objects.insert(format!("pods/{}", name()), stranger(&name()));
        }
    });
    theirs.take_over(OURS).await.unwrap();
    assert_eq!(api.pod(&name()), Some(stranger(&name())));
}

#[tokio::test]
async fn secrets_are_made_once_for_each_pod_and_never_read() {
    let api = Api::default();
    let (one, other) = (site(&api, OURS), site(&api, OURS));
    let mut launch = launch();
    launch.secrets.insert("A".to_owned(), "hush".to_owned());
    api.forbid_reading("secrets");
    let (first, second) = tokio::join!(
        create::ensure(&one, launch.clone()),
        create::ensure(&other, launch.clone())
    );
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(api.count(), 2, "a pod and a Secret");
    let pod = api.pod(&name()).unwrap();
    let secret = &pod["metadata"]["annotations"][labels::SECRET];
    let container = &pod["spec"]["containers"][0];
    assert_eq!(&container["envFrom"][0]["secretRef"]["name"], secret);
    let made = api.object("secrets", secret.as_str().unwrap());
    assert_eq!(
        made["metadata"]["ownerReferences"][0]["uid"],
        pod["metadata"]["uid"]
    );

    // What was left by a pod of the same name, until the API server sees to it, is in nobody's way.
    api.remove(&name());
    create::ensure(&one, launch).await.unwrap();
    let anew = api.pod(&name()).unwrap();
    assert_ne!(&anew["metadata"]["annotations"][labels::SECRET], secret);
    assert_eq!(api.count(), 3);
}

fn with_a_file() -> ReplicaLaunch {
    let mut launch = launch();
    launch.file_mounts.push(FileMount {
        destination: Destination::Absolute("/etc/x".to_owned()),
        content: MountContent::File(MountedFile {
            mode: 0o644,
            bytes: b"hush".as_slice().into(),
        }),
    });
    launch
}

#[tokio::test]
async fn files_are_in_a_secret_of_their_own_that_is_made_again_where_a_leader_died_before_it() {
    let api = Api::default();
    let site = site(&api, OURS);
    let launch = with_a_file();
    api.forbid_kind("secrets");
    let refused = create::ensure(&site, launch.clone()).await.unwrap_err();
    assert!(
        matches!(refused, ProviderError::Unavailable { .. }),
        "{refused}"
    );
    for secret in ["hush", "aHVzaA"] {
        assert!(!refused.to_string().contains(secret), "{refused}");
    }
    assert_eq!(api.count(), 1, "the pod, which waits behind its gate");
    api.allow_kind("secrets");
    create::ensure(&site, launch.clone()).await.unwrap();
    create::ensure(&site, launch).await.unwrap();
    assert_eq!(api.count(), 2, "a pod and one Secret");
    let pod = api.pod(&name()).unwrap();
    let secret = &pod["spec"]["volumes"][1]["secret"]["secretName"];
    let made = api.object("secrets", secret.as_str().unwrap());
    assert_eq!(made["data"]["file-0"], "aHVzaA==");
    assert_eq!(
        made["metadata"]["ownerReferences"][0]["uid"],
        pod["metadata"]["uid"]
    );
}

#[tokio::test]
async fn a_conflict_that_made_no_secret_keeps_the_gate_closed_until_there_is_one() {
    let api = Api::default();
    let site = site(&api, OURS);
    let mut with_a_secret = launch();
    with_a_secret.secrets.insert("A".to_owned(), "x".to_owned());
    for launch in [with_a_secret, with_a_file()] {
        api.contend("secrets", true);
        let refused = create::ensure(&site, launch.clone()).await.unwrap_err();
        assert!(
            matches!(refused, ProviderError::Unavailable { .. }),
            "{refused}"
        );
        assert_eq!(api.count(), 1, "the pod, which waits behind its gate");
        api.contend("secrets", false);
        create::ensure(&site, launch.clone()).await.unwrap();
        let again = create::ensure(&site, launch).await.unwrap();
        assert!(matches!(again, Launched::Held(_)));
        assert_eq!(api.count(), 2, "a pod and one Secret");
        api.clear();
    }
}
