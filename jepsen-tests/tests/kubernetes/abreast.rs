//! Cases without a load, which wait for most of their time: several at once. Their names come first, so that no
//! case of the others waits between them for the cluster to be its own.

mod elsewhere;
mod files;
mod founding;
mod held;
mod recovering;
mod renders;
mod stopping;
