//! The whole of raftserve as one program after another would see it: three peers, a service, load, and
//! the loss of anything.
//!
//! Each test has a cluster of its own. At most two run at a time, and those that need the machine for
//! themselves run alone, so that a slow machine makes the run longer and not the outcome another.

mod access;
mod bad_input;
mod drain;
mod durability;
mod files;
mod idle;
mod kubectl;
mod leader_loss;
mod policies;
mod quorum;
mod recovery;
mod replicas;
mod restart;
mod restore;
mod rollout;
mod saturation;
mod sessions;
mod stage;
mod steps;
mod traffic;
mod upstreams;
