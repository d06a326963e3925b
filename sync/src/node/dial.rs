//! How a node gets a connection: QUIC first, TLS on TCP where QUIC gets no answer.

use super::{Config, Transport};
use crate::quic::{self, Failure, Role};
use crate::session::chain;
use crate::tls::{self, ALPN_BULK, ALPN_CONTROL, SERVER_NAME};
use crate::transport::{self, Stream};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quinn::{Connection, Endpoint};
use rustls_pki_types::ServerName;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A whole attempt, over whatever.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);
/// What QUIC is given when TCP has failed.
const QUIC_ALONE_TIME_MAX: Duration = Duration::from_secs(8);
/// What another attempt with QUIC is given when TCP answers first.
const QUIC_ANEW_TIME_MAX: Duration = Duration::from_secs(1);
/// Addresses of the master that are tried.
const ADDRESSES_MAX: usize = 6;
/// How much later each further address is tried.
const STAGGER: Duration = Duration::from_millis(250);

/// The control connection of a session to be.
pub(super) struct Carried {
    pub(super) over: Transport,
    pub(super) remote: SocketAddr,
    pub(super) stream: Stream,
    /// Where the stream is one of a QUIC connection.
    pub(super) connection: Option<Connection>,
}

/// Makes connections. Its sockets stay for its life, so that the master and NATs see the same node.
pub(super) struct Dialler {
    pub(super) config: Config,
    endpoints: Mutex<Vec<(Role, bool, Endpoint)>>,
}

impl Dialler {
    pub(super) fn new(config: Config) -> Self {
        Self { config, endpoints: Mutex::default() }
    }

    /// A control connection: over QUIC, or, when that gives no answer for `patience`, over what answers first.
    pub(super) async fn connect(&self, patience: Duration) -> Result<Carried, Failure> {
        match timeout(CONNECT_TIME_MAX, self.race(patience)).await {
            Ok(raced) => raced,
            Err(_) => Err(Failure::Broken(format!("no answer from {}:{}", self.config.server, self.config.port))),
        }
    }

    async fn race(&self, patience: Duration) -> Result<Carried, Failure> {
        let mut over_quic = pin!(self.control_over_quic());
        match timeout(patience, &mut over_quic).await {
            Ok(Err(Failure::Broken(why))) => return self.control_over_tcp().await.map_err(|other| both(&why, other)),
            Ok(decided) => return decided,
            Err(_) => {}
        }
        let mut over_tcp = pin!(self.control_over_tcp());
        tokio::select! {
            first = &mut over_quic => match first {
                Err(Failure::Broken(why)) => over_tcp.await.map_err(|other| both(&why, other)),
                decided => decided,
            },
            first = &mut over_tcp => match first {
                // what answers on TCP need not speak the protocol; but where nothing does, there is hardly a master
                Err(why) => match timeout(QUIC_ALONE_TIME_MAX, over_quic).await {
                    Ok(decided) => decided.map_err(|other| both(other.text(), why)),
                    Err(_) => Err(both("no answer over QUIC", why)),
                },
                // a path that has just come back: what QUIC has sent before is lost, and repeated too late
                Ok(carried) => match timeout(patience.min(QUIC_ANEW_TIME_MAX), self.control_over_quic()).await {
                    Ok(Ok(better)) => Ok(better),
                    _ => Ok(carried),
                },
            },
        }
    }

    /// A control connection over QUIC, with its stream open.
    pub(super) async fn control_over_quic(&self) -> Result<Carried, Failure> {
        let connection = self.quic(Role::Control).await?;
        let (sender, receiver) = connection.open_bi().await.map_err(|error| quic::failure(&error))?;
        Ok(Carried {
            over: Transport::Quic,
            remote: connection.remote_address(),
            stream: (transport::Sender::Quic(sender), transport::Receiver::Quic(receiver)),
            connection: Some(connection),
        })
    }

    async fn control_over_tcp(&self) -> Result<Carried, Failure> {
        let (stream, remote) = self.tls(ALPN_CONTROL).await?;
        Ok(Carried { over: Transport::Tcp, remote, stream: transport::tls(stream), connection: None })
    }

    /// A QUIC connection to whichever address of the master answers first.
    pub(super) async fn quic(&self, role: Role) -> Result<Connection, Failure> {
        let addresses = self.addresses().await?;
        self.first(addresses, |address| self.quic_to(role, address)).await
    }

    /// A TLS connection to whichever address of the master answers first.
    pub(super) async fn tls(&self, alpn: &'static [u8]) -> Result<(TlsStream<TcpStream>, SocketAddr), Failure> {
        let addresses = self.addresses().await?;
        self.first(addresses, |address| self.tls_to(alpn, address)).await
    }

    async fn first<T, F>(&self, addresses: Vec<SocketAddr>, attempt: impl Fn(SocketAddr) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut attempts = FuturesUnordered::new();
        for (place, address) in addresses.into_iter().enumerate() {
            let attempt = &attempt;
            attempts.push(async move {
                sleep(STAGGER * place as u32).await;
                attempt(address).await
            });
        }
        let mut why = Failure::Broken(format!("{} has no address", self.config.server));
        while let Some(attempted) = attempts.next().await {
            match attempted {
                Ok(connection) => return Ok(connection),
                // the one that tells more
                Err(failure) if matches!(why, Failure::Broken(_)) => why = failure,
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// The master's addresses; asked for each attempt, since they change.
    async fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let Config { server, port, bind, .. } = &self.config;
        let host = server.trim_start_matches('[').trim_end_matches(']');
        let found = lookup_host((host, *port))
            .await
            .map_err(|error| Failure::Broken(format!("look up {host}: {error}")))?
            .filter(|address| bind.is_none_or(|bind| bind.is_ipv4() == address.is_ipv4()));
        Ok(found.take(ADDRESSES_MAX).collect())
    }

    async fn quic_to(&self, role: Role, address: SocketAddr) -> Result<Connection, Failure> {
        let alpn = if role == Role::Control { ALPN_CONTROL } else { ALPN_BULK };
        let config = quic::client(self.tls_config(alpn)?, role, &self.config.limits)?;
        let endpoint = self.endpoint(role, address.is_ipv6()).map_err(|error| broken("open a UDP socket", &error))?;
        let connecting = endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|error| Failure::Broken(format!("connect to {address}: {}", chain(&error))))?;
        connecting.await.map_err(|error| match quic::failure(&error) {
            Failure::Broken(why) => Failure::Broken(format!("connect to {address} over QUIC: {why}")),
            refused => refused,
        })
    }

    async fn tls_to(
        &self,
        alpn: &'static [u8],
        address: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, SocketAddr), Failure> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let connected = async {
            let socket = socket?;
            if let Some(bind) = self.config.bind {
                socket.bind(SocketAddr::new(bind.ip(), 0))?;
            }
            let stream = socket.connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = timeout(CONNECT_TIME_MAX, connected)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| broken(&format!("connect to {address} over TCP"), &error))?;
        let connector = TlsConnector::from(Arc::new(self.tls_config(alpn)?));
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| Failure::Broken(error.to_string()))?;
        let stream = timeout(CONNECT_TIME_MAX, connector.connect(name, stream))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| tls_failure(&error))?;
        match stream.get_ref().1.alpn_protocol() == Some(alpn) {
            true => Ok((stream, address)),
            false => Err(Failure::Refused("the master does not serve links on TCP".into())),
        }
    }

    fn tls_config(&self, alpn: &[u8]) -> Result<rustls::ClientConfig, Failure> {
        let identity = self.config.identity.borrow().clone();
        tls::client(&self.config.server_ca, &identity, alpn).map_err(|error| Failure::Refused(chain(&error)))
    }

    fn endpoint(&self, role: Role, is_ipv6: bool) -> io::Result<Endpoint> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let known = endpoints.iter().find(|(of, ipv6, _)| (*of, *ipv6) == (role, is_ipv6));
        if let Some((_, _, endpoint)) = known {
            return Ok(endpoint.clone());
        }
        let any: IpAddr = if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let local = match (self.config.bind, role) {
            (Some(bind), Role::Control) => bind,
            (Some(bind), Role::Bulk) => SocketAddr::new(bind.ip(), 0),
            (None, _) => SocketAddr::new(any, 0),
        };
        let endpoint = quic::dialler(UdpSocket::bind(local)?, &self.config.limits)?;
        endpoints.push((role, is_ipv6, endpoint.clone()));
        Ok(endpoint)
    }
}

/// What an error of a TLS connection means.
pub(super) fn tls_failure(error: &io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => quic::alerted(u8::from(*alert)),
        Some(error @ rustls::Error::InvalidCertificate(_)) => {
            Failure::Refused(format!("the master's certificate is not trusted: {error}"))
        }
        _ => broken("the connection over TCP", error),
    }
}

fn broken(what: &str, error: &io::Error) -> Failure {
    Failure::Broken(format!("{what}: {}", chain(error)))
}

/// Why neither way works: what TCP says counts, since it is tried when QUIC gave nothing.
fn both(quic: &str, tcp: Failure) -> Failure {
    match tcp {
        Failure::Broken(why) => Failure::Broken(format!("{quic}; {why}")),
        decided => decided,
    }
}
