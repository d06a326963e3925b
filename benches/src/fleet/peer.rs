//! The two ends of a connection between machines, as processes of their own: one that takes bytes or sends them back, and one
//! that sends as much as it can, or waits for each answer.

use super::site::Machine;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The hidden subcommand.
pub const NAME: &str = "peer";
/// Bytes written and read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// What a client says first.
const TAKE: u8 = b't';
const ANSWER: u8 = b'a';

/// `serve ADDRESS`, `flow ADDRESS STREAMS SECONDS`, or `ask ADDRESS COUNT`.
pub async fn run(arguments: &[&str]) -> Result<()> {
    let printed = match arguments {
        ["serve", address] => return serve(address.parse()?).await,
        ["flow", address, streams, seconds] => flow(address.parse()?, streams.parse()?, seconds.parse()?).await?,
        ["ask", address, count] => ask(address.parse()?, count.parse()?).await?,
        _ => bail!("no such peer"),
    };
    println!("{printed}");
    Ok(())
}

async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let mut buffer = vec![0; CHUNK_BYTES];
            let wish = stream.read_u8().await.unwrap_or_default();
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                if wish == ANSWER && stream.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
            // says that all has come
            let _ = stream.write_u8(wish).await;
        });
    }
}

/// Sends for so long over so many connections; until the last byte has arrived.
async fn flow(address: SocketAddr, streams: usize, seconds: u64) -> Result<Value> {
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..streams)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await?;
                stream.write_u8(TAKE).await?;
                let (chunk, mut sent) = (vec![7; CHUNK_BYTES], 0_u64);
                while Instant::now() < until {
                    sent += stream.write(&chunk).await? as u64;
                }
                stream.shutdown().await?;
                stream.read_u8().await?;
                anyhow::Ok(sent)
            })
        })
        .collect();
    let mut bytes = 0;
    for task in tasks {
        bytes += task.await??;
    }
    Ok(json!({"bytes": bytes, "seconds": begun.elapsed().as_secs_f64()}))
}

/// Asks and waits, so many times; each time in microseconds.
async fn ask(address: SocketAddr, count: usize) -> Result<Value> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_u8(ANSWER).await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        stream.write_u8(1).await?;
        stream.read_u8().await?;
        times.push(begun.elapsed().as_micros() as u64);
    }
    Ok(json!(times))
}

/// A server that runs on a machine.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server on a machine.
pub fn start(machine: &Machine, address: SocketAddr) -> Result<Server> {
    let mut command = machine.command(std::env::current_exe()?);
    Ok(Server(command.args([NAME, "serve", &address.to_string()]).stdin(Stdio::null()).spawn()?))
}

/// What a client on a machine prints.
pub async fn client(machine: &Machine, arguments: &[&str]) -> Result<Value> {
    let mut command = machine.command(std::env::current_exe()?);
    command.arg(NAME).args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = || format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!(said());
    }
    serde_json::from_slice(&output.stdout).with_context(said)
}
