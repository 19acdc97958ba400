//! Static services: records follow addresses.

use raftserve_model::spec::{KubernetesService, StaticUpstreams};

use super::*;

fn static_spec(upstreams: StaticUpstreams) -> ServiceSpec {
    ServiceSpec {
        provider: Provider::Static(upstreams),
        ..spec("", 1)
    }
}

fn a_service(name: &str) -> ServiceSpec {
    static_spec(StaticUpstreams::KubernetesService(KubernetesService {
        name: name.into(),
        namespace: None,
        port: None,
    }))
}

fn addresses() -> ServiceSpec {
    let all = BTreeSet::from(["a:1".to_owned()]);
    static_spec(StaticUpstreams::Addresses(all))
}

impl World {
    fn tell(&mut self, addresses: &[&str]) {
        let service = self.state.services().next().expect("a service").id;
        let told = addresses.iter().map(|it| (*it).to_owned()).collect();
        self.observed.upstreams.insert(service, told);
    }

    /// The addresses of replicas in one phase, and those on record in all.
    fn serving(&self) -> (Vec<String>, usize) {
        let ready = self.state.replicas().filter(|it| it.phase == Phase::Ready);
        let addresses = ready.filter_map(|it| it.address.clone()).collect();
        (addresses, self.state.replicas().count())
    }
}

#[test]
fn nothing_is_done_before_addresses_are_told() {
    let mut world = World::new();
    world.put_spec(a_service("s"));
    let plan = world.round();
    assert_eq!((plan.intents, plan.effects.len()), (vec![], 0));
}

#[test]
fn records_follow_the_endpoints_of_a_service() {
    let mut world = World::new();
    world.put_spec(a_service("s"));
    world.tell(&["10.0.0.1:80", "10.0.0.2:80"]);
    world.settle();
    let both = vec!["10.0.0.1:80".to_owned(), "10.0.0.2:80".to_owned()];
    assert_eq!(world.serving(), (both, 2));
    world.tell(&["10.0.0.2:80", "10.0.0.3:80"]);
    world.round();
    // The one that went is out of rotation with the same entry, and drains.
    assert_eq!(world.serving().0, ["10.0.0.2:80"]);
    world.round();
    assert_eq!(
        world.serving(),
        (vec!["10.0.0.2:80".into(), "10.0.0.3:80".into()], 3)
    );
    world.pass(31);
    world.settle();
    assert_eq!(world.serving().1, 2);
    world.tell(&[]);
    world.round();
    assert_eq!(world.serving().0, [""; 0]);
    assert!(
        world.observed.exists.is_empty(),
        "nobody makes or stops them"
    );
}

#[test]
fn a_fixed_address_serves_by_its_probes_and_is_never_replaced() {
    let mut world = World::new();
    world.put_spec(addresses());
    world.tell(&["a:1"]);
    world.settle();
    assert_eq!(world.replicas(), [(1, ReplicaStatus::Starting)]);
    world.pass(10_000);
    world.probe(1, Err("refused".into()), 10_000);
    world.settle();
    assert_eq!(world.replicas(), [(1, ReplicaStatus::Starting)]);
    world.probe(1, Ok(()), 0);
    world.settle();
    assert_eq!(world.replicas(), [(1, ReplicaStatus::Ready)]);
    world.probe(1, Err("refused".into()), 10_000);
    world.settle();
    assert_eq!(world.replicas(), [(1, ReplicaStatus::NotReady)]);
}

#[test]
fn an_update_keeps_the_old_endpoints_until_there_are_new_ones() {
    let mut world = World::new();
    world.put_spec(a_service("old"));
    world.tell(&["10.0.0.1:80"]);
    world.settle();
    world.put_spec(addresses());
    world.tell(&["a:1"]);
    world.round();
    world.round();
    assert_eq!(world.serving().0, ["10.0.0.1:80"]);
    world.probe(2, Ok(()), 0);
    world.round();
    world.round();
    assert_eq!(world.serving().0, ["a:1"]);
}

#[test]
fn a_static_service_taken_down_is_forgotten() {
    let mut world = World::new();
    world.put_spec(a_service("s"));
    world.tell(&["10.0.0.1:80"]);
    world.settle();
    world.request(Request::DeleteService {
        name: "svc".parse().unwrap(),
        purge: false,
    });
    world.pass(31);
    world.settle();
    assert_eq!(world.state.services().count(), 0);
}
