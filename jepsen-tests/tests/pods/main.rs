//! Replicas as pods of a real Kubernetes cluster, made by peers that run outside of it.
//!
//! Runs only where `RAFTSERVE_TEST_KUBECONFIG` names a cluster whose pods this host reaches and whose nodes have or can
//! pull `docker.io/library/python:3.11-slim`; each test has a namespace and peers of its own, so that they run
//! beside each other. Run by `.ci/kubernetes`.

mod away;
mod door;
mod endpoints;
mod faults;
mod orphans;
mod reasons;
mod stage;
mod updating;
