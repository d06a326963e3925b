//! The one port of a master: TCP for the API, UDP of the same number for links.

use anyhow::{Context, Result};
use std::net::{IpAddr, UdpSocket};
use tokio::net::TcpListener;

/// Tries to find a number that is free for both.
const TRIES_MAX: u32 = 16;

/// Takes `port` of `address`, or any that is free for both when it is 0.
///
/// # Errors
/// When somebody else has it.
pub async fn bind(address: IpAddr, port: u16) -> Result<(TcpListener, UdpSocket)> {
    let mut tries_left = if port == 0 { TRIES_MAX } else { 1 };
    loop {
        tries_left -= 1;
        let tcp = TcpListener::bind((address, port)).await.with_context(|| format!("listen on {address}:{port}"))?;
        let got = tcp.local_addr()?.port();
        match UdpSocket::bind((address, got)) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if tries_left > 0 => {}
            Err(error) => return Err(error).with_context(|| format!("listen on UDP {address}:{got}")),
        }
    }
}
