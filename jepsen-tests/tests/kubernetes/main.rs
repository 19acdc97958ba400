//! A release of the chart on a real cluster: installed, upgraded, scaled and broken as its operators would, under a
//! steady stream of requests. Runs only where `RAFTSERVE_TEST_KUBECONFIG` names a cluster; what breaks nodes or volumes,
//! only with `RAFTSERVE_TEST_DISRUPTIVE=1` besides. Run by `.ci/kubernetes`, which prepares a cluster if need be.
//! They share its nodes: what sends a load or kills a node has them to itself, the others run beside each other.
//!
//! [`stage`] has what every case needs, [`served`] a service of two pods behind the peers; a case is a file of its own.

mod abreast;
mod cut_off;
mod figures;
mod kills;
mod nodes;
mod permission;
mod replacing;
mod rollout;
mod scaling;
mod served;
mod stage;
