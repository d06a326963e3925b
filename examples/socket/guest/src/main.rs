//! A TCP server over `std::net` (`wasi:sockets` underneath): sends every line back with a number before it.
//!
//! A Wasm program has one thread, so it serves all its connections in turn, without blocking, and rests when none has
//! anything to do. While there is no connection it blocks until one comes. `PORT` in the environment sets the port; 7000
//! otherwise.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::Duration;

const CONNECTIONS_MAX: usize = 256;
/// A line that grows longer ends its connection.
const LINE_BYTES_MAX: usize = 64 * 1024;
const REST_SHORTEST: Duration = Duration::from_millis(1);
const REST_LONGEST: Duration = Duration::from_millis(50);

fn main() -> io::Result<()> {
    let port = match std::env::var("PORT") {
        Ok(port) => port.parse().map_err(|_| io::Error::other(format!("PORT is no port: {port:?}")))?,
        Err(_) => 7000,
    };
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on {}", listener.local_addr()?);

    let mut connections: Vec<Connection> = Vec::new();
    let mut rest = REST_SHORTEST;
    loop {
        let mut busy = false;
        while connections.len() < CONNECTIONS_MAX {
            listener.set_nonblocking(!connections.is_empty())?;
            match listener.accept().and_then(Connection::new) {
                Ok(connection) => {
                    connections.push(connection);
                    busy = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    // One client's trouble, such as leaving before it was let in, is not the others'.
                    eprintln!("cannot accept: {error}");
                    break;
                }
            }
        }
        connections.retain_mut(|connection| match connection.turn() {
            Ok(moved) => {
                busy |= moved;
                true
            }
            Err(_) => false,
        });
        rest = if busy { REST_SHORTEST } else { (rest * 2).min(REST_LONGEST) };
        if !busy {
            sleep(rest);
        }
    }
}

struct Connection {
    stream: TcpStream,
    /// The beginning of a line whose end has not come yet.
    inbox: Vec<u8>,
    /// What the client has not taken yet.
    outbox: Vec<u8>,
    lines: u64,
}

impl Connection {
    fn new((stream, _): (TcpStream, SocketAddr)) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, inbox: Vec::new(), outbox: Vec::new(), lines: 0 })
    }

    /// Writes what is due, then reads what is there. An error, the client's end among them, ends the connection.
    fn turn(&mut self) -> io::Result<bool> {
        let mut moved = false;
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(taken) => {
                    self.outbox.drain(..taken);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(moved),
                Err(error) => return Err(error),
            }
        }
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.take(&chunk[..length])?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(moved),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        for &byte in bytes {
            self.inbox.push(byte);
            if byte == b'\n' {
                self.lines += 1;
                write!(self.outbox, "{}: ", self.lines)?;
                self.outbox.append(&mut self.inbox);
            }
        }
        if self.inbox.len() > LINE_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}
