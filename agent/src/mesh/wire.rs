//! The device and the mesh, joined: what the kernel routes to pods elsewhere goes out, what comes for pods here goes in. Without
//! the kernel's help, the stack in this process is the device.
//!
//! Deliberately absent: who the others are.

use super::icmp::host_unreachable;
use super::network;
use anyhow::{Context, bail};
use bytes::Bytes;
use futures::future::BoxFuture;
use netproxy::network::{Cidr, PacketReader, PacketWriter, Stack, Tun, TunConfig};
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use std::sync::Arc;
use sync::mesh::{self, DEVICE_MTU, Deliver, HEAD_BYTES, Mesh};
use sync::{Bulk, Identity};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Where packets of pods here come from and go to.
#[derive(Clone, Debug)]
pub enum Device {
    /// A device of the kernel's, of that name.
    Kernel(String),
    /// This process.
    User(Stack),
}

/// What a wire is made of.
pub struct WireConfig {
    /// The node's name.
    pub node: String,
    /// Where packets of pods here come from and go to.
    pub device: Device,
    /// UDP port of the mesh; 0 takes a free one.
    pub port: u16,
    /// The network of all pods.
    pub cluster: Cidr,
    /// This node's part.
    pub own: Cidr,
    /// The node's certificate.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// Who signs nodes' certificates.
    pub node_ca: CertificateDer<'static>,
    /// The way over the master.
    pub bulk: Bulk,
}

/// What has to be ended with the wire.
enum End {
    Reader(JoinHandle<()>),
    Stack(Stack),
}

/// The way to pods of other nodes, open.
pub struct Wire {
    /// To be told of the others.
    pub mesh: Mesh,
    /// UDP port of the mesh.
    pub port: u16,
    /// The network of all pods.
    pub cluster: Cidr,
    /// Told when the device is no more: somebody has removed it.
    pub gone: CancellationToken,
    end: End,
    stop: CancellationToken,
}

impl Wire {
    /// Makes the device and starts the mesh, on this runtime.
    ///
    /// # Errors
    /// When either cannot be had; nothing is left behind.
    pub async fn open(config: WireConfig) -> anyhow::Result<Self> {
        let IpAddr::V4(address) = config.own.address else { bail!("the pod network {} is not IPv4", config.own) };
        let stop = CancellationToken::new();
        let mesh_config = mesh::Config {
            node: config.node,
            networks: vec![network(config.own)?],
            port: config.port,
            identity: config.identity,
            node_ca: config.node_ca,
            bulk: config.bulk,
        };
        let gone = CancellationToken::new();
        let (mesh, end) = match config.device {
            Device::Kernel(name) => {
                let tun = Tun::open(&TunConfig { name, address, network: config.cluster, mtu: DEVICE_MTU }).await?;
                let mesh = Mesh::start(mesh_config, ToKernel(Mutex::new(tun.writer())), stop.clone())?;
                let (packets, answers) = (tun.reader(HEAD_BYTES), tun.writer());
                let (outward, stopped, tell) = (mesh.clone(), stop.clone(), gone.clone().drop_guard());
                let reader = tokio::spawn(async move {
                    pump(packets, answers, outward, stopped).await;
                    drop(tell);
                });
                (mesh, End::Reader(reader))
            }
            Device::User(stack) => {
                let mesh = Mesh::start(mesh_config, ToStack(stack.clone()), stop.clone())?;
                let outward = mesh.clone();
                stack.attach(Some(Box::new(move |packet| outward.send(packet).is_none())));
                (mesh, End::Stack(stack))
            }
        };
        let port = mesh.port().context("the mesh's socket")?;
        Ok(Self { mesh, port, cluster: config.cluster, gone, end, stop })
    }

    /// Ends connections and the device.
    pub async fn close(self) {
        self.stop.cancel();
        self.mesh.closed().await;
        match self.end {
            // it ends with the token, or has ended
            End::Reader(reader) => drop(reader.await),
            End::Stack(stack) => stack.attach(None),
        }
    }
}

/// From the kernel to the mesh, until the device or the node ends. What is for a node out of reach is answered so.
async fn pump(mut reader: PacketReader, mut answers: PacketWriter, mesh: Mesh, stop: CancellationToken) {
    let (mut packets, mut lost) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = reader.recv(&mut packets) => if let Err(error) = received {
                return tracing::error!(%error, "the device of the pod network is gone");
            },
        }
        for packet in packets.drain(..) {
            lost.extend(mesh.send(packet).and_then(|packet| host_unreachable(&packet)));
        }
        if !lost.is_empty() {
            if let Err(error) = answers.send(&lost).await {
                tracing::debug!(%error, "the kernel refused an answer");
            }
            lost.clear();
        }
    }
}

/// From the mesh to the stack of this process.
struct ToStack(Stack);

impl Deliver for ToStack {
    fn deliver<'a>(&'a self, packets: &'a [Bytes]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            for packet in packets {
                self.0.deliver(packet).await;
            }
        })
    }
}

/// From the mesh to the kernel.
struct ToKernel(Mutex<PacketWriter>);

impl Deliver for ToKernel {
    fn deliver<'a>(&'a self, packets: &'a [Bytes]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.0.lock().await.send(packets).await {
                tracing::debug!(%error, "the kernel refused a packet");
            }
        })
    }
}
