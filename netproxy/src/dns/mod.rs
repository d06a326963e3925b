//! Cluster DNS: `names` says what a name means, `wire` makes packets of that, `server` listens and asks the host's resolvers for
//! everything that is not the cluster's; `resolver` is what a pod without a resolver of its own has instead.

mod client;
pub(crate) mod names;
pub(crate) mod resolver;
pub(crate) mod server;
mod wire;
