//! Ports and plain HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// An answer over HTTP/1.1.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

/// One GET on a connection of its own.
pub fn request(to: SocketAddr, host: &str, path: &str) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    let mut rest = String::new();
    reader.read_to_string(&mut rest)?;
    let body = rest.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok(Reply { status, body })
}

/// Requests one after the other, until it is asked how they went.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Outcomes>,
}

/// How requests went.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// So many were answered.
    pub answered: usize,
    /// Why others were not.
    pub failures: Vec<String>,
}

impl Traffic {
    /// Asks from a thread that has prepared itself.
    pub fn start(to: SocketAddr, prepare: impl FnOnce() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            prepare();
            let mut outcomes = Outcomes::default();
            while !stopped.load(Ordering::Relaxed) {
                match request(to, "pod", "/traffic") {
                    Ok(Reply { status: 200, .. }) => outcomes.answered += 1,
                    other => outcomes.failures.push(format!("{other:?}")),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            outcomes
        });
        Self { stop, thread }
    }

    /// Stops, and tells.
    pub fn end(self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
