//! Cluster DNS: `names` says what a name means, `wire` makes packets of that, `server` listens and asks the host's resolvers for
//! everything that is not the cluster's.

pub(crate) mod names;
pub(crate) mod server;
mod wire;
