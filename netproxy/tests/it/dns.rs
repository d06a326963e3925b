//! DNS by hand-made packets.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use netproxy::{DnsPolicy, HeadlessRecord, PodDns, PodView, Proxy, ServiceRoute};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::support::{at, config, named, routes, tcp, text, view};

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const AXFR: u16 = 252;

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

/// rcode, truncated, answers, authorities.
fn head(packet: &[u8]) -> (u8, bool, u16, u16) {
    assert_eq!(packet[..2], [0x12, 0x34]);
    let count = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (packet[3] & 15, packet[2] & 2 != 0, count(6), count(8))
}

async fn ask(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind(at(0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut answer = vec![0; 65535];
    let length = socket.recv(&mut answer).await.unwrap();
    answer.truncate(length);
    answer
}

async fn ask_tcp(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_u16(packet.len() as u16).await.unwrap();
    stream.write_all(packet).await.unwrap();
    let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

/// A resolver that knows one address for everything.
async fn outside() -> SocketAddr {
    let socket = UdpSocket::bind(at(0)).await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            let mut answer = packet[..length].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 99]);
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    addr
}

async fn server() -> (Proxy, SocketAddr) {
    let mut resolv_conf = tempfile::NamedTempFile::new().unwrap();
    writeln!(resolv_conf, "search example.com\nnameserver {}", outside().await).unwrap();
    let mut config = config();
    config.dns = Some(at(0));
    config.resolv_conf = resolv_conf.into_temp_path().keep().unwrap();
    let file = config.resolv_conf.clone();
    let proxy = Proxy::new(config);
    let records =
        (0..100).map(|n| HeadlessRecord { address: [10, 42, 0, n].into(), hostname: Some(format!("db-{n}")) });
    let db = ServiceRoute {
        namespace: "default".into(),
        name: "db".into(),
        headless: records.collect(),
        ..ServiceRoute::default()
    };
    let mail = ServiceRoute {
        namespace: "default".into(),
        name: "mail".into(),
        external_name: Some("mail.example.com".into()),
        ..ServiceRoute::default()
    };
    let idle = ServiceRoute { cluster_ips: Vec::new(), ..tcp("idle", at(80), &[]) };
    proxy.set_routes(routes(vec![tcp("web", "10.43.0.7:80".parse().unwrap(), &[]), db, mail, idle]));
    // Read once here, so that the file may go: the first question outside comes before.
    let server = proxy.dns_address().unwrap();
    assert_eq!(head(&ask(server, &query("example.org", A)).await), (0, false, 1, 0));
    let mail = ask(server, &query("mail.default.svc.cluster.local", A)).await;
    assert_eq!(head(&mail), (0, false, 2, 0));
    assert!(mail.ends_with(&[192, 0, 2, 99]));
    std::fs::remove_file(file).unwrap();
    (proxy, server)
}

#[tokio::test]
async fn queries_get_kubernetes_answers() {
    let (_proxy, server) = server().await;
    for (name, kind, expected) in [
        ("web.default.svc.cluster.local", A, (0, false, 1, 0)),
        ("WEB.Default.svc.cluster.LOCAL", A, (0, false, 1, 0)),
        ("web.default.svc.cluster.local", AAAA, (0, false, 0, 1)),
        ("none.default.svc.cluster.local", A, (3, false, 0, 1)),
        ("default.svc.cluster.local", A, (0, false, 0, 1)),
        ("db-7.db.default.svc.cluster.local", A, (0, false, 1, 0)),
        ("_main._tcp.web.default.svc.cluster.local", SRV, (0, false, 1, 0)),
        ("mail.default.svc.cluster.local", CNAME, (0, false, 1, 0)),
        ("10-42-0-5.default.pod.cluster.local", A, (0, false, 1, 0)),
        // Too much for a packet without EDNS.
        ("db.default.svc.cluster.local", A, (0, true, 29, 0)),
        ("dns-version.cluster.local", TXT, (0, false, 1, 0)),
        ("cluster.local", SOA, (0, false, 1, 0)),
        ("cluster.local", AXFR, (5, false, 0, 0)),
        ("none.default.pod.cluster.local", A, (3, false, 0, 1)),
        // A headless Service without ready endpoints is no name, an address of the other kind none of the name's.
        ("idle.default.svc.cluster.local", A, (3, false, 0, 1)),
        ("_main._tcp.idle.default.svc.cluster.local", SRV, (3, false, 0, 1)),
        ("db.default.svc.cluster.local", AAAA, (0, false, 0, 1)),
        // Nobody to ask any more.
        ("example.net", A, (2, false, 0, 0)),
    ] {
        assert_eq!(head(&ask(server, &query(name, kind)).await), expected, "{name} {kind}");
    }
    let web = ask(server, &query("web.default.svc.cluster.local", A)).await;
    assert!(web.ends_with(&[0, 0, 0, 5, 0, 4, 10, 43, 0, 7]), "time to live and address");
    let all = ask_tcp(server, &query("db.default.svc.cluster.local", A)).await;
    assert_eq!(head(&all), (0, false, 100, 0));
}

#[tokio::test]
async fn garbage_gets_an_error_or_nothing() {
    let (_proxy, server) = server().await;
    let good = query("web.default.svc.cluster.local", A);
    // Cut anywhere: format error with the query's number.
    for length in 12..good.len() {
        assert_eq!(head(&ask(server, &good[..length]).await).0, 1, "{length}");
    }
    let mut update = good.clone();
    update[2] = 5 << 3;
    assert_eq!(head(&ask(server, &update).await).0, 4);
    let mut chaos = good.clone();
    *chaos.last_mut().unwrap() = 3;
    assert_eq!(head(&ask(server, &chaos).await).0, 4);
    // A name that points at itself.
    let mut looping = good[..12].to_vec();
    looping.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(head(&ask(server, &looping).await).0, 1);
    let socket = UdpSocket::bind(at(0)).await.unwrap();
    for n in 0..200u8 {
        let noise: Vec<u8> = (0..n).map(|i| i.wrapping_mul(n).wrapping_add(113)).collect();
        socket.send_to(&noise, server).await.unwrap();
    }
    assert_eq!(head(&ask(server, &good).await), (0, false, 1, 0));
}

#[tokio::test]
async fn a_pods_search_domains_end_at_the_cluster_or_outside() {
    let (_proxy, server) = server().await;
    // What a C library with a pod's resolv.conf asks for, in this order.
    for (name, expected) in [
        ("web.default.svc.cluster.local", (0, 1)),
        ("example.org.default.svc.cluster.local", (3, 0)),
        ("example.org.svc.cluster.local", (3, 0)),
        ("example.org.cluster.local", (3, 0)),
    ] {
        let (code, _, answers, _) = head(&ask(server, &query(name, A)).await);
        assert_eq!((code, answers), expected, "{name}");
    }
}

/// A name server with some names; it tells the length of what is too long for a datagram only over TCP.
async fn name_server(zone: &'static [(&'static str, [u8; 4])], count: Arc<AtomicUsize>) -> SocketAddr {
    let tcp = tokio::net::TcpListener::bind(at(0)).await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(addr).await.unwrap();
    let answer = move |packet: &[u8], is_udp: bool| {
        let mut answer = packet.to_vec();
        answer[2] |= 0x80;
        let lower = packet[12..].to_ascii_lowercase();
        let asked = zone.iter().find(|(name, _)| lower.starts_with(&query(name, A)[12..name.len() + 14]));
        let kind_is_a = packet[packet.len() - 4..packet.len() - 2] == [0, 1];
        match asked {
            Some((name, _)) if *name == "broken.example" => answer[3] |= 2,
            Some((name, _)) if *name == "long.example" && is_udp => answer[2] |= 2,
            Some((_, address)) if kind_is_a => {
                answer[7] = 1;
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
                answer.extend_from_slice(address);
            }
            Some(_) => {}
            None => answer[3] |= 3,
        }
        answer
    };
    tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            tokio::select! {
                datagram = udp.recv_from(&mut packet) => {
                    let (length, from) = datagram.unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                    udp.send_to(&answer(&packet[..length], true), from).await.unwrap();
                }
                accepted = tcp.accept() => {
                    let (mut stream, _) = accepted.unwrap();
                    let mut packet = vec![0; stream.read_u16().await.unwrap().into()];
                    stream.read_exact(&mut packet).await.unwrap();
                    let answer = answer(&packet, false);
                    stream.write_u16(answer.len() as u16).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        }
    });
    addr
}

fn own_servers(nameservers: Vec<SocketAddr>, searches: &[&str]) -> PodView {
    let mut pod = view("default");
    pod.dns = PodDns {
        policy: DnsPolicy::None,
        nameservers,
        searches: searches.iter().map(|search| (*search).to_owned()).collect(),
        timeout: Some(Duration::from_millis(500)),
        ..PodDns::default()
    };
    pod
}

#[tokio::test]
async fn a_pod_with_name_servers_of_its_own_asks_nobody_else() {
    let proxy = crate::support::proxy();
    proxy.set_routes(routes(vec![tcp("web", "10.43.0.7:80".parse().unwrap(), &[])]));
    let count = Arc::new(AtomicUsize::new(0));
    let zone = &[
        ("db.corp.example", [192, 0, 2, 1]),
        ("long.example", [192, 0, 2, 2]),
        ("broken.example", [0; 4]),
        ("node.example", [127, 0, 0, 1]),
    ];
    let server = name_server(zone, count.clone()).await;
    // The first does not answer at all: UDP to a socket nobody reads.
    let silent = UdpSocket::bind(at(0)).await.unwrap();
    let mut pod = own_servers(vec![server], &["corp.example."]);
    pod.hosts = vec![("192.0.2.77".parse().unwrap(), vec!["alias.example".into(), "other".into()])];
    for (name, expected) in [
        ("db", Ok("192.0.2.1")),
        ("db.corp.example.", Ok("192.0.2.1")),
        ("DB.corp.example", Ok("192.0.2.1")),
        ("long.example", Ok("192.0.2.2")),
        ("other", Ok("192.0.2.77")),
        ("ALIAS.example.", Ok("192.0.2.77")),
        ("web", Err(ErrorKind::NotFound)),
        ("web.default.svc.cluster.local", Err(ErrorKind::NotFound)),
        ("broken.example", Err(ErrorKind::Other)),
    ] {
        let found = proxy.lookup(name, &pod).await.map_err(|error| error.kind());
        assert_eq!(found, expected.map(|address| vec![address.parse().unwrap()]), "{name}");
    }
    let asked = count.load(Ordering::SeqCst);
    let two = own_servers(vec![silent.local_addr().unwrap(), server], &[]);
    assert_eq!(proxy.lookup("db.corp.example", &two).await.unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(count.load(Ordering::SeqCst), asked + 2, "one question of each kind");
    // A name that leads to localhost leads to the pod, where nothing listens.
    let request =
        http::Request::get(format!("http://node.example:{}/", server.port())).body(netproxy::empty()).unwrap();
    let answer = proxy.request(request, Arc::new(pod.clone())).await;
    assert!(matches!(answer, Err(netproxy::RequestError::Connect(..))));
    pod.dns.policy = DnsPolicy::ClusterFirst;
    assert_eq!(proxy.lookup("web", &pod).await.unwrap(), ["10.43.0.7".parse::<IpAddr>().unwrap()]);
    pod.dns.policy = DnsPolicy::Default;
    assert!(proxy.resolve("web", &pod).is_empty());
}

#[tokio::test]
async fn the_cluster_dns_as_a_pods_own_server_leads_to_services() {
    let (proxy, server) = server().await;
    let pod = proxy.serve_pod("203.0.113.2:8080".parse().unwrap(), named("pod"));
    proxy.set_routes(routes(vec![tcp("web", "203.0.113.1:80".parse().unwrap(), &[pod.addr()])]));
    let view = own_servers(vec![server], &["default.svc.cluster.local", "svc.cluster.local"]);
    for url in ["http://web/", "http://web.default/"] {
        let request = http::Request::get(url).body(netproxy::empty()).unwrap();
        // No socket has that address: it is found to be a Service's.
        let answer = proxy.request(request, Arc::new(view.clone())).await.unwrap();
        assert_eq!(text(answer).await.1, "pod", "{url}");
    }
}

/// A DNS server that asks these resolvers for what is not the cluster's.
fn asking(resolvers: &[SocketAddr], services: Vec<ServiceRoute>) -> (Proxy, SocketAddr, tempfile::TempPath) {
    let mut resolv_conf = tempfile::NamedTempFile::new().unwrap();
    for resolver in resolvers {
        writeln!(resolv_conf, "nameserver {resolver}").unwrap();
    }
    let mut config = config();
    config.dns = Some(at(0));
    config.resolv_conf = resolv_conf.path().to_owned();
    config.limits.dns_timeout = Duration::from_millis(400);
    let proxy = Proxy::new(config);
    proxy.set_routes(routes(services));
    let server = proxy.dns_address().unwrap();
    (proxy, server, resolv_conf.into_temp_path())
}

fn alias(name: &str, to: &str) -> ServiceRoute {
    ServiceRoute {
        namespace: "default".into(),
        name: name.into(),
        external_name: Some(to.into()),
        ..ServiceRoute::default()
    }
}

const ZONE: &[(&str, [u8; 4])] = &[("db.corp.example", [192, 0, 2, 1]), ("long.example", [192, 0, 2, 2])];

#[tokio::test]
async fn aliases_are_followed_in_the_cluster_and_outside() {
    let outside = name_server(ZONE, Arc::default()).await;
    let services = vec![
        tcp("web", "10.43.0.7:80".parse().unwrap(), &[]),
        alias("inner", "web.default.svc.cluster.local"),
        alias("twice", "inner.default.svc.cluster.local"),
        alias("outer", "DB.corp.example."),
        alias("nowhere", "nowhere.example"),
        alias("dangling", "none.default.svc.cluster.local"),
        alias("circle", "circle.default.svc.cluster.local"),
    ];
    let (proxy, server, _file) = asking(&[outside], services);
    for (name, expected, address) in [
        ("inner", (0, false, 2, 0), Some("10.43.0.7")),
        ("twice", (0, false, 3, 0), Some("10.43.0.7")),
        ("outer", (0, false, 2, 0), Some("192.0.2.1")),
        ("nowhere", (3, false, 1, 0), None),
        ("dangling", (3, false, 1, 1), None),
        ("circle", (2, false, 0, 0), None),
    ] {
        let answer = ask(server, &query(&format!("{name}.default.svc.cluster.local"), A)).await;
        assert_eq!(head(&answer), expected, "{name}");
        let found = proxy.lookup(name, &view("default")).await.ok();
        let address = address.map(|address: &str| vec![address.parse::<IpAddr>().unwrap()]);
        assert_eq!(found, address, "{name} for a guest");
    }
}

#[tokio::test]
async fn resolvers_that_fail_or_keep_silent_leave_it_to_the_next() {
    let silent = UdpSocket::bind(at(0)).await.unwrap();
    let refusing = UdpSocket::bind(at(0)).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let good = name_server(ZONE, count.clone()).await;
    let resolvers = [silent.local_addr().unwrap(), refusing.local_addr().unwrap(), good];
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = refusing.recv_from(&mut packet).await {
            packet[2] |= 0x80;
            packet[3] |= 5;
            refusing.send_to(&packet[..length], from).await.unwrap();
        }
    });
    let (_proxy, server, _file) = asking(&resolvers, Vec::new());
    assert_eq!(head(&ask(server, &query("db.corp.example", A)).await), (0, false, 1, 0));
    // Remembered, whatever the case of the name; a name that is not there is not, since nothing says how long.
    for _ in 0..3 {
        let answer = ask(server, &query("DB.corp.example", A)).await;
        assert_eq!(head(&answer), (0, false, 1, 0));
        assert!(answer[12..].starts_with(b"\x02DB\x04corp"), "the question as it was asked");
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let begun = std::time::Instant::now();
    assert_eq!(head(&ask(server, &query("none.example", A)).await).0, 3);
    assert!(begun.elapsed() < Duration::from_millis(400), "the silent one is asked last");
    // Truncated there: truncated here, and whole over TCP.
    assert_eq!(head(&ask(server, &query("long.example", A)).await), (0, true, 0, 0));
    assert_eq!(head(&ask_tcp(server, &query("long.example", A)).await), (0, false, 1, 0));
}

#[tokio::test]
async fn extended_queries_get_extended_answers() {
    let (_proxy, server) = server().await;
    let extended = |version: u8, bytes_max: u16| {
        let mut packet = query("db.default.svc.cluster.local", A);
        packet[11] = 1;
        packet.extend_from_slice(&[0, 0, 41]);
        packet.extend_from_slice(&bytes_max.to_be_bytes());
        packet.extend_from_slice(&[0, version, 0x80, 0, 0, 0]);
        packet
    };
    for (version, bytes_max, expected) in [(0, 512, (0, true, 28)), (0, 4096, (0, true, 73)), (1, 4096, (16, false, 0))]
    {
        let answer = hickory_proto::op::Message::from_vec(&ask(server, &extended(version, bytes_max)).await).unwrap();
        let edns = answer.edns.as_ref().unwrap();
        let code = u16::from(answer.metadata.response_code);
        assert_eq!((code, answer.metadata.truncation, answer.answers.len()), expected, "{version} {bytes_max}");
        assert!(edns.version() == 0 && edns.max_payload() == 1232 && edns.flags().dnssec_ok);
    }
}
