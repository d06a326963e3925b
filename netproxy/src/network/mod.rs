//! The kernel's side of the pod network: may we change it, the local routes that make pod and Service addresses this host's own
//! ([`claim`]), the device through which the pods of other nodes are reached ([`Tun`]), and the firewall's rules for pods behind
//! Docker's bridge ([`Forwarding`]) and inside their own networks ([`Fence`]). Where we may not, all addresses are in 127.0.0.0/8
//! ([`Loopback`]), and [`Stack`] is the other side of the device. Where packets go once they are out of either is not known here.

mod cidr;
mod fence;
mod forwarding;
mod local;
mod loopback;
mod privilege;
mod stack;
mod tun;

pub use cidr::{Cidr, CidrError};
pub use fence::{Fence, FenceError};
pub use forwarding::{Forwarding, ForwardingError};
pub use local::{claim, host_addresses, release};
pub use loopback::{Loopback, LoopbackError, free_pair, hold};
pub use privilege::{may_bind, may_configure, may_enter_namespaces};
pub use stack::{Outlet, Stack, StackConfig};
pub use tun::{PacketReader, PacketWriter, Tun, TunConfig, TunError};

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] std::io::Error),
    /// The kernel did not list them.
    #[error("cannot list this host's addresses")]
    List(#[source] rtnetlink::Error),
    /// The kernel refused the route.
    #[error("cannot add local route {cidr}")]
    Route {
        /// The range.
        cidr: Cidr,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
}
