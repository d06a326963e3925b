//! The pods that live in this process.

use std::net::SocketAddr;

/// Keeps a pod's HTTP side reachable; dropping it deregisters, stops accepting and lets requests in flight finish.
pub struct PodGuard {
    addr: SocketAddr,
}

impl PodGuard {
    /// Where it is registered (the actual port if 0 was asked for).
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether connections from outside this process reach it.
    pub fn listening(&self) -> bool {
        false
    }

    /// Drops the guard; resolves when no request is in flight any more. Not bounded by itself.
    pub fn drain(self) -> impl Future<Output = ()> + Send + 'static {
        async {}
    }
}
