//! Calls and packets, over QUIC and over TCP.

use crate::harness::{FORWARDED, Master, answer_calls, port_without_quic, soon, up, welcome};
use bytes::Bytes;
use futures::StreamExt;
use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::time::Duration;
use sync::master::Session;
use sync::node::{self, LinkState, Transport};
use sync::{Attach, Call, CallError, Caller, Exec, Input, Limits, Logs, Output, PortForward, SendError, Uplink};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A link over a transport, with its node's calls answered.
pub struct Linked {
    pub uplink: Uplink,
    pub session: Session,
    caller: Caller,
    news: mpsc::UnboundedReceiver<&'static str>,
    node_bulk: sync::Bulk,
    _master: Master,
    _hole: Option<UdpSocket>,
    _stop: tokio_util::sync::DropGuard,
}

async fn linked(over: Transport) -> Linked {
    linked_with(over, Limits::default()).await
}

pub async fn linked_with(over: Transport, limits: Limits) -> Linked {
    let limits = Limits { quic_patience: Duration::from_millis(200), ..limits };
    let (mut master, config, hole) = match over {
        Transport::Quic => {
            let master = Master::start(limits);
            let config = master.node("a");
            (master, config, None)
        }
        Transport::Tcp => {
            let (listener, hole) = port_without_quic().await;
            let master = Master::start(limits);
            let config = node::Config {
                port: listener.local_addr().unwrap().port(),
                ..master.dialling("a", master.node_ca.node("a"), limits)
            };
            master.serve_tcp(listener);
            (master, config, Some(hole))
        }
    };
    let stop = CancellationToken::new();
    let link = node::dial(config, stop.clone());
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    let state = up(&link).await;
    assert!(matches!(state, LinkState::Up { over: got, .. } if got == over), "{state:?}");
    let (node_bulk, uplink) = (link.bulk.clone(), link.end.uplink());
    // the end must be read for the link to live: calls are
    let news = answer_calls(link.end);
    let caller = session.end.caller.clone();
    Linked { uplink, caller, news, node_bulk, session, _master: master, _hole: hole, _stop: stop.drop_guard() }
}

pub const EACH: [Transport; 2] = [Transport::Quic, Transport::Tcp];

fn logs(pod: &str) -> Call {
    Call::Logs(Logs { pod: pod.into(), ..Logs::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_carry_bytes_both_ways_and_half_close() {
    for over in EACH {
        let linked = linked(over).await;
        let (input, inputs) = mpsc::channel(4);
        let mut outputs = soon("the answer", linked.caller.call(Call::Exec(Exec::default()), inputs)).await.unwrap();
        let large = Bytes::from((0..200_000_u32).map(|n| n as u8).collect::<Vec<_>>());
        input.send(Input::Data(large.clone())).await.unwrap();
        let mut echo = Vec::new();
        while echo.len() < large.len() {
            let Some(Ok(Output::Stdout(piece))) = soon("the echo", outputs.next()).await else { panic!("no echo") };
            echo.extend_from_slice(&piece);
        }
        assert_eq!(echo, large);
        input.send(Input::Resize { columns: 80, rows: 24 }).await.unwrap();
        assert_eq!(soon("the size", outputs.next()).await, Some(Ok(Output::Stderr(Bytes::from_static(b"80x24")))));
        input.send(Input::End).await.unwrap();
        drop(input);
        assert_eq!(soon("the end", outputs.next()).await, Some(Ok(Output::Exit(200_000))));
        assert_eq!(soon("the end", outputs.next()).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_come_as_they_are() {
    for over in EACH {
        let linked = linked(over).await;
        let refused = soon("the refusal", linked.caller.call(logs("missing"), sync::no_input())).await;
        assert_eq!(refused.err(), Some(CallError::NotFound("pods \"missing\" not found".into())));
        let mut usage = soon("the answer", linked.caller.call(Call::Usage, sync::no_input())).await.unwrap();
        assert_eq!(soon("a piece", usage.next()).await, Some(Ok(Output::Stdout(Bytes::from_static(b"{")))));
        assert_eq!(soon("an error", usage.next()).await, Some(Err(CallError::Failed("it broke".into()))));
        assert_eq!(soon("the end", usage.next()).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_when_nobody_waits_for_it_any_more() {
    for over in EACH {
        let mut linked = linked(over).await;
        let mut log = soon("the log", linked.caller.call(logs("p"), sync::no_input())).await.unwrap();
        assert!(matches!(soon("a line", log.next()).await, Some(Ok(Output::Stdout(_)))));
        drop(log);
        assert_eq!(soon("the node's notice", linked.news.recv()).await, Some("log dropped"));
        // a client that vanishes without the end of its input
        let (input, inputs) = mpsc::channel(4);
        let outputs = soon("the answer", linked.caller.call(Call::Exec(Exec::default()), inputs)).await.unwrap();
        drop(input);
        assert_eq!(soon("the node's notice", linked.news.recv()).await, Some("client gone"));
        drop(outputs);
        // a node's part that reads no input: the client learns it
        let (input, inputs) = mpsc::channel(4);
        let mut outputs =
            soon("the answer", linked.caller.call(Call::Attach(Attach::default()), inputs)).await.unwrap();
        let reading = async { while outputs.next().await.is_some() {} };
        let writing = async { while input.send(Input::Data(Bytes::from_static(b"x"))).await.is_ok() {} };
        soon("both ends", async { tokio::join!(reading, writing) }).await;
        // the end of the session ends calls
        let mut log = soon("the log", linked.caller.call(logs("p"), sync::no_input())).await.unwrap();
        linked.session.closed.cancel();
        let ended = async {
            loop {
                match log.next().await {
                    Some(Ok(_)) => {}
                    end => return end,
                }
            }
        };
        assert_eq!(soon("the end", ended).await, Some(Err(CallError::Disconnected)));
        assert_eq!(soon("the node's notice", linked.news.recv()).await, Some("log dropped"));
        let late = soon("an answer", linked.caller.call(logs("p"), sync::no_input())).await;
        assert_eq!(late.err(), Some(CallError::Disconnected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_read_waits_and_others_do_not() {
    let mut linked = linked(Transport::Quic).await;
    let forward = Call::PortForward(PortForward::default());
    let mut stuck = soon("the answer", linked.caller.call(forward, sync::no_input())).await.unwrap();
    assert!(matches!(soon("a piece", stuck.next()).await, Some(Ok(Output::Stdout(_)))));
    // what it gives away stops growing
    let mut before = 0;
    let settled = async {
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = FORWARDED.load(Ordering::Relaxed);
            if now == before {
                return now;
            }
            before = now;
        }
    };
    let pieces = soon("back-pressure", settled).await;
    assert!(pieces < 1000, "{pieces} pieces of 32 KiB are under way");
    let mut log = soon("the log", linked.caller.call(logs("p"), sync::no_input())).await.unwrap();
    assert!(matches!(soon("a line", log.next()).await, Some(Ok(Output::Stdout(_)))));
    drop(stuck);
    assert_eq!(soon("the node's notice", linked.news.recv()).await, Some("forward dropped"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_cross_and_too_large_ones_do_not() {
    for over in EACH {
        let linked = linked(over).await;
        let (near, far) = (&linked.session.bulk, &linked.node_bulk);
        for bulk in [near, far] {
            soon("the bulk connection", bulk.is_up().wait_for(|is_up| *is_up)).await.unwrap();
            assert!(bulk.max_packet() >= 1100, "{}", bulk.max_packet());
        }
        for (from, to) in [(near, far), (far, near)] {
            let packet = Bytes::from(vec![9; 1100]);
            let crossing = async {
                // datagrams may be lost, even here
                loop {
                    from.send(packet.clone()).unwrap();
                    tokio::select! {
                        got = to.recv() => return got,
                        () = sleep(Duration::from_millis(500)) => {}
                    }
                }
            };
            assert_eq!(soon("a packet", crossing).await, Some(packet.clone()));
        }
        assert_eq!(near.send(Bytes::from(vec![9; 70_000])), Err(SendError::TooLarge));
        linked.session.closed.cancel();
        let drained = async { while near.recv().await.is_some() {} };
        soon("the end of packets", drained).await;
        assert_eq!((near.max_packet(), near.send(Bytes::new())), (0, Err(SendError::Down)));
    }
}
