//! Ports of the node that lead to pods.

use std::net::SocketAddr;

use netproxy::{About, HostPort, Protocol, Proxy, Routes};
use tokio::net::{TcpStream, UdpSocket};

use crate::support::{at, client, config, get, named, tcp};

fn host_port(pod: &str, protocol: Protocol, at: SocketAddr, to: SocketAddr) -> HostPort {
    HostPort { namespace: "default".into(), pod: pod.into(), protocol, host_ip: Some(at.ip()), port: at.port(), to }
}

fn routes(host_ports: Vec<HostPort>) -> Routes {
    Routes { host_ports, ..Routes::default() }
}

#[tokio::test]
async fn a_host_port_leads_to_its_pod_and_follows_it() {
    let config = config();
    let node = config.node_addresses[0];
    let proxy = Proxy::new(config);
    let one = proxy.serve_pod(at(0), named("one"));
    let two = proxy.serve_pod(at(0), named("two"));
    let everywhere =
        |to| HostPort { host_ip: None, ..host_port("web", Protocol::Tcp, SocketAddr::new(node, 8080), to) };
    proxy.set_routes(routes(vec![everywhere(one.addr())]));
    assert_eq!(get(&client(), &format!("http://{node}:8080/")).await.1, "one");
    let kept = TcpStream::connect((node, 8080)).await.unwrap();
    proxy.set_routes(routes(vec![everywhere(two.addr())]));
    assert_eq!(get(&client(), &format!("http://{node}:8080/")).await.1, "two");
    proxy.set_routes(routes(vec![]));
    while TcpStream::connect((node, 8080)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    drop(kept);
}

#[tokio::test]
async fn localhost_leads_to_a_host_port_without_an_address() {
    let proxy = Proxy::new(config());
    let pod = proxy.serve_pod(at(0), named("pod"));
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let any = HostPort {
        host_ip: Some("0.0.0.0".parse().unwrap()),
        ..host_port("web", Protocol::Tcp, SocketAddr::new(at(0).ip(), free), pod.addr())
    };
    proxy.set_routes(routes(vec![any]));
    assert_eq!(get(&client(), &format!("http://127.0.0.1:{free}/")).await.1, "pod");
}

#[tokio::test]
async fn datagrams_go_through_a_host_port() {
    let proxy = Proxy::new(config());
    let server = UdpSocket::bind(at(0)).await.unwrap();
    let place = at(5353);
    proxy.set_routes(routes(vec![host_port("dgram", Protocol::Udp, place, server.local_addr().unwrap())]));
    let socket = UdpSocket::bind(at(0)).await.unwrap();
    socket.send_to(b"ask", place).await.unwrap();
    let mut packet = [0; 16];
    let (length, from) = server.recv_from(&mut packet).await.unwrap();
    assert_eq!(&packet[..length], b"ask");
    server.send_to(b"answer", from).await.unwrap();
    let (length, from) = socket.recv_from(&mut packet).await.unwrap();
    assert_eq!((&packet[..length], from), (&b"answer"[..], place));
}

#[tokio::test]
async fn a_place_that_is_taken_is_the_pods_problem() {
    let proxy = Proxy::new(config());
    let pod = proxy.serve_pod(at(0), named("pod"));
    let (vip, place, foreign) = (at(8000), at(8001), at(8002));
    let _taken = std::net::TcpListener::bind(foreign).unwrap();
    let mut table = routes(vec![
        host_port("first", Protocol::Tcp, place, pod.addr()),
        host_port("second", Protocol::Tcp, place, pod.addr()),
        host_port("third", Protocol::Tcp, vip, pod.addr()),
        host_port("fourth", Protocol::Tcp, foreign, pod.addr()),
    ]);
    table.services = vec![tcp("web", vip, &[pod.addr()])];
    proxy.set_routes(table);
    let mut told: Vec<_> = proxy
        .problems()
        .into_iter()
        .map(|problem| match problem.about {
            About::HostPort { pod, .. } => (pod, problem.message),
            other => panic!("{other:?}"),
        })
        .collect();
    told.sort();
    assert_eq!(
        told,
        [
            ("fourth".into(), format!("cannot listen on host port {foreign}: the address is in use")),
            ("second".into(), format!("cannot listen on host port {place}: pod default/first has it")),
            ("third".into(), format!("cannot listen on host port {vip}: service default/web has it")),
        ]
    );
    assert_eq!(get(&client(), &format!("http://{place}/")).await.1, "pod");
}
