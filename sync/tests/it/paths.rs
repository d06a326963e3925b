//! Bad paths: loss, delay and reordering, a NAT that forgets, UDP that is blocked.

use crate::harness::{Books, Master, Replica, port_without_quic, soon, up, wait_state, welcome};
use crate::relay::{Relay, Weather};
use std::net::UdpSocket;
use std::time::Duration;
use sync::node::{self, LinkState, Transport};
use sync::{Limits, Rejected};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_of_the_packets_lost_and_the_rest_late_and_disordered() {
    let mut master = Master::start(Limits::default());
    let weather = Weather { lost: 20, delay: Duration::from_millis(150) };
    let relay = Relay::start(master.address, weather).await;
    let config = node::Config { port: relay.address.port(), ..master.node("a") };
    let books = Books::new();
    let mut head = books.grow(5);
    let (_, nothing) = tokio::sync::mpsc::channel(1);
    books.serve(std::mem::replace(&mut master.sessions, nothing));
    let mut link = node::dial(config, CancellationToken::new());
    let mut replica = Replica::default();
    for _ in 0..5 {
        replica.reach(&mut link, head).await;
        head = books.grow(20);
    }
    replica.reach(&mut link, head).await;
    soon("a heartbeat", link.end.uplink().renew()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_address_changes_keeps_its_session() {
    let mut master = Master::start(Limits::default());
    let relay = Relay::start(master.address, Weather::default()).await;
    let config = node::Config { port: relay.address.port(), ..master.node("a") };
    let mut link = node::dial(config, CancellationToken::new());
    let mut session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    soon("the welcome", link.end.next()).await.unwrap();
    for _ in 0..2 {
        relay.rebind();
        let uplink = link.end.uplink();
        let beating = tokio::spawn(async move { uplink.renew().await });
        let Some(sync::Up::Renew(renewal)) = soon("the heartbeat", session.end.up.recv()).await else { panic!("none") };
        renewal.answer(Ok(()));
        soon("its answer", beating).await.unwrap().unwrap();
    }
    assert!(!session.closed.is_cancelled(), "it is the same session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_over_tcp_where_udp_is_blocked_and_comes_back() {
    let limits = Limits {
        quic_patience: Duration::from_millis(300),
        quic_again: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut master = Master::start(limits);
    let (listener, hole) = port_without_quic().await;
    let port = listener.local_addr().unwrap().port();
    master.serve_tcp(listener);
    let books = Books::new();
    books.grow(5);
    let (_, nothing) = tokio::sync::mpsc::channel(1);
    books.serve(std::mem::replace(&mut master.sessions, nothing));
    let config = node::Config { port, ..master.dialling("a", master.node_ca.node("a"), limits) };
    let mut link = node::dial(config, CancellationToken::new());
    let mut replica = Replica::default();
    replica.reach(&mut link, 5).await;
    assert!(matches!(up(&link).await, LinkState::Up { over: Transport::Tcp, .. }));
    soon("a heartbeat", link.end.uplink().renew()).await.unwrap();
    let head = books.grow(7);
    replica.reach(&mut link, head).await;
    // UDP is let through: packets to the hole reach the master
    forward(hole, master.address);
    wait_state(&link, "QUIC", |state| matches!(state, LinkState::Up { over: Transport::Quic, .. })).await;
    let head = books.grow(7);
    replica.reach(&mut link, head).await;
    assert_eq!((replica.resets, replica.events), (1, 14));
    assert_eq!(books.began.lock().unwrap()[..], [None, Some(12)]);
}

/// Makes a socket a relay of one node.
fn forward(near: UdpSocket, to: std::net::SocketAddr) {
    near.set_nonblocking(true).unwrap();
    tokio::spawn(async move {
        let near = tokio::net::UdpSocket::from_std(near).unwrap();
        let far = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (mut out, mut back, mut last) = (vec![0; 65536], vec![0; 65536], None);
        loop {
            tokio::select! {
                Ok((length, from)) = near.recv_from(&mut out) => {
                    last = Some(from);
                    let _ = far.send_to(&out[..length], to).await;
                }
                Ok((length, _)) = far.recv_from(&mut back) => {
                    if let Some(node) = last {
                        let _ = near.send_to(&back[..length], node).await;
                    }
                }
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_not_there_is_said_and_waited_for() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let master = Master::start(Limits::default());
    let limits = Limits { quic_patience: Duration::from_millis(200), ..Limits::default() };
    let config = node::Config { port: gone.port(), ..master.dialling("a", master.node_ca.node("a"), limits) };
    let link = node::dial(config, CancellationToken::new());
    assert!(matches!(soon("an answer", link.end.uplink().renew()).await, Err(Rejected::Disconnected)));
    let state = wait_state(&link, "an error", |state| matches!(state, LinkState::Connecting { error: Some(_) })).await;
    let LinkState::Connecting { error: Some(error) } = state else { panic!("no error") };
    assert!(error.contains("127.0.0.1"), "{error}");
}
