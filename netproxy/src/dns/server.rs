//! The DNS server on the cluster DNS address, UDP and TCP. Names of the cluster are answered at once; questions that go to the host's
//! own resolvers are bounded in number and time.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::connections::{Connection, Connections};
use crate::dns::client::{MESSAGE_BYTES_MAX, Transport};
use crate::dns::forward::Wish;
use crate::dns::wire::{self, Reply, Zone};
use crate::listener;
use crate::problems::About;
use crate::routes::Protocol;
use crate::service::udp;
use crate::shared::Shared;

/// The server.
pub(crate) struct Dns {
    shared: Arc<Shared>,
    own: SocketAddr,
    queries: Arc<Semaphore>,
}

/// Binds both listeners on one port and serves until `shared.stop`. Must run inside the data runtime.
pub(crate) fn start(shared: &Arc<Shared>, addr: SocketAddr) -> Option<SocketAddr> {
    let bound = udp::bind(shared.local(addr)).and_then(|udp| {
        let addr = udp.local_addr()?;
        Ok((shared.shown(addr, Protocol::Udp), udp, listener::bind(addr)?))
    });
    let (own, udp, tcp) = match bound {
        Ok(bound) => bound,
        Err(error) => {
            shared.problems.add(About::Dns(addr), listener::explain("cluster DNS address", addr, &error));
            return None;
        }
    };
    let queries = Arc::new(Semaphore::new(shared.limits.dns_queries_max));
    shared.forwarder.is_served_at(own);
    let dns = Arc::new(Dns { shared: shared.clone(), own, queries });
    let stop = shared.stop.child_token();
    shared.data.spawn(serve_udp(dns.clone(), Arc::new(udp), stop.clone()));
    shared.data.spawn(serve_tcp(dns, tcp, stop));
    Some(own)
}

async fn serve_udp(dns: Arc<Dns>, socket: Arc<UdpSocket>, stop: CancellationToken) {
    let work = async {
        let mut packet = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut packet).await else { continue };
            let packet = &packet[..length];
            let message = match wire::read(packet) {
                Ok(message) => message,
                Err(complaint) => {
                    if let Some(bytes) = complaint {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                    continue;
                }
            };
            let limit = wire::udp_limit(&message);
            match dns.answer(&message) {
                // A client that has gone is its own loss.
                Reply::Answer(reply) => {
                    if let Some(bytes) = wire::write(reply, limit) {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                }
                Reply::Forward(reply, query) => {
                    // More than the bound: drop, the client asks again.
                    let Ok(permit) = dns.queries.clone().try_acquire_owned() else { continue };
                    let (dns, socket, wish) = (dns.clone(), socket.clone(), Wish::of(&message));
                    tokio::spawn(async move {
                        let _permit = permit;
                        if let Some(bytes) = dns.forward(reply, &query, wish, Transport::Udp, limit).await {
                            let _ = socket.send_to(&bytes, client).await;
                        }
                    });
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn serve_tcp(dns: Arc<Dns>, listener: TcpListener, stop: CancellationToken) {
    let limits = &dns.shared.limits;
    let connections = Connections::new(limits.dns_connections_max, dns.shared.permits.clone());
    let until = stop.clone();
    listener::accept(listener, connections, stop, |stream, _, connection| {
        let (dns, until) = (dns.clone(), until.clone());
        async move {
            tokio::select! {
                () = until.cancelled() => {}
                _ = talk(&dns, stream, &connection) => {}
            }
        }
    })
    .await;
}

/// Messages of one TCP connection, one after the other, until it is idle for too long.
async fn talk(dns: &Dns, mut stream: TcpStream, _connection: &Connection) -> std::io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut packet = vec![0; length.into()];
            stream.read_exact(&mut packet).await?;
            Ok::<_, std::io::Error>(packet)
        };
        let packet = tokio::time::timeout(dns.shared.limits.header_timeout, read).await??;
        let bytes = match wire::read(&packet) {
            Ok(message) => match dns.answer(&message) {
                Reply::Answer(reply) => wire::write(reply, MESSAGE_BYTES_MAX),
                Reply::Forward(reply, query) => {
                    let Ok(_permit) = dns.queries.acquire().await else { return Ok(()) };
                    dns.forward(reply, &query, Wish::of(&message), Transport::Tcp, MESSAGE_BYTES_MAX).await
                }
            },
            Err(complaint) => complaint,
        };
        let Some(bytes) = bytes else { return Ok(()) };
        let mut framed = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes[..bytes.len().min(MESSAGE_BYTES_MAX)]);
        tokio::time::timeout(dns.shared.limits.header_timeout, stream.write_all(&framed)).await??;
    }
}

impl Dns {
    fn answer(&self, message: &Message) -> Reply {
        let turn = self.shared.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let zone =
            Zone { table: &self.shared.table.load(), domain: &self.shared.cluster_domain, server: self.own.ip() };
        wire::answer(&zone, message, turn)
    }

    /// Asks outside, the way we were asked; what comes back, or a failure the client can read.
    async fn forward(
        &self,
        reply: Message,
        query: &Query,
        wish: Wish,
        transport: Transport,
        limit: usize,
    ) -> Option<Vec<u8>> {
        let outside = self.shared.forwarder.ask(query, wish, transport).await;
        wire::write(wire::complete(reply, outside), limit)
    }
}
