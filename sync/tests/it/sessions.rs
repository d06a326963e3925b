//! Snapshot, delta, resume, writes, heartbeats, slow readers, restarts.

use crate::harness::{Books, Master, PATIENCE, Replica, change, key, object, soon, up, wait_state, welcome};
use crate::relay::{Relay, Weather};
use serde_json::json;
use state::{Change, Event, Expect, Revision, Write};
use std::net::UdpSocket;
use std::time::Duration;
use sync::node::{self, LinkState, Transport};
use sync::{Down, Limits, Position, Rejected, Up};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_its_slice_then_changes_and_resumes_after_a_cut() {
    let master = Master::start(Limits::default());
    let books = Books::new();
    books.grow(5);
    let relay = Relay::start(master.address, Weather::default()).await;
    let config = node::Config { port: relay.address.port(), ..master.node("a") };
    let sessions = take_sessions(master, &books);
    let mut link = node::dial(config, CancellationToken::new());
    let mut replica = Replica::default();
    replica.reach(&mut link, 5).await;
    assert_eq!((replica.resets, replica.events), (1, 0));
    let LinkState::Up { over: Transport::Quic, .. } = up(&link).await else { panic!("not over QUIC") };
    let head = books.grow(30);
    replica.reach(&mut link, head).await;
    assert_eq!((replica.resets, replica.events), (1, 30));
    // the session is ended by the master: the node comes back and continues
    sessions.cut_all();
    let head = books.grow(3);
    replica.reach(&mut link, head).await;
    assert_eq!((replica.resets, replica.events, &replica.welcomes[..]), (1, 33, &[false, true][..]));
    // a position that the master does not know any more
    *books.forgotten.lock().unwrap() = 1000;
    sessions.cut_all();
    let head = books.grow(2000);
    while replica.resets < 2 {
        replica.fold(soon("a reset", link.end.next()).await.unwrap());
    }
    replica.reach(&mut link, head).await;
    assert_eq!(books.began.lock().unwrap().len(), 3);
}

/// Serves the sessions by the books, and lets the test end them.
struct Sessions {
    open: std::sync::Arc<std::sync::Mutex<Vec<CancellationToken>>>,
    _master: Master,
}

impl Sessions {
    fn cut_all(&self) {
        self.open.lock().unwrap().drain(..).for_each(|closed| closed.cancel());
    }
}

fn take_sessions(mut master: Master, books: &Books) -> Sessions {
    let (pass, passed) = tokio::sync::mpsc::channel(8);
    let open: std::sync::Arc<std::sync::Mutex<Vec<CancellationToken>>> = Default::default();
    let known = open.clone();
    let (_, nothing) = tokio::sync::mpsc::channel(1);
    let mut sessions = std::mem::replace(&mut master.sessions, nothing);
    tokio::spawn(async move {
        while let Some(session) = sessions.recv().await {
            known.lock().unwrap().push(session.closed.clone());
            if pass.send(session).await.is_err() {
                return;
            }
        }
    });
    books.serve(passed);
    Sessions { open, _master: master }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_heartbeats_are_answered_or_end_with_the_connection() {
    let mut master = Master::start(Limits::default());
    let mut config = master.node("a");
    config.from = Some(Position { lineage: "l".into(), revision: Revision(7) });
    let mut link = node::dial(config, CancellationToken::new());
    let mut session = master.session().await;
    assert_eq!((&*session.node, &*session.hello.node), ("a", "a"));
    assert_eq!(session.hello.from, Some(Position { lineage: "l".into(), revision: Revision(7) }));
    // while there is no session, writers are turned away at once
    let uplink = link.end.uplink();
    assert!(matches!(soon("an answer", uplink.renew()).await, Err(Rejected::Disconnected)));
    session.end.down.send(welcome(true)).await.unwrap();
    assert!(matches!(soon("the welcome", link.end.next()).await, Some(Down::Welcome(_))));
    up(&link).await;

    let writer = link.end.uplink();
    let value = json!({"metadata": {"name": "w", "namespace": "n"}, "status": "x".repeat(3000)});
    let write = Write { key: key("w"), value: Some(value), expect: Expect::At(Revision(7)) };
    let writing = tokio::spawn(async move { writer.write(vec![write]).await });
    let Some(Up::Writes(batch)) = soon("the write", session.end.up.recv()).await else { panic!("no write") };
    let wanted = batch.writes[0].clone();
    let stored =
        state::Object::encode(wanted.key.resource.clone(), Revision(8), wanted.value.clone().unwrap()).unwrap();
    let event = Event { revision: Revision(8), change: Change::Modified, object: stored.into(), previous: None };
    batch.answer(Ok(vec![event.clone()]));
    let answered = writing.await.unwrap().unwrap();
    assert_eq!((answered[0].revision, answered[0].object.json()), (Revision(8), event.object.json()));

    let heart = link.end.uplink();
    let beating = tokio::spawn(async move { heart.renew().await });
    let Some(Up::Renew(renewal)) = soon("the heartbeat", session.end.up.recv()).await else { panic!("no heartbeat") };
    renewal.answer(Ok(()));
    beating.await.unwrap().unwrap();

    // one that has no answer when the connection goes
    let heart = link.end.uplink();
    let beating = tokio::spawn(async move { heart.renew().await });
    let unanswered = soon("the heartbeat", session.end.up.recv()).await;
    session.closed.cancel();
    assert!(matches!(soon("an answer", beating).await.unwrap(), Err(Rejected::Disconnected)));
    drop(unanswered);
    // and the end works on over the next connection
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    assert!(matches!(soon("the welcome", link.end.next()).await, Some(Down::Welcome(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_read_holds_up_nobody_else() {
    let mut master = Master::start(Limits::default());
    let slow = node::dial(master.node("slow"), CancellationToken::new());
    let slow_session = master.session().await;
    let mut quick = node::dial(master.node("quick"), CancellationToken::new());
    let quick_session = master.session().await;
    slow_session.end.down.send(welcome(true)).await.unwrap();
    quick_session.end.down.send(welcome(true)).await.unwrap();
    // incompressible, so that windows fill
    let mut seed = 1_u64;
    let mut noise = |revision: u64| {
        let text: String = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'0' + (seed >> 40) as u8 % 70)
        })
        .filter(char::is_ascii_alphanumeric)
        .take(60_000)
        .collect();
        let value = json!({"metadata": {"name": "o", "namespace": "n"}, "text": text});
        let object = state::Object::encode(key("o").resource, Revision(revision), value).unwrap();
        Down::Event(Event {
            revision: Revision(revision),
            change: Change::Modified,
            object: object.into(),
            previous: None,
        })
    };
    let message = noise(1);
    let mut sent = 0;
    while timeout(Duration::from_secs(1), slow_session.end.down.send(message.clone())).await.is_ok() {
        sent += 1;
        assert!(sent < 20_000, "what a node does not read must be bounded");
    }
    quick_session.end.down.send(change("q", 2)).await.unwrap();
    let reading = async {
        loop {
            if let Some(Down::Event(event)) = quick.end.next().await
                && *event.key() == key("q")
            {
                return event;
            }
        }
    };
    assert_eq!(soon("the other node's event", reading).await.object.json(), object("q", 2).json());
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_of_a_node_ends_the_one_before() {
    let mut master = Master::start(Limits::default());
    let _first = node::dial(master.node("a"), CancellationToken::new());
    let session = master.session().await;
    let stop = CancellationToken::new();
    let second = node::dial(master.node("a"), stop.clone());
    let _next = master.session().await;
    soon("the end of the first session", session.closed.cancelled()).await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_died_and_is_back_is_noticed_long_before_the_timeout() {
    let mut master = Master::start(Limits::default());
    let address = master.address;
    // the relay keeps the node's packets from the dead master's last words
    let relay = Relay::start(address, Weather::default()).await;
    let config = node::Config { port: relay.address.port(), ..master.node("a") };
    let mut link = node::dial(config, CancellationToken::new());
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    assert!(matches!(soon("the welcome", link.end.next()).await, Some(Down::Welcome(_))));
    relay.set_deaf(true);
    let (server_ca, node_ca) = {
        let spare = || crate::harness::Authority::new("spare");
        (std::mem::replace(&mut master.server_ca, spare()), std::mem::replace(&mut master.node_ca, spare()))
    };
    master.shutdown.cancel();
    soon("the master's end", master.door.closed()).await;
    drop((session, master));
    let bound = async {
        loop {
            match UdpSocket::bind(address) {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let socket = soon("the port", bound).await;
    let mut next = Master::on(socket, server_ca, node_ca, Limits::default());
    relay.set_deaf(false);
    let back = Instant::now();
    let session = next.session().await;
    // a keep-alive comes every 5 s, and its answer says that nobody knows the connection; the idle timeout is 30 s
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
    session.end.down.send(welcome(true)).await.unwrap();
    assert!(matches!(soon("the welcome", link.end.next()).await, Some(Down::Welcome(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_ends_with_its_node() {
    let mut master = Master::start(Limits::default());
    let stop = CancellationToken::new();
    let mut link = node::dial(master.node("a"), stop.clone());
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    assert!(matches!(soon("the welcome", link.end.next()).await, Some(Down::Welcome(_))));
    stop.cancel();
    soon("the end at the master", session.closed.cancelled()).await;
    assert!(soon("the end at the node", link.end.next()).await.is_none());
    assert!(soon("the end of packets", link.bulk.recv()).await.is_none());
    let other = node::dial(master.node("b"), CancellationToken::new());
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    wait_state(&other, "the link", |state| matches!(state, LinkState::Up { .. })).await;
    drop(other);
    timeout(PATIENCE, session.closed.cancelled()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_come_at_once_and_hear_the_same() {
    let mut master = Master::start(Limits::default());
    let books = Books::new();
    books.grow(5);
    let (_, nothing) = tokio::sync::mpsc::channel(1);
    books.serve(std::mem::replace(&mut master.sessions, nothing));
    let mut nodes = tokio::task::JoinSet::new();
    for n in 0..100 {
        let config = master.node(&format!("n{n}"));
        nodes.spawn(async move {
            let (mut link, mut replica) = (node::dial(config, CancellationToken::new()), Replica::default());
            replica.reach(&mut link, 8).await;
            replica.events
        });
    }
    let all = async {
        while books.began.lock().unwrap().len() < 100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("all sessions", all).await;
    books.grow(3);
    let heard = soon("all nodes", nodes.join_all()).await;
    assert!(heard.iter().all(|events| *events <= 3), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_sessions_and_their_receiver() {
    let mut master = Master::start(Limits::default());
    let link = node::dial(master.node("a"), CancellationToken::new());
    let session = master.session().await;
    session.end.down.send(welcome(true)).await.unwrap();
    up(&link).await;
    master.shutdown.cancel();
    assert!(soon("the end of sessions", master.sessions.recv()).await.is_none());
    soon("the end of the session", session.closed.cancelled()).await;
    let state =
        wait_state(&link, "the reason", |state| matches!(state, LinkState::Connecting { error: Some(_) })).await;
    assert!(format!("{state:?}").contains("the master goes down"), "{state:?}");
    soon("the master's end", master.door.closed()).await;
}
