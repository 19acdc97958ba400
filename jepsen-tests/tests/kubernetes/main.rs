//! A release of the chart on a real cluster: installed, upgraded, scaled and broken as its operators would, under a
//! steady stream of requests. Runs only where `RAFTSERVE_TEST_KUBECONFIG` names a cluster; what breaks nodes or volumes,
//! only with `RAFTSERVE_TEST_DISRUPTIVE=1` besides. The tests share the machine and go one after the other:
//! `cargo test -p jepsen-tests --test kubernetes -- --test-threads=1`, or `.ci/kubernetes`.
//!
//! [`stage`] has what every case needs, [`served`] a service of two pods behind the peers; a case is a file of its own.

mod founding;
mod kills;
mod nodes;
mod rollout;
mod scaling;
mod served;
mod stage;
