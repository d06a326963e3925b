//! Who is refused, and what a stranger may send.

use crate::harness::{Authority, Master, port_without_quic, soon, wait_state, welcome};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;
use sync::node::{self, LinkState};
use sync::{Down, Identity, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

async fn refusal(master: &Master, config: node::Config) -> String {
    let stop = CancellationToken::new();
    let link = node::dial(config, stop.clone());
    let state = wait_state(&link, "a refusal", |state| matches!(state, LinkState::Refused(_))).await;
    stop.cancel();
    assert!(master.sessions.is_empty(), "no session was opened");
    let LinkState::Refused(why) = state else { panic!("{state:?}") };
    why
}

/// Why a node that is none any more is sent away, after it has been told that nothing is its own.
async fn dismissal(master: &Master, config: node::Config) -> String {
    let stop = CancellationToken::new();
    let mut link = node::dial(config, stop.clone());
    let state = wait_state(&link, "a dismissal", |state| matches!(state, LinkState::Dismissed(_))).await;
    let told = soon("what is left", link.end.next()).await;
    assert!(matches!(&told, Some(Down::Reset { objects, .. }) if objects.is_empty()), "{told:?}");
    stop.cancel();
    assert!(master.sessions.is_empty(), "no session was opened");
    let LinkState::Dismissed(why) = state else { panic!("{state:?}") };
    why
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_not_good_are_refused_with_their_reason() {
    let master = Master::start(Limits::default());
    let (foreign, forged) = (Authority::new("others"), Authority::new("nodes"));
    let cases: [(&str, Identity, &str); 7] = [
        ("foreign", foreign.node("a"), "another authority has signed it"),
        ("of an authority that only has the name", forged.node("a"), "the master refused this node's certificate"),
        ("expired", master.node_ca.expired("a"), "it has expired"),
        ("of the server's authority", master.server_ca.node("a"), "another authority has signed it"),
        ("for a server", master.node_ca.server("system:node:a"), "the master refused this node's certificate"),
        ("a user's", master.node_ca.client("system:node:a", "people"), "its organization is not system:nodes"),
        ("not a node's", master.node_ca.client("admin", "system:nodes"), "its common name is not system:node:NAME"),
    ];
    for (what, identity, expected) in cases {
        let why = refusal(&master, master.dialling("a", identity, Limits::default())).await;
        assert!(why.contains(expected), "{what}: {why}");
    }
    master.banned.lock().unwrap().push("b".into());
    assert_eq!(dismissal(&master, master.node("b")).await, "node b was deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_tried_at_once() {
    let mut master = Master::start(Limits::default());
    let (renewed, identity) = watch::channel(Arc::new(master.node_ca.expired("a")));
    let link = node::dial(node::Config { identity, ..master.node("a") }, CancellationToken::new());
    wait_state(&link, "a refusal", |state| matches!(state, LinkState::Refused(_))).await;
    let began = Instant::now();
    renewed.send_replace(Arc::new(master.node_ca.node("a")));
    master.session().await;
    assert!(began.elapsed() < Duration::from_secs(10), "the pause after a refusal is 15 s and more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_of_another_authority_is_refused_by_the_node() {
    let master = Master::start(Limits::default());
    let stranger = Authority::new("server");
    let config = node::Config { server_ca: stranger.certificate.clone(), ..master.node("a") };
    let why = refusal(&master, config).await;
    assert!(why.contains("the master's certificate is not trusted"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_not_the_certificates_opens_nothing() {
    let master = Master::start(Limits::default());
    let stop = CancellationToken::new();
    let config = master.dialling("other", master.node_ca.node("a"), Limits::default());
    let link = node::dial(config, stop.clone());
    let state = wait_state(&link, "an error", |state| matches!(state, LinkState::Connecting { error: Some(_) })).await;
    assert!(format!("{state:?}").contains("the node says another name than its certificate"), "{state:?}");
    assert!(master.sessions.is_empty());
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_over_tcp_say_why_too() {
    let limits = Limits { quic_patience: Duration::from_millis(100), ..Limits::default() };
    let master = Master::start(limits);
    let (listener, _hole) = port_without_quic().await;
    let port = listener.local_addr().unwrap().port();
    master.serve_tcp(listener);
    master.banned.lock().unwrap().push("b".into());
    let config = node::Config { port, ..master.dialling("b", master.node_ca.node("b"), limits) };
    assert_eq!(dismissal(&master, config).await, "node b was deleted");
    let config = node::Config { port, ..master.dialling("a", master.node_ca.expired("a"), limits) };
    let why = refusal(&master, config).await;
    assert!(why.contains("it has expired"), "{why}");
}

/// A TLS connection with a node's certificate, for bytes of the test's choice.
async fn raw(master: &Master, port: u16, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let config = sync::tls::client(&master.server_ca.certificate, &master.node_ca.node("a"), alpn).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = sync::tls::SERVER_NAME.try_into().unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 2).to_be_bytes()[..], &[kind, 0], body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_oversized_frames_end_only_their_own_connection() {
    let mut master = Master::start(Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    master.serve_tcp(listener);
    let good = node::dial(master.node("good"), CancellationToken::new());
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    let hello = frame(1, br#"{"node":"a","version":1}"#);
    let cases: Vec<(&[u8], Vec<u8>, &str)> = vec![
        (b"coracle-control/1", vec![0xff; 64], "a frame of 4294967295 bytes; 16384 are allowed"),
        (b"coracle-control/1", frame(1, b"not json"), "the body of hello"),
        (b"coracle-control/1", frame(2, b"{}"), "something came before the hello"),
        (
            b"coracle-control/1",
            [hello.clone(), vec![1, 0, 0, 1, 2, 0]].concat(),
            "a frame of 16777217 bytes; 16777216 are allowed",
        ),
        (b"coracle-control/1", [hello.clone(), frame(90, b"")].concat(), "a frame of kind 90 is not known here"),
        (b"coracle-bulk/1", frame(48, br#"{"session":"none"}"#), "there is no such session"),
        (b"coracle-stream/1", frame(48, br#"{"session":"none","stream":1}"#), "there is no such session"),
        (b"coracle-bulk/1", frame(1, b"{}"), "something came before the join"),
    ];
    for (alpn, bytes, expected) in cases {
        let mut stream = raw(&master, port, alpn).await;
        stream.write_all(&bytes).await.unwrap();
        let mut said = Vec::new();
        // how the connection ends does not matter, but that it does
        let _ = soon("the end of the connection", stream.read_to_end(&mut said)).await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains(expected), "{said:?} should tell {expected:?}");
    }
    // a deflated frame that grows beyond all bounds
    let mut stream = raw(&master, port, b"coracle-control/1").await;
    let bomb = deflated_zeros();
    let head = [&(bomb.len() as u32 + 2).to_be_bytes()[..], &[1, 1]].concat();
    stream.write_all(&[head, bomb].concat()).await.unwrap();
    let mut said = Vec::new();
    let _ = soon("the end of the connection", stream.read_to_end(&mut said)).await;
    assert!(String::from_utf8_lossy(&said).contains("inflates to more than 16384 bytes"));
    assert!(!session.closed.is_cancelled(), "the good node's session lives on");
    drop(good);
}

/// Raw DEFLATE of a million zeros, which is a thousand bytes.
fn deflated_zeros() -> Vec<u8> {
    use std::io::Read;
    let mut out = Vec::new();
    let zeros = vec![0; 1 << 20];
    flate2::read::DeflateEncoder::new(&zeros[..], flate2::Compression::best()).read_to_end(&mut out).unwrap();
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_udp_harms_nobody() {
    let mut master = Master::start(Limits::default());
    let noisy = UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [1, 20, 1200, 1400, 60_000] {
        noisy.send_to(&vec![0xc3; length], master.address).unwrap();
    }
    let link = node::dial(master.node("a"), CancellationToken::new());
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    wait_state(&link, "the link", |state| matches!(state, LinkState::Up { .. })).await;
    timeout(Duration::from_millis(1), session.closed.cancelled()).await.unwrap_err();
}
