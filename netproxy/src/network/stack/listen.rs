//! The places of pods elsewhere, for TCP: a listener for each that somebody here connects to, closed when nobody has for a while.

use super::{Inner, lock, tcp};
use crate::listener::{self, reset};
use crate::routes::Protocol;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Pods and ports elsewhere that are listened for at once; the one idle longest makes room.
const LISTENERS_MAX: usize = 1024;
/// A listener that nobody has asked for this long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The listeners there are.
pub(super) type Table = Mutex<HashMap<SocketAddrV4, Listening>>;

pub(super) struct Listening {
    place: SocketAddr,
    used: Instant,
    task: AbortHandle,
}

/// Listens for connections to `there` from now on; where.
pub(super) fn ensure(stack: &Arc<Inner>, there: SocketAddrV4) -> io::Result<SocketAddr> {
    let mut table = lock(&stack.listening);
    if let Some(listening) = table.get_mut(&there) {
        listening.used = Instant::now();
        return Ok(listening.place);
    }
    if table.len() >= LISTENERS_MAX {
        let oldest = table.iter().min_by_key(|(_, listening)| listening.used).map(|(there, _)| *there);
        if let Some(listening) = oldest.and_then(|there| table.remove(&there)) {
            stack.unbind(listening.place, Protocol::Tcp);
            listening.task.abort();
        }
    }
    let bind = |place| listener::bind(place).and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (place, listener) = stack.bind(there, Protocol::Tcp, bind)?;
    let task = stack.config.data.spawn(accept(Arc::downgrade(stack), listener, there)).abort_handle();
    table.insert(there, Listening { place, used: Instant::now(), task });
    Ok(place)
}

async fn accept(stack: Weak<Inner>, listener: TcpListener, there: SocketAddrV4) {
    loop {
        let accepted = tokio::time::timeout(IDLE, listener.accept()).await;
        let Some(stack) = stack.upgrade() else { return };
        match accepted {
            Ok(Ok((stream, peer))) => {
                tokio::spawn(carry(stack, stream, peer, there));
            }
            Ok(Err(error)) => {
                tracing::debug!(%there, %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_) => {
                let mut table = lock(&stack.listening);
                if table.get(&there).is_none_or(|listening| listening.used.elapsed() >= IDLE) {
                    // closed before somebody else may want the place
                    drop(listener);
                    if let Some(listening) = table.remove(&there) {
                        stack.unbind(listening.place, Protocol::Tcp);
                    }
                    return;
                }
            }
        }
    }
}

async fn carry(stack: Arc<Inner>, stream: TcpStream, peer: SocketAddr, there: SocketAddrV4) {
    let here = stack.sender(stack.config.loopback.shown(peer));
    if !stack.permits(here, there, Protocol::Tcp) {
        return reset(stream);
    }
    let opened = async {
        stream.set_nodelay(true)?;
        let mut connection = tcp::Connection::new(stack.hold(here, there)?)?;
        connection.open().await?;
        Ok::<_, io::Error>(connection)
    };
    match opened.await {
        Ok(connection) => connection.carry(stream).await,
        Err(error) => {
            tracing::debug!(%here, %there, %error, "connect failed");
            reset(stream);
        }
    }
}
