//! A pod's network namespace, seen from outside: sockets are created in it and used by threads that are not.
//!
//! A socket belongs to the namespace of the thread that made it, for good. So a thread enters the namespace for the one
//! system call that creates the socket and goes back at once; everything after is ordinary asynchronous work.
//! Deliberately absent: making namespaces (Docker does, [`crate::docker`]).

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A network namespace, kept alive by this handle; clones share it.
#[derive(Clone, Debug)]
pub struct NetworkNamespace(Arc<File>);

impl NetworkNamespace {
    /// Opens the namespace `path` stands for, such as `/proc/<pid>/ns/net`.
    pub fn open(path: &Path) -> io::Result<NetworkNamespace> {
        Ok(NetworkNamespace(Arc::new(File::open(path)?)))
    }

    /// Runs `act` with this thread inside the namespace. `act` must not block or wait. Needs CAP_SYS_ADMIN. The process
    /// is aborted when the thread cannot go back: it would do the work of the node in a pod's network.
    pub fn run<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let home = Home(File::open("/proc/thread-self/ns/net")?);
        enter(&self.0)?;
        let done = act();
        drop(home);
        Ok(done)
    }

    /// Connects from inside the namespace, so that its localhost is the pod's. No time limit of its own.
    pub async fn connect(&self, addr: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        self.run(|| socket_for(addr))??.connect(addr).await
    }

    /// Listens inside the namespace. The listener does not block and reuses the address.
    pub fn listen(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.run(|| socket_for(addr))??;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)?.into_std()
    }
}

fn socket_for(addr: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
    match addr {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Where the thread came from. Goes back when dropped, also when the act panicked.
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.0) {
            tracing::error!(%error, "cannot leave a pod's network namespace");
            std::process::abort();
        }
    }
}
