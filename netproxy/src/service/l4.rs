//! One TCP connection to a Service: choose an endpoint, then either carry bytes to its socket or, if it is a pod of this
//! process, speak HTTP right here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::balance::{Among, Way};
use crate::connections::Connection;
use crate::listener::reset;
use crate::pods::{Endpoint, Open};
use crate::routes::Protocol;
use crate::shared::{Shared, connect};
use crate::web::serve::{self, Target};

/// Serves an accepted connection to its end.
pub(crate) async fn connection(
    shared: Arc<Shared>,
    way: Way,
    client: TcpStream,
    peer: SocketAddr,
    connection: Connection,
) {
    let asker = asker(&shared, &client, peer);
    let peer = shared.shown(peer, Protocol::Tcp).ip();
    if !way.admits(peer) {
        return reset(client);
    }
    match reach(&shared, &way, peer, asker).await {
        Some(Reached::Local) => {
            serve::connection(&shared, Target::Port { way, client: peer, asker }, client, &connection).await;
        }
        Some(Reached::Socket(upstream, _open)) => {
            connection.drive_plain(carry(client, upstream)).await;
        }
        None => reset(client),
    }
}

enum Reached {
    Local,
    Socket(TcpStream, Open),
}

/// Whom policies judge: the client, unless the kernel gave a socket of this node, which named no address of its own, that which
/// it connects to.
fn asker(shared: &Shared, stream: &TcpStream, peer: SocketAddr) -> Option<IpAddr> {
    let is_self = stream.local_addr().is_ok_and(|local| local.ip() == peer.ip());
    (!is_self).then(|| shared.shown(peer, Protocol::Tcp).ip())
}

/// An endpoint that takes the connection; the next one if it does not. None at all if policies let the asker reach none.
async fn reach(shared: &Shared, way: &Way, client: IpAddr, asker: Option<IpAddr>) -> Option<Reached> {
    let (mut tried, mut attempts) = (Vec::new(), 0);
    while attempts < shared.limits.attempts_max {
        let endpoint = way.choose(Among::All, &tried, Some(client))?;
        if !shared.permits(asker, endpoint.addr, Protocol::Tcp) {
            tried.push(endpoint.addr);
            continue;
        }
        attempts += 1;
        if endpoint.is_local() {
            return Some(Reached::Local);
        }
        match dial(shared, &endpoint).await {
            Ok((stream, open)) => return Some(Reached::Socket(stream, open)),
            Err(error) => tracing::debug!(port = way.port.name, endpoint = %endpoint.addr, %error, "connect failed"),
        }
        tried.push(endpoint.addr);
    }
    None
}

/// A connection to an endpoint's socket.
pub(crate) async fn dial(shared: &Shared, endpoint: &Arc<Endpoint>) -> std::io::Result<(TcpStream, Open)> {
    let open = endpoint.open();
    let connecting = connect(shared.stack.as_ref(), endpoint.addr);
    let stream = tokio::time::timeout(shared.limits.connect_timeout, connecting).await??;
    stream.set_nodelay(true)?;
    Ok((stream, open))
}

/// Bytes both ways until both sides are done; a half-close is passed on, a broken side resets the other.
async fn carry(mut client: TcpStream, mut upstream: TcpStream) {
    if tokio::io::copy_bidirectional(&mut client, &mut upstream).await.is_err() {
        reset(client);
        reset(upstream);
    }
}
