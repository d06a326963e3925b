//! A closed loop of keep-alive HTTP/1.1 connections: each asks again as soon as it has its answer.
//!
//! Written on the raw socket, because the client shares the machine with what it measures and should cost little. It
//! understands what the servers measured here send: a length, or chunks, or the end of the connection.

use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How many connections ask at once.
pub const CONNECTIONS: usize = 32;
/// Answers longer than this are none of ours.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What was achieved.
pub struct Rate {
    /// Answers a second.
    pub requests: f64,
    /// The time within which 99 of 100 answers came.
    pub p99: Duration,
}

/// One answer.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, still in chunks if it came so.
    pub body: String,
}

/// Asks for as long as told. Every answer must be a 200.
pub async fn run(address: SocketAddr, host: &str, time: Duration) -> Result<Rate> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let request = request(host, "keep-alive");
            tokio::spawn(async move { ask(address, &request, begun + time).await })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let spent = begun.elapsed();
    times.sort_unstable();
    let p99 = *times.get(times.len() * 99 / 100).context("no answers")?;
    Ok(Rate { requests: times.len() as f64 / spent.as_secs_f64(), p99 })
}

/// One GET on a connection of its own.
pub async fn get_once(address: SocketAddr, host: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&request(host, "close")).await?;
    let mut buffer = Vec::new();
    stream.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut buffer).await?;
    let body = String::from_utf8_lossy(&buffer);
    let body = body.split_once("\r\n\r\n").context("no end of the headers")?.1.to_owned();
    Ok(Answer { status: status(&buffer)?, body })
}

async fn ask(address: SocketAddr, request: &[u8], until: Instant) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    let mut times = Vec::new();
    loop {
        let begun = Instant::now();
        if begun >= until {
            return Ok(times);
        }
        stream.write_all(request).await?;
        buffer.clear();
        while !is_whole(&buffer)? {
            if stream.read_buf(&mut buffer).await? == 0 {
                // a server may end a connection after some number of requests
                stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                stream.write_all(request).await?;
                buffer.clear();
            }
        }
        if status(&buffer)? != 200 {
            bail!("{address} answered {}", String::from_utf8_lossy(&buffer));
        }
        times.push(begun.elapsed());
    }
}

fn request(host: &str, connection: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: {connection}\r\n\r\n").into_bytes()
}

fn status(answer: &[u8]) -> Result<u16> {
    let code = answer.get(9..12).context("no status line")?;
    Ok(std::str::from_utf8(code)?.parse()?)
}

/// Whether the headers and the body they announce are there.
fn is_whole(answer: &[u8]) -> Result<bool> {
    if answer.len() > ANSWER_BYTES_MAX {
        bail!("the answer is too long");
    }
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    let (headers, body) = answer.split_at(end + 4);
    let headers = std::str::from_utf8(headers)?;
    let header = |name: &str| {
        let mut lines = headers.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    if let Some(length) = header("content-length") {
        return Ok(body.len() >= length.parse()?);
    }
    // the bodies measured here hold no chunk's end of their own, and nothing is pipelined
    Ok(body.ends_with(b"\r\n0\r\n\r\n") || body == b"0\r\n\r\n")
}
