//! The kernel's side of the pod network: may we change it, the local routes that make pod and Service addresses this host's own
//! ([`claim`]), the device through which the pods of other nodes are reached ([`Tun`]), and the firewall's rules for pods behind
//! Docker's bridge ([`Forwarding`]) and inside their own networks ([`Fence`]). Loopback mode needs nothing of this. Where packets go once they are out of the device is
//! not known here.

mod cidr;
mod fence;
mod forwarding;
mod local;
mod privilege;
mod tun;

pub use cidr::{Cidr, CidrError};
pub use fence::{Fence, FenceError};
pub use forwarding::{Forwarding, ForwardingError};
pub use local::{claim, host_addresses, release};
pub use privilege::{may_bind, may_configure, may_enter_namespaces};
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
