//! The walk-throughs of `examples/kubernetes`, on a real cluster, with exactly the files that they tell people to use. Run
//! only where `RAFTSERVE_TEST_KUBECONFIG` names a cluster whose NodePorts this host reaches; each in a namespace of its own.
//! Run by `.ci/kubernetes`, which prepares a cluster if need be.

mod abreast;
mod files;
mod five_replicas;
mod load_balancer;
mod stage;
mod upgrade;
