//! Two nodes' stacks on a wire in memory that may lose packets, with real sockets of pods at both ends.

use super::*;
use crate::policy::Isolation;
use std::sync::atomic::AtomicU32;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

const MTU: u16 = 1380;
const HEADROOM: usize = 3;

/// Two nodes of one cluster, which is another one for each test.
struct Nodes {
    one: Stack,
    other: Stack,
}

/// Loses every so many-th packet; 0: none.
fn nodes(lost: u32) -> Nodes {
    let claimed = || {
        let (pods, services) = ("10.197.0.0/16".parse().unwrap(), "10.198.0.0/16".parse().unwrap());
        Loopback::claim(pods, services).unwrap()
    };
    let node = |own: &str, loopback| {
        Stack::new(StackConfig {
            cluster: "10.197.0.0/16".parse().unwrap(),
            own: own.parse().unwrap(),
            loopback,
            mtu: MTU,
            headroom: HEADROOM,
            data: tokio::runtime::Handle::current(),
        })
    };
    let (one, other) = (node("10.197.1.0/24", claimed()), node("10.197.2.0/24", claimed()));
    for (from, to) in [(&one, &other), (&other, &one)] {
        let (wire, mut packets) = mpsc::channel::<Bytes>(512);
        let count = AtomicU32::new(0);
        from.attach(Some(Box::new(move |packet: BytesMut| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            if lost == 0 || number % lost != lost - 1 {
                let _ = wire.try_send(packet.freeze().slice(HEADROOM..));
            }
            true
        })));
        let to = to.clone();
        tokio::spawn(async move {
            while let Some(packet) = packets.recv().await {
                to.deliver(&packet).await;
            }
        });
    }
    Nodes { one, other }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A pod's listener, and its address in the cluster.
async fn listen(node: &Stack, pod: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(node.local(address(pod))).await.unwrap();
    let shown = node.shown(listener.local_addr().unwrap(), Protocol::Tcp);
    (listener, shown)
}

/// A pod's connection, as a guest makes it.
async fn connect(node: &Stack, pod: &str, to: SocketAddr) -> io::Result<TcpStream> {
    dial(node.local(address(pod)), node.reach(to, Protocol::Tcp)).await
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_carries_both_ways_and_shows_who_connects() {
    let nodes = nodes(0);
    let (listener, to) = listen(&nodes.other, "10.197.2.9:0").await;
    let mut client = connect(&nodes.one, "10.197.1.7:0", to).await.unwrap();
    let (mut server, peer) = listener.accept().await.unwrap();
    assert_eq!(nodes.other.shown(peer, Protocol::Tcp), nodes.one.shown(client.local_addr().unwrap(), Protocol::Tcp));
    assert_eq!(nodes.one.shown(client.peer_addr().unwrap(), Protocol::Tcp), to);

    let sent = pattern(3_000_000);
    let expected = sent.clone();
    let upload = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    });
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert!(heard == expected, "{} bytes", heard.len());
    server.write_all(&expected[..100_000]).await.unwrap();
    drop(server);
    assert!(upload.await.unwrap() == expected[..100_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_is_sent_again() {
    let nodes = nodes(61);
    let (listener, to) = listen(&nodes.other, "10.197.2.9:0").await;
    let mut client = nodes.one.connect(to).await.unwrap();
    let (mut server, peer) = listener.accept().await.unwrap();
    assert_eq!(nodes.other.shown(peer, Protocol::Tcp).ip(), address("10.197.1.0:0").ip(), "the node itself");
    let sent = pattern(400_000);
    let expected = sent.clone();
    tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        // kept open until the other end is done
        let _ = client.read_to_end(&mut Vec::new()).await;
    });
    let mut heard = Vec::new();
    tokio::time::timeout(Duration::from_secs(40), server.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert!(heard == expected, "{} bytes", heard.len());
}

#[tokio::test]
async fn nobody_there_is_refused_and_a_break_is_passed_on() {
    let nodes = nodes(0);
    let nobody = address("10.197.2.9:4444");
    assert_eq!(nodes.one.connect(nobody).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let mut client = connect(&nodes.one, "10.197.1.7:0", nobody).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let (listener, to) = listen(&nodes.other, "10.197.2.9:0").await;
    for server_breaks in [true, false] {
        let mut client = connect(&nodes.one, "10.197.1.7:0", to).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
        let (breaks, mut sees) = if server_breaks { (server, client) } else { (client, server) };
        crate::listener::reset(breaks);
        assert_eq!(sees.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    // the places of what has ended are given back
    let held = || lock(&nodes.one.0.flows).len() + lock(&nodes.other.0.flows).len();
    tokio::time::timeout(Duration::from_secs(5), async {
        while held() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn who_does_not_read_is_waited_for() {
    let nodes = nodes(0);
    let (listener, to) = listen(&nodes.other, "10.197.2.9:0").await;
    let client = connect(&nodes.one, "10.197.1.7:0", to).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let (mut sent, piece) = (0, vec![1; 65_536]);
    while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(300), client.writable()).await {
        sent += client.try_write(&piece).unwrap_or(0);
        assert!(sent < 64 << 20, "nothing holds it back");
    }
    drop(client);
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard.len(), sent);
}

#[tokio::test]
async fn datagrams_go_both_ways() {
    let nodes = nodes(0);
    let socket = async |node: &Stack, at: &str| UdpSocket::bind(node.local(address(at))).await.unwrap();
    let server = socket(&nodes.other, "10.197.2.9:5300").await;
    let to = address("10.197.2.9:5300");
    let client = socket(&nodes.one, "10.197.1.7:0").await;
    let own = nodes.one.shown(client.local_addr().unwrap(), Protocol::Udp);
    let place = nodes.one.reach(to, Protocol::Udp);
    let mut buffer = vec![0; 65_535];
    for bytes in [1, 1352, 1353, 20_000] {
        let word = pattern(bytes);
        client.send_to(&word, place).await.unwrap();
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(nodes.other.shown(from, Protocol::Udp), own);
        assert!(buffer[..length] == word);
        server.send_to(&word, nodes.other.reach(own, Protocol::Udp)).await.unwrap();
        let (length, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(nodes.one.shown(from, Protocol::Udp), to);
        assert!(buffer[..length] == word);
    }
    // a socket of every address is its pod's, once it was told of
    let open = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let port = open.local_addr().unwrap().port();
    nodes.one.sends_from(address("10.197.1.8:0").ip(), port);
    open.send_to(b"who", place).await.unwrap();
    let (length, from) = server.recv_from(&mut buffer).await.unwrap();
    assert_eq!(
        (&buffer[..length], nodes.other.shown(from, Protocol::Udp)),
        (&b"who"[..], (address("10.197.1.8:0").ip(), port).into())
    );
    server.send_to(b"you", from).await.unwrap();
    let (length, from) = open.recv_from(&mut buffer).await.unwrap();
    assert_eq!((&buffer[..length], nodes.one.shown(from, Protocol::Udp)), (&b"you"[..], to));
    // connected it hears from nobody else, and nowhere else
    open.connect(place).await.unwrap();
    assert_eq!(nodes.one.shown(open.local_addr().unwrap(), Protocol::Udp), address(&format!("10.197.1.8:{port}")));
    open.send(b"two").await.unwrap();
    let (_, from) = server.recv_from(&mut buffer).await.unwrap();
    server.send_to(b"too", from).await.unwrap();
    let length = open.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"too");
}

#[tokio::test]
async fn a_node_out_of_reach_is_told_at_once() {
    let nodes = nodes(0);
    nodes.one.attach(Some(Box::new(|_| false)));
    let connecting = nodes.one.connect(address("10.197.2.9:80"));
    let told = tokio::time::timeout(Duration::from_secs(3), connecting).await.unwrap();
    assert_eq!(told.unwrap_err().kind(), io::ErrorKind::HostUnreachable);
}

/// Policies of a node on which nobody may come to this pod, or it may go nowhere.
fn closed(pod: &str, is_ingress: bool) -> Policies {
    let (none, isolation) = (Some(Vec::new()), Isolation::default());
    let isolation = match is_ingress {
        true => Isolation { ingress: none, ..isolation },
        false => Isolation { egress: none, ..isolation },
    };
    let nodes = ["10.197.1.0:0", "10.197.2.0:0"].map(|node| address(node).ip());
    Policies { nodes: nodes.into(), pods: [(address(pod).ip(), isolation)].into(), ..Policies::default() }
}

#[tokio::test]
async fn policies_hold_for_connections_to_and_from_elsewhere() {
    for is_ingress in [true, false] {
        let nodes = nodes(0);
        let (listener, to) = listen(&nodes.other, "10.197.2.9:0").await;
        let (node, pod) = if is_ingress { (&nodes.other, "10.197.2.9:0") } else { (&nodes.one, "10.197.1.7:0") };
        node.policies().store(Arc::new(closed(pod, is_ingress)));
        let mut client = connect(&nodes.one, "10.197.1.7:0", to).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        // nodes may, and so may what nothing was said of
        nodes.one.connect(to).await.unwrap();
        listener.accept().await.unwrap();
        if !is_ingress {
            connect(&nodes.one, "10.197.1.8:0", to).await.unwrap();
            listener.accept().await.unwrap();
        }
    }
}

#[tokio::test]
async fn policies_hold_for_datagrams_and_answers_come() {
    let nodes = nodes(0);
    let socket = async |node: &Stack, at: &str| UdpSocket::bind(node.local(address(at))).await.unwrap();
    let server = socket(&nodes.other, "10.197.2.9:5301").await;
    let client = socket(&nodes.one, "10.197.1.7:0").await;
    let own = nodes.one.shown(client.local_addr().unwrap(), Protocol::Udp);
    let to = nodes.one.reach(address("10.197.2.9:5301"), Protocol::Udp);
    let mut word = [0; 8];
    // nobody comes to the client but with an answer, and the server begins nothing
    nodes.one.policies().store(Arc::new(closed("10.197.1.7:0", true)));
    nodes.other.policies().store(Arc::new(closed("10.197.2.9:0", false)));
    server.send_to(b"first", nodes.other.reach(own, Protocol::Udp)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), client.recv_from(&mut word)).await.is_err());
    client.send_to(b"ask", to).await.unwrap();
    let (length, from) = server.recv_from(&mut word).await.unwrap();
    assert_eq!(&word[..length], b"ask");
    server.send_to(b"told", from).await.unwrap();
    let (length, _) = client.recv_from(&mut word).await.unwrap();
    assert_eq!(&word[..length], b"told");
    // nor does anybody else send the client anything
    let stranger = socket(&nodes.other, "10.197.2.8:0").await;
    stranger.send_to(b"psst", nodes.other.reach(own, Protocol::Udp)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), client.recv_from(&mut word)).await.is_err());
}
