//! What the addresses of pods and Services stand on: routes of the kernel where this process may set them; else 127.0.0.0/8, with a
//! stack of our own for what goes to other nodes.
//!
//! Deliberately absent: the way to other nodes (`mesh`), and addresses of single pods.

use crate::addresses;
use crate::arrival::Place;
use crate::config::AgentConfig;
use anyhow::Context;
use netproxy::network::{self, Cidr, Loopback, Stack, StackConfig};
use std::io;
use std::net::IpAddr;
use sync::mesh::{DEVICE_MTU, HEAD_BYTES};
use tokio::net::TcpStream;

/// What the node's addresses stand on.
#[derive(Clone, Debug, Default)]
pub struct Ground {
    /// What the kernel takes for this machine's own.
    claimed: Vec<Cidr>,
    stack: Option<Stack>,
}

impl Ground {
    /// Takes what the node's place in its cluster needs of this machine.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn prepare(config: &AgentConfig, place: &Place) -> anyhow::Result<Self> {
        let cluster = &place.cluster;
        let parse = |text: &str| text.parse::<Cidr>().with_context(|| format!("the cluster's network {text}"));
        let (pods, services) = (parse(&cluster.cluster_cidr)?, parse(&cluster.service_cidr)?);
        if !cluster.loopback && network::may_configure() {
            let [user_space, _] = addresses::halves(place.pod_cidr);
            let claimed = vec![user_space, services];
            network::claim(&claimed).await.context("claim the cluster's networks")?;
            return Ok(Self { claimed, stack: None });
        }
        // the networks of such a cluster are its master's machine's
        let is_at_home = cluster.loopback && (config.control_plane || config.mesh.is_none());
        let loopback = if is_at_home { Loopback::same(pods, services) } else { Loopback::claim(pods, services)? };
        let stack = Stack::new(StackConfig {
            cluster: pods,
            own: place.pod_cidr,
            loopback,
            mtu: DEVICE_MTU,
            headroom: HEAD_BYTES,
            data: config.data.clone(),
        });
        Ok(Self { claimed: Vec::new(), stack: Some(stack) })
    }

    /// The stack, where the kernel's is not used.
    pub fn stack(&self) -> Option<&Stack> {
        self.stack.as_ref()
    }

    /// The kernel's network, or one in user space: as the Node says it.
    pub fn name(&self) -> &'static str {
        if self.stack.is_some() { "user" } else { "kernel" }
    }

    /// A connection of the node's own, as of a probe, to a pod or to anybody else.
    ///
    /// # Errors
    /// As connecting a socket.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        match (&self.stack, host.parse::<IpAddr>()) {
            (Some(stack), Ok(address)) => stack.connect((address, port).into()).await,
            _ => TcpStream::connect((host, port)).await,
        }
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub async fn release(&self) -> anyhow::Result<()> {
        network::release(&self.claimed).await.context("release the cluster's networks")
    }
}
