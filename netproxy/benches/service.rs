//! What a Service costs: requests to a pod in this process through a Service's address, beside a bare hyper server that gives the same
//! answer. Each server is a process of its own, so that its CPU time can be told from the client's. Prints requests per second
//! and server CPU per request, in alternating rounds. `cargo bench -p netproxy`.

// A broken benchmark may end at once.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use netproxy::{
    Backend, BackendPort, Body, Handler, HandlerError, IngressRoute, IngressRule, PathKind, PortRoute, Protocol, Proxy,
    ProxyConfig, Routes, ServiceRoute, full,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TEXT: &[u8] = b"Hello from a pod of this node\n";
const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

fn main() {
    let mode = std::env::args().nth(1).filter(|mode| !mode.starts_with('-'));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    match mode.as_deref() {
        Some("plain") => runtime.block_on(plain()),
        Some(way) => runtime.block_on(through_proxy(way == "ingress")),
        None => runtime.block_on(compare()),
    }
}

async fn plain() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let service = hyper::service::service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from_static(TEXT))))
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

struct Pod;

impl Handler for Pod {
    fn call(&self, _: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, HandlerError>> {
        async { Ok(Response::new(full(TEXT))) }.boxed()
    }
}

async fn through_proxy(ingress: bool) {
    let mut config = ProxyConfig::new(tokio::runtime::Handle::current());
    config.ingress_http_port = Some(0);
    let proxy = Proxy::new(config);
    let pods: Vec<_> =
        (1..=3u8).map(|n| proxy.serve_pod(SocketAddr::from(([127, 42, 0, n], 0)), Arc::new(Pod))).collect();
    let vip = SocketAddr::from(([127, 43, 0, 1], 18080));
    let service = ServiceRoute {
        namespace: "default".into(),
        name: "hello".into(),
        cluster_ips: vec![vip.ip()],
        ports: vec![PortRoute {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: vip.port(),
            node_port: None,
            h2c: false,
            endpoints: pods.iter().map(netproxy::PodGuard::addr).collect(),
            local: Vec::new(),
        }],
        ..ServiceRoute::default()
    };
    let rule = IngressRule {
        host: Some("hello.test".into()),
        path: "/".into(),
        kind: PathKind::Prefix,
        backend: Backend { service: "hello".into(), port: BackendPort::Number(vip.port()) },
    };
    let door =
        IngressRoute { namespace: "default".into(), name: "door".into(), rules: vec![rule], default_backend: None };
    proxy.set_routes(Routes { services: vec![service], ingresses: vec![door], ..Routes::default() });
    println!("{}", if ingress { proxy.ingress_addresses().0[0] } else { vip });
    std::future::pending::<()>().await;
}

struct Server {
    name: &'static str,
    child: Child,
    addr: SocketAddr,
    requests: u64,
    cpu: Duration,
    elapsed: Duration,
}

async fn compare() {
    let mut servers: Vec<Server> = ["plain", "service", "ingress"].map(start).into();
    for _ in 0..ROUNDS {
        for server in &mut servers {
            let (cpu, start) = (cpu(server.child.id()), Instant::now());
            server.requests += load(server.addr).await;
            server.cpu += self::cpu(server.child.id()) - cpu;
            server.elapsed += start.elapsed();
        }
    }
    let per_request = |server: &Server| server.cpu.as_secs_f64() * 1e6 / server.requests as f64;
    let rate = |server: &Server| server.requests as f64 / server.elapsed.as_secs_f64();
    println!("{:<8} {:>10} {:>6} {:>14} {:>6}", "", "requests/s", "ratio", "CPU us/request", "ratio");
    for server in &servers {
        println!(
            "{:<8} {:>10.0} {:>6.2} {:>14.2} {:>6.2}",
            server.name,
            rate(server),
            rate(server) / rate(&servers[0]),
            per_request(server),
            per_request(&servers[0]) / per_request(server),
        );
    }
    for server in &mut servers {
        server.child.kill().unwrap();
        server.child.wait().unwrap();
    }
}

fn start(name: &'static str) -> Server {
    let mut child = Command::new(std::env::current_exe().unwrap()).arg(name).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim().parse().unwrap();
    Server { name, child, addr, requests: 0, cpu: Duration::ZERO, elapsed: Duration::ZERO }
}

/// User and system time of a process, from /proc/PID/stat (100 ticks a second on Linux).
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Requests answered in one round.
async fn load(addr: SocketAddr) -> u64 {
    let until = Instant::now() + ROUND;
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        connections.spawn(async move {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut answer = [0; 4096];
            let mut count = 0;
            while Instant::now() < until {
                stream.write_all(b"GET /path HTTP/1.1\r\nhost: hello.test\r\naccept: */*\r\n\r\n").await.unwrap();
                let mut length = 0;
                while !answer[..length].ends_with(TEXT) {
                    length += stream.read(&mut answer[length..]).await.unwrap();
                }
                assert!(answer.starts_with(b"HTTP/1.1 200"));
                count += 1;
            }
            count
        });
    }
    connections.join_all().await.into_iter().sum()
}
