//! The servers that an HTTP component is compared with. Each serves the same bytes from a process of its own.

use crate::cluster::free_port;
use crate::{load, workload};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// The argument with which this binary becomes the plain hyper server.
pub const HYPER: &str = "hyper-peer";

/// A running peer, ended when dropped.
pub struct Peer {
    /// What it is called in the output.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    _dir: Option<TempDir>,
}

impl Peer {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // SIGTERM, upon which nginx takes its workers with it
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// This binary again, as the least that a hyper server can be.
pub fn hyper(body: &str) -> Result<Peer> {
    let mut child = Command::new(std::env::current_exe()?).args([HYPER, body]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    Ok(Peer { name: "plain hyper", address: line.trim().parse()?, child, _dir: None })
}

/// nginx with one location that returns the bytes, as many workers as cores, no log of requests.
pub async fn nginx(body: &str) -> Result<Option<Peer>> {
    if !installed("nginx", "-v") {
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    let port = free_port()?;
    let prefix = dir.path().display();
    let text = body.replace('\n', "\\n");
    let configuration = format!(
        "daemon off;\nworker_processes auto;\npid {prefix}/pid;\nerror_log {prefix}/error.log;\n\
         events {{}}\n\
         http {{\n\
           access_log off;\n  keepalive_requests 1000000000;\n  default_type 'text/plain; charset=utf-8';\n\
           client_body_temp_path {prefix}/body;\n  proxy_temp_path {prefix}/proxy;\n\
           fastcgi_temp_path {prefix}/fastcgi;\n  uwsgi_temp_path {prefix}/uwsgi;\n  scgi_temp_path {prefix}/scgi;\n\
           server {{\n    listen 127.0.0.1:{port} reuseport;\n    return 200 \"{text}\";\n  }}\n\
         }}\n"
    );
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let child = Command::new("nginx").arg("-p").arg(dir.path()).arg("-c").arg(&file).stderr(Stdio::null()).spawn()?;
    let peer = Peer { name: "nginx", address: (Ipv4Addr::LOCALHOST, port).into(), child, _dir: Some(dir) };
    answers(&peer).await?;
    Ok(Some(peer))
}

/// `wasmtime serve` with the same component.
pub async fn wasmtime() -> Result<Option<Peer>> {
    if !installed("wasmtime", "--version") {
        return Ok(None);
    }
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()?).into();
    let child = Command::new("wasmtime")
        .args(["serve", "-Scli", "--addr", &address.to_string()])
        .arg(workload::image()?)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let peer = Peer { name: "wasmtime serve", address, child, _dir: None };
    answers(&peer).await?;
    Ok(Some(peer))
}

/// The body of this binary when it is [`HYPER`]: prints its address and serves until it is ended.
pub async fn serve_hyper(body: String) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    let body = Bytes::from(body);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        let service = service_fn(move |_: Request<Incoming>| {
            let mut answer = Response::new(Full::new(body.clone()));
            answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn installed(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

async fn answers(peer: &Peer) -> Result<()> {
    let begun = Instant::now();
    while load::get_once(peer.address, "localhost").await.is_err() {
        if begun.elapsed() > Duration::from_secs(20) {
            bail!("{} does not answer", peer.name);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
