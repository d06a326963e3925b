//! Cluster DNS: `names` says what a name means, `wire` makes packets of that, `server` listens; `forward` asks the host's resolvers
//! for everything that is not the cluster's and remembers it (`cache`); `resolver` is what a pod without a resolver of its own has
//! instead.

mod cache;
mod client;
pub(crate) mod forward;
pub(crate) mod names;
pub(crate) mod resolver;
pub(crate) mod server;
mod wire;
