//! The DNS server on the cluster DNS address, UDP and TCP. Names of the cluster are answered at once; the rest goes to the host's
//! own resolvers, bounded in number and time.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::connections::{Connection, Connections};
use crate::dns::client::{self, MESSAGE_BYTES_MAX, Transport};
use crate::dns::wire::{self, Reply};
use crate::listener;
use crate::problems::About;
use crate::service::udp;
use crate::shared::Shared;

/// The host's resolvers that are asked, one after the other.
const RESOLVERS_MAX: usize = 3;

/// The server.
pub(crate) struct Dns {
    shared: Arc<Shared>,
    resolv_conf: PathBuf,
    own: SocketAddr,
    queries: Arc<Semaphore>,
}

/// Binds both listeners on one port and serves until `shared.stop`. Must run inside the data runtime.
pub(crate) fn start(shared: &Arc<Shared>, addr: SocketAddr, resolv_conf: PathBuf) -> Option<SocketAddr> {
    let bound = udp::bind(addr).and_then(|udp| {
        let addr = udp.local_addr()?;
        Ok((addr, udp, listener::bind(addr)?))
    });
    let (own, udp, tcp) = match bound {
        Ok(bound) => bound,
        Err(error) => {
            shared.problems.add(About::Dns(addr), listener::explain("cluster DNS address", addr, &error));
            return None;
        }
    };
    let queries = Arc::new(Semaphore::new(shared.limits.dns_queries_max));
    let dns = Arc::new(Dns { shared: shared.clone(), resolv_conf, own, queries });
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
                    if let Some(bytes) = wire::write(&reply, limit) {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                }
                reply => {
                    // More than the bound: drop, the client asks again.
                    let Ok(permit) = dns.queries.clone().try_acquire_owned() else { continue };
                    let (dns, socket, packet) = (dns.clone(), socket.clone(), packet.to_vec());
                    tokio::spawn(async move {
                        let _permit = permit;
                        if let Some(bytes) = dns.forward(reply, &message, packet, Transport::Udp, limit).await {
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
                Reply::Answer(reply) => wire::write(&reply, MESSAGE_BYTES_MAX),
                reply => {
                    let Ok(_permit) = dns.queries.acquire().await else { return Ok(()) };
                    dns.forward(reply, &message, packet, Transport::Tcp, MESSAGE_BYTES_MAX).await
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
        wire::answer(&self.shared.table.load(), &self.shared.cluster_domain, message, turn)
    }

    /// Asks outside; what comes back, or a failure the client can read.
    async fn forward(
        &self,
        reply: Reply,
        message: &Message,
        packet: Vec<u8>,
        transport: Transport,
        limit: usize,
    ) -> Option<Vec<u8>> {
        match reply {
            Reply::Forward => match self.ask(&packet, transport).await {
                Some(answer) => Some(answer),
                None => {
                    let mut failed = Message::error_msg(message.metadata.id, OpCode::Query, ResponseCode::ServFail);
                    failed.queries.clone_from(&message.queries);
                    failed.to_vec().ok()
                }
            },
            Reply::ForwardAlias(mut reply, query) => {
                let answer = self.ask(&client::question(message.metadata.id, query).to_vec().ok()?, transport).await;
                if let Some(answer) = answer.and_then(|bytes| Message::from_vec(&bytes).ok()) {
                    reply.answers.extend(answer.answers);
                }
                wire::write(&reply, limit)
            }
            Reply::Answer(reply) => wire::write(&reply, limit),
        }
    }

    /// The first good answer of the host's resolvers, asked the way we were.
    async fn ask(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for resolver in resolvers(&self.resolv_conf, self.own) {
            let asked = client::ask(resolver, packet, transport);
            match tokio::time::timeout(self.shared.limits.dns_timeout, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => tracing::debug!(%resolver, "resolver did not answer in time"),
            }
        }
        None
    }
}

/// `nameserver` lines (an address, or an address and port), without ourselves. Read anew each time: DHCP changes it.
fn resolvers(resolv_conf: &Path, own: SocketAddr) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    let parse = |word: &str| match word.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, 53)),
        Err(_) => word.parse().ok(),
    };
    text.lines()
        .filter_map(|line| parse(line.trim().strip_prefix("nameserver")?.split_whitespace().next()?))
        .filter(|resolver| *resolver != own)
        .take(RESOLVERS_MAX)
        .collect()
}
