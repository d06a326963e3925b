//! The device through which this host reaches the pods of other nodes: whatever the kernel routes into it comes out here as IPv4
//! packets, and what is written here arrives at the host as if from a wire.
//!
//! The kernel is asked to hand over TCP in large pieces (TSO, USO), which are cut into packets here, and takes them back joined:
//! one system call for dozens of packets. The device goes with the process, and its address and routes with it. Deliberately
//! absent: where packets go.

use super::Cidr;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tun_rs::{AsyncDevice, DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN};

/// The largest piece that the kernel hands over, bytes.
const PIECE_BYTES_MAX: usize = VIRTIO_NET_HDR_LEN + 65_535;
/// Bytes of packets that share an allocation.
const SLAB_BYTES: usize = 64 * 1024;
/// Packets joined in one call.
const WRITES_MAX: usize = 64;
/// A buffer that has grown beyond this is given back after use, bytes.
const KEPT_BYTES_MAX: usize = 4 * 1024;

/// How to make a [`Tun`].
#[derive(Clone, Debug)]
pub struct TunConfig {
    /// Name of the interface, 15 bytes at most.
    pub name: String,
    /// The host's own address on it: the source of what the host itself sends to pods.
    pub address: Ipv4Addr,
    /// What is reached through it; more specific routes stay as they are.
    pub network: Cidr,
    /// Largest packet, bytes.
    pub mtu: u16,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel made none.
    #[error("cannot make network device {name}")]
    Make {
        /// Its name.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// One of the device's settings was refused.
    #[error("cannot set {what} of network device {name}")]
    Set {
        /// Its name.
        name: String,
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// The network is not IPv4.
    #[error("the pod network {0} is not IPv4")]
    Family(Cidr),
}

/// A network device of this process. Gone when the last clone, reader and writer are.
#[derive(Clone)]
pub struct Tun {
    device: Arc<AsyncDevice>,
    mtu: usize,
}

impl Tun {
    /// Makes the device, gives it its address and route, and starts it. Needs CAP_NET_ADMIN and a tokio runtime.
    ///
    /// # Errors
    /// [`TunError`]: nothing is left behind.
    pub async fn open(config: &TunConfig) -> Result<Self, TunError> {
        let IpAddr::V4(network) = config.network.address else { return Err(TunError::Family(config.network)) };
        let make = |source| TunError::Make { name: config.name.clone(), source };
        let device = DeviceBuilder::new()
            .name(config.name.clone())
            .with(|device| {
                device.offload(true);
            })
            .enable(false)
            .build_async()
            .map_err(make)?;
        // nothing of ours speaks IPv6 there, and the kernel would greet its neighbours
        let switch = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", config.name);
        if let Err(error) = std::fs::write(switch, "1") {
            tracing::debug!(%error, "a kernel without IPv6");
        }
        let (connection, handle, _) = rtnetlink::new_connection().map_err(TunError::Open)?;
        let connection = tokio::spawn(connection);
        let done = set_up(&handle, config, network).await;
        connection.abort();
        done.map_err(|(what, source)| TunError::Set { name: config.name.clone(), what, source })?;
        Ok(Self { device: Arc::new(device), mtu: config.mtu.into() })
    }

    /// A way to read. One at a time should: each takes packets from the others.
    pub fn reader(&self, headroom: usize) -> PacketReader {
        PacketReader {
            device: self.device.clone(),
            headroom,
            piece: vec![0; PIECE_BYTES_MAX],
            parts: vec![vec![0; self.mtu]; IDEAL_BATCH_SIZE],
            sizes: vec![0; IDEAL_BATCH_SIZE],
            slab: BytesMut::new(),
        }
    }

    /// A way to write. Any number may.
    pub fn writer(&self) -> PacketWriter {
        PacketWriter { device: self.device.clone(), table: GROTable::new(), buffers: Vec::new() }
    }
}

type Refused = (&'static str, rtnetlink::Error);

async fn set_up(handle: &Handle, config: &TunConfig, network: Ipv4Addr) -> Result<(), Refused> {
    let named = |what| move |source| (what, source);
    let found: Vec<_> = handle
        .link()
        .get()
        .match_name(config.name.clone())
        .execute()
        .try_collect()
        .await
        .map_err(named("the index"))?;
    let index = found.first().map(|link| link.header.index).unwrap_or_default();
    let link = LinkUnspec::new_with_index(index).mtu(config.mtu.into()).up().build();
    handle.link().set(link).execute().await.map_err(named("the MTU"))?;
    let address = handle.address().add(index, config.address.into(), 32);
    address.replace().execute().await.map_err(named("the address"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network, config.network.prefix)
        .output_interface(index)
        .pref_source(config.address)
        .scope(RouteScope::Link)
        .build();
    handle.route().add(route).replace().execute().await.map_err(named("the route"))
}

/// Packets from the kernel.
pub struct PacketReader {
    device: Arc<AsyncDevice>,
    headroom: usize,
    piece: Vec<u8>,
    parts: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    slab: BytesMut,
}

impl PacketReader {
    /// Waits for packets and appends them, each behind `headroom` bytes for the caller's use. What cannot be cut into packets
    /// is dropped.
    ///
    /// # Errors
    /// When the device is gone.
    pub async fn recv(&mut self, packets: &mut Vec<BytesMut>) -> io::Result<()> {
        let received = self.device.recv_multiple(&mut self.piece, &mut self.parts, &mut self.sizes, 0).await;
        let count = match received {
            Ok(count) => count,
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "a piece of the kernel's dropped");
                return Ok(());
            }
        };
        for (part, size) in self.parts.iter().zip(&self.sizes).take(count) {
            let bytes = self.headroom + size;
            if self.slab.capacity() < bytes {
                self.slab = BytesMut::with_capacity(SLAB_BYTES);
            }
            self.slab.resize(self.headroom, 0);
            self.slab.extend_from_slice(&part[..*size]);
            packets.push(self.slab.split_to(bytes));
        }
        Ok(())
    }
}

/// Packets to the kernel.
pub struct PacketWriter {
    device: Arc<AsyncDevice>,
    table: GROTable,
    buffers: Vec<BytesMut>,
}

impl PacketWriter {
    /// Hands packets over; those of one TCP flow that follow each other travel as one. Empty ones are left out. A packet that the
    /// kernel refuses is dropped, and the others are not.
    ///
    /// # Errors
    /// The last refusal.
    pub async fn send(&mut self, packets: &[Bytes]) -> io::Result<()> {
        let mut done = Ok(());
        for packets in packets.chunks(WRITES_MAX) {
            let mut count = 0;
            for packet in packets.iter().filter(|packet| !packet.is_empty()) {
                if self.buffers.len() == count {
                    self.buffers.push(BytesMut::new());
                }
                let buffer = &mut self.buffers[count];
                buffer.clear();
                buffer.resize(VIRTIO_NET_HDR_LEN, 0);
                buffer.extend_from_slice(packet);
                count += 1;
            }
            let buffers = &mut self.buffers[..count];
            done = self.device.send_multiple(&mut self.table, buffers, VIRTIO_NET_HDR_LEN).await.map(drop).and(done);
            for buffer in buffers.iter_mut().filter(|buffer| buffer.capacity() > KEPT_BYTES_MAX) {
                *buffer = BytesMut::new();
            }
        }
        done
    }
}
