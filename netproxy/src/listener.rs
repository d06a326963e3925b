//! Binding and accepting, the same for Services, pods, ingress and DNS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::connections::{Connection, Connections};

/// Connections the kernel keeps for us while we are busy.
const BACKLOG_CONNECTIONS: u32 = 1024;

/// Binds; must run inside the runtime that shall serve it.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG_CONNECTIONS)
}

/// Why the kernel refused, for a person.
pub(crate) fn explain(what: &str, addr: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("cannot listen on {what} {addr}: ports below 1024 need CAP_NET_BIND_SERVICE")
        }
        io::ErrorKind::AddrInUse => format!("cannot listen on {what} {addr}: the address is in use"),
        io::ErrorKind::AddrNotAvailable => format!("cannot listen on {what} {addr}: not an address of this host"),
        _ => format!("cannot listen on {what} {addr}: {error}"),
    }
}

/// Accepts until `stop`; each connection becomes a task of `serve`. Accepts no more than `connections` allows.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    connections: Arc<Connections>,
    stop: CancellationToken,
    mut serve: impl FnMut(TcpStream, SocketAddr, Connection) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let work = async {
        loop {
            let permit = connections.permit().await;
            match listener.accept().await {
                Ok((stream, peer)) => {
                    // Latency matters more than packets; failure only means a little slower.
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(serve(stream, peer, connections.enter(permit)));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    // Out of descriptors or memory: let others give some back.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Closes so that the client sees a reset, as kube-proxy's REJECT does.
pub(crate) fn reset(stream: TcpStream) {
    // Failure means an ordinary close.
    let _ = stream.set_zero_linger();
}
