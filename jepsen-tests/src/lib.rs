//! Black-box tests of raftserve: real peers, real replicas, real faults, and checkers over what was
//! seen.
//!
//! Nothing here links to another crate of this repository. Peers are processes of the built binary,
//! driven by its command line, by the published admin API and by HTTP, and looked at through `/proc`.
//! A run writes down what it asked, when, of whom, and how that ended; a checker in [`check`] is a pure
//! function over such a history, with tests of its own that show it finding what it is there to find.
//!
//! | module | knows |
//! | --- | --- |
//! | [`binary`] | which program to test, and which others are needed |
//! | [`ports`] | ports that no other run uses |
//! | [`processes`] | what runs on this host, and to whom it belongs |
//! | [`peer`], [`cluster`] | starting, killing, pausing and restarting peers |
//! | [`admin`], [`cli`] | the admin API, and the command line |
//! | [`access`] | certificates and credentials |
//! | [`http`], [`load`] | requests, and many of them |
//! | [`source_ports`] | ports for the client's end, each at rest after its use |
//! | [`register`] | reads and writes of keys, and many of them |
//! | [`faulty_disk`] | a disk that fails on command |
//! | [`folders`] | copying them |
//! | [`program`] | a replica program that counts what it sees |
//! | [`history`], [`check`] | what happened, and whether it was allowed |
//! | [`etcd`], [`usage`] | what we are compared with, and what processes use |
//! | [`kube`], [`steady`] | a Kubernetes cluster, and a stream of requests that does not wait for answers |
//! | [`wait`] | waiting for a condition, never for a time |

pub mod access;
pub mod admin;
pub mod binary;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod etcd;
pub mod faulty_disk;
pub mod folders;
pub mod history;
pub mod http;
pub mod kube;
pub mod load;
pub mod peer;
pub mod ports;
pub mod processes;
pub mod program;
pub mod register;
pub mod source_ports;
pub mod steady;
pub mod usage;
pub mod wait;
