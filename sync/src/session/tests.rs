//! Both machines against each other: tables of what is refused, and a property over interleavings and cuts.

use super::*;
use crate::wire::{self, Bounds, Frame, kind};
use crate::{ClusterFacts, Down, Hello, Limits, Position, Progress, Rejected, VERSION, Welcome};
use bytes::{Bytes, BytesMut};
use manifests::Resource;
use proptest::prelude::*;
use serde_json::{Value, json};
use state::{Change, Event, Expect, Key, Object, Revision, World, Write};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const LIMITS: Limits = Limits {
    down_messages_max: 8,
    up_batches_max: 4,
    calls_max: 4,
    calls_running_max: 4,
    asks_max: 8,
    frame_bytes_max: 100_000,
    body_bytes_max: 600_000,
    snapshot_bytes_max: 1_000_000,
    nodes_max: 4,
    udp_buffer_bytes: 0,
    segmentation_offload: false,
    quic_patience: std::time::Duration::ZERO,
    quic_again: std::time::Duration::ZERO,
};

fn facts() -> ClusterFacts {
    ClusterFacts {
        cluster_cidr: "10.42.0.0/16".into(),
        service_cidr: "10.43.0.0/16".into(),
        cluster_dns: Some("10.43.0.10".parse().unwrap()),
        cluster_domain: "cluster.local".into(),
        api: "127.0.0.1:6443".parse().unwrap(),
        loopback: false,
        node_ca_pem: "node".into(),
        server_ca_pem: "server".into(),
    }
}

fn welcome(lineage: &str, resumed: bool) -> Down {
    Down::Welcome(Welcome { lineage: lineage.into(), cluster: facts(), resumed })
}

fn hello(from: Option<Position>) -> Hello {
    Hello { node: "a".into(), from, version: VERSION, agent: "1".into() }
}

fn key(name: &str) -> Key {
    Key::new(Resource::new("", "things"), "n", name)
}

fn value(name: &str, content: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "content": content})
}

fn object(name: &str, revision: u64, content: u64) -> Arc<Object> {
    Arc::new(Object::encode(key(name).resource, Revision(revision), value(name, content)).unwrap())
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let bounds = Bounds { frame_bytes_max: LIMITS.frame_bytes_max, body_bytes_max: LIMITS.body_bytes_max };
    let mut buffer = BytesMut::from(bytes);
    let frames = std::iter::from_fn(|| bounds.take(&mut buffer).unwrap()).collect();
    assert!(buffer.is_empty());
    frames
}

fn frame(kind: u8, body: &Value) -> Frame {
    Frame { kind, body: serde_json::to_vec(body).unwrap().into() }
}

/// A node that has heard the given messages.
fn node(heard: &[Down]) -> NodeSession<u64> {
    let (mut node, _) = NodeSession::begin(&hello(None), LIMITS);
    let mut master = master();
    for message in heard {
        for bytes in master.send(message, &EventCache::default()).unwrap() {
            node.receive(frames(&bytes).remove(0)).unwrap();
        }
    }
    node
}

/// A master that has heard a hello.
fn master() -> MasterSession {
    let mut master = MasterSession::new("a".into(), "s".into(), LIMITS);
    let (_, bytes) = NodeSession::<u64>::begin(&hello(None), LIMITS);
    assert!(
        matches!(master.receive(frames(&bytes).remove(0)), Ok(Some(MasterAction::Hello(said))) if said == hello(None))
    );
    master
}

#[test]
fn a_node_ends_a_session_that_breaks_the_protocol() {
    let reset = Down::Reset { revision: Revision(1), objects: Vec::new() };
    let goodbye = frame(kind::GOODBYE, &json!({"reason": "go", "refused": true}));
    let welcomed = wire::encode(
        kind::WELCOME,
        &wire::to_json(&json!({
        "version": 9, "lineage": "l", "cluster": facts(), "resumed": false, "session": "s"})),
    );
    let reached = frame(kind::REACHED, &json!({"revision": 5}));
    let cases: Vec<(Vec<Down>, Frame, &str)> = vec![
        (vec![], reached.clone(), "the other end broke the protocol: something came before the welcome"),
        (vec![], goodbye, "go"),
        (
            vec![],
            frames(&welcomed).remove(0),
            "the other end broke the protocol: the master speaks a version that was not offered",
        ),
        (vec![], frame(200, &json!({})), "ok"),
        (
            vec![welcome("l", false)],
            reached.clone(),
            "the other end broke the protocol: a change came before the snapshot it changes",
        ),
        (vec![welcome("l", false), reset.clone()], reached.clone(), "ok"),
        (vec![welcome("l", true)], reached, "ok"),
        (
            vec![welcome("l", true)],
            frame(100, &json!({})),
            "the other end sent what cannot be read: a frame of kind 100 is not known here",
        ),
        (
            vec![welcome("l", true)],
            frame(kind::ANSWER, &json!({"id": 7, "done": []})),
            "the other end broke the protocol: an answer to what was not asked",
        ),
        (
            vec![welcome("l", true)],
            frame(kind::EVENT, &json!([])),
            "the other end sent what cannot be read: the body of event is cut short",
        ),
        (
            vec![welcome("l", true)],
            frame(kind::DIAL, &json!({"stream": -1})),
            "the other end sent what cannot be read: the body of dial: invalid value: integer `-1`, expected u64 at line 1 column 12",
        ),
    ];
    for (heard, frame, expected) in cases {
        let got = node(&heard).receive(frame.clone()).map_or_else(|error| error.chain(), |_| "ok".into());
        assert_eq!(got, expected, "{frame:?}");
    }
}

#[test]
fn a_master_ends_a_session_that_breaks_the_protocol() {
    let writes = |id: u64| frame(kind::WRITES, &json!({"id": id, "writes": []}));
    let mut master = master();
    assert!(matches!(master.receive(writes(1)), Ok(Some(MasterAction::Writes(1, _)))));
    let cases = [
        (writes(1), "the other end broke the protocol: a number was used twice"),
        (frame(kind::HELLO, &json!({"node": "a", "version": 1})), "the other end broke the protocol: a second hello"),
        (
            frame(kind::EVENT, &json!({})),
            "the other end sent what cannot be read: a frame of kind 18 is not known here",
        ),
        (frame(130, &json!({})), "ok"),
        (frame(kind::RENEW, &json!({"id": 2})), "ok"),
        (writes(3), "ok"),
        (writes(4), "ok"),
        (writes(5), "the other end broke the protocol: too much is unanswered"),
    ];
    for (frame, expected) in cases {
        let got = master.receive(frame.clone()).map_or_else(|error| error.chain(), |_| "ok".into());
        assert_eq!(got, expected, "{frame:?}");
    }
    let first = [
        (
            json!({"node": "b", "version": 1}),
            "the other end broke the protocol: the node says another name than its certificate",
        ),
        (json!({"node": "a", "version": 0}), "the other end broke the protocol: the node speaks no version"),
        (json!({"node": "a", "version": 7, "later": {"x": 1}}), "ok"),
    ];
    for (said, expected) in first {
        let mut master = MasterSession::new("a".into(), "s".into(), LIMITS);
        let got = master.receive(frame(kind::HELLO, &said)).map_or_else(|error| error.chain(), |_| "ok".into());
        assert_eq!(got, expected, "{said}");
    }
    let mut early = MasterSession::new("a".into(), "s".into(), LIMITS);
    assert!(early.receive(writes(1)).is_err() && early.bounds().frame_bytes_max < LIMITS.frame_bytes_max);
}

#[test]
fn a_master_welcomes_first_and_once() {
    let (mut master, cache) = (master(), EventCache::default());
    assert!(master.send(&Down::Reached(Revision(1)), &cache).is_err());
    assert!(master.send(&welcome("l", true), &cache).is_ok());
    assert!(master.send(&welcome("l", true), &cache).is_err());
}

#[test]
fn a_large_slice_comes_in_parts_and_too_large_a_one_not_at_all() {
    let large = |count: u64| -> Vec<Arc<Object>> {
        let text: String =
            (0..60_000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
        (0..count)
            .map(|n| {
                let name = format!("o{n}");
                let value = json!({"metadata": {"name": name, "namespace": "n"}, "text": text});
                Arc::new(Object::encode(key("").resource, Revision(n + 1), value).unwrap())
            })
            .collect()
    };
    let (mut master, cache) = (master(), EventCache::default());
    let (mut node, _) = NodeSession::<u64>::begin(&hello(None), LIMITS);
    let mut tell = |message: &Down| {
        let mut actions = Vec::new();
        let parts = master.send(message, &cache)?;
        for bytes in &parts {
            actions.extend(node.receive(frames(bytes).remove(0))?);
        }
        Ok::<_, SessionError>((parts.len(), actions))
    };
    tell(&welcome("l", false)).unwrap();
    let objects = large(12);
    let (parts, actions) = tell(&Down::Reset { revision: Revision(20), objects: objects.clone() }).unwrap();
    assert_eq!(parts, 2);
    let [NodeAction::Deliver(Down::Reset { revision, objects: got })] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((revision.0, got.len()), (20, 12));
    assert!(got.iter().zip(&objects).all(|(got, sent)| got.json() == sent.json() && got.revision() == sent.revision()));
    let error = tell(&Down::Reset { revision: Revision(30), objects: large(18) }).unwrap_err();
    assert_eq!(error.to_string(), "the node's slice: more than 1000000 bytes");
}

#[test]
fn answers_bring_the_objects_that_were_written() {
    let mut node = node(&[welcome("l", true)]);
    let mut master = master();
    let (old, fresh) = (key("old"), key("new"));
    let writes = vec![
        Write { key: fresh.clone(), value: Some(value("new", 1)), expect: Expect::Absent },
        Write { key: old.clone(), value: None, expect: Expect::At(Revision(3)) },
    ];
    let bytes = node.write(writes.clone(), 77).unwrap();
    let Ok(Some(MasterAction::Writes(id, got))) = master.receive(frames(&bytes).remove(0)) else { panic!("writes") };
    assert_eq!(got, writes);
    let made = |object: Arc<Object>, change| Event { revision: object.revision(), change, object, previous: None };
    // the first one is kept otherwise than it was written
    let events = vec![made(object("new", 8, 2), Change::Added), made(object("old", 9, 0), Change::Deleted)];
    let bytes = master.answer(id, Ok(events));
    let actions = node.receive(frames(&bytes).remove(0)).unwrap();
    let [NodeAction::Answer(77, Ok(events))] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(events[0].object.json(), object("new", 8, 2).json());
    assert_eq!((events[1].key(), events[1].revision, events[1].change), (&old, Revision(9), Change::Deleted));
    let huge = Write { key: fresh, value: Some(json!({"text": "x".repeat(200_000)})), expect: Expect::Absent };
    assert!(matches!(node.write(vec![huge], 78), Err((78, Rejected::Failed(_)))));
    let renewal = node.renew(79);
    let Ok(Some(MasterAction::Renew(id))) = master.receive(frames(&renewal).remove(0)) else { panic!("renewal") };
    let bytes = master.renewed(id, Err(Rejected::Failed("no".into())));
    let actions = node.receive(frames(&bytes).remove(0)).unwrap();
    assert!(matches!(&actions[..], [NodeAction::Answer(79, Err(Rejected::Failed(why)))] if why == "no"));
    node.write(writes, 80).unwrap();
    assert_eq!(node.end(), [80]);
}

/// What happens, in the order that proptest chooses.
#[derive(Clone, Debug)]
enum Step {
    /// The cluster changes: one revision, one or two objects of the slice.
    Change(u8, Option<u8>, bool),
    /// The master puts a message of its feed on the wire.
    Feed,
    /// So many bytes arrive.
    Down(usize),
    Up(usize),
    /// The node writes.
    Write(u8),
    /// The connection breaks: what is under way is lost.
    Cut,
    /// The history forgets all but the newest revisions.
    Compact(u8),
    /// The master starts anew: another lineage.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8, proptest::option::of(0..6_u8), any::<bool>()).prop_map(|(a, b, gone)| Step::Change(a, b, gone)),
        6 => Just(Step::Feed),
        6 => (1..400_usize).prop_map(Step::Down),
        3 => (1..400_usize).prop_map(Step::Up),
        2 => (0..6_u8).prop_map(Step::Write),
        1 => Just(Step::Cut),
        1 => (0..5_u8).prop_map(Step::Compact),
        1 => Just(Step::Restart),
    ]
}

type Contents = BTreeMap<String, u64>;

/// A master, a node and the bytes between them.
struct Sea {
    world: World,
    history: VecDeque<Event>,
    first_known: u64,
    contents: BTreeMap<u64, Contents>,
    lineages: Vec<(String, u64)>,
    master: Option<MasterSession>,
    fed: u64,
    outbox: VecDeque<Down>,
    node: NodeSession<u64>,
    view: World,
    progress: Progress,
    down: BytesMut,
    up: BytesMut,
    asked: u64,
    unanswered: BTreeSet<u64>,
    resumed: usize,
}

fn contents(world: &World) -> Contents {
    world.iter().map(|object| (object.key().name.to_string(), object.value()["content"].as_u64().unwrap())).collect()
}

impl Sea {
    fn new() -> Self {
        let (node, bytes) = NodeSession::begin(&hello(None), LIMITS);
        Self {
            world: World::default(),
            history: VecDeque::new(),
            first_known: 0,
            contents: BTreeMap::from([(0, Contents::new())]),
            lineages: vec![("l0".into(), 0)],
            master: Some(MasterSession::new("a".into(), "s".into(), LIMITS)),
            fed: 0,
            outbox: VecDeque::new(),
            node,
            view: World::default(),
            progress: Progress::default(),
            down: BytesMut::new(),
            up: BytesMut::from(&bytes[..]),
            asked: 0,
            unanswered: BTreeSet::new(),
            resumed: 0,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Change(a, b, gone) => {
                let names = [Some(a), b.filter(|b| *b != a)];
                self.change(&names.into_iter().flatten().map(|n| format!("o{n}")).collect::<Vec<_>>(), gone);
            }
            Step::Feed => self.feed(),
            Step::Down(bytes) => self.arrive_down(bytes),
            Step::Up(bytes) => self.arrive_up(bytes),
            Step::Write(n) => self.write(&format!("o{n}")),
            Step::Cut => self.cut(),
            Step::Compact(keep) => {
                self.first_known = self.first_known.max(self.world.revision().0.saturating_sub(keep.into()));
                let first = self.first_known;
                self.history.retain(|event| event.revision.0 > first);
            }
            Step::Restart => {
                self.lineages.last_mut().unwrap().1 = self.world.revision().0;
                self.lineages.push((format!("l{}", self.lineages.len()), 0));
                self.cut();
            }
        }
    }

    fn change(&mut self, names: &[String], gone: bool) -> Vec<Event> {
        let revision = self.world.revision().0 + 1;
        let mut events = Vec::new();
        for name in names {
            let known = self.world.get(&key(name)).cloned();
            let event = match (known, gone) {
                (Some(known), true) => Event {
                    revision: Revision(revision),
                    change: Change::Deleted,
                    object: known.at(Revision(revision)),
                    previous: None,
                },
                (known, _) => Event {
                    revision: Revision(revision),
                    change: if known.is_some() { Change::Modified } else { Change::Added },
                    object: object(name, revision, revision),
                    previous: None,
                },
            };
            self.world.fold(&event);
            self.history.push_back(event.clone());
            events.push(event);
        }
        self.contents.insert(revision, contents(&self.world));
        events
    }

    fn feed(&mut self) {
        let Some(master) = &mut self.master else { return };
        if self.outbox.is_empty() {
            let head = self.world.revision().0;
            if self.fed < self.first_known {
                let objects = self.world.iter().cloned().collect();
                self.outbox.push_back(Down::Reset { revision: Revision(head), objects });
                self.fed = head;
            } else {
                let later = self.history.iter().find(|event| event.revision.0 > self.fed);
                let Some(next) = later.map(|event| event.revision) else { return };
                self.outbox
                    .extend(self.history.iter().filter(|event| event.revision == next).cloned().map(Down::Event));
                self.outbox.push_back(Down::Reached(next));
                self.fed = next.0;
            }
        }
        let Some(message) = self.outbox.pop_front() else { return };
        // before the hello there is no feed: the outbox is empty then
        for bytes in master.send(&message, &EventCache::default()).unwrap() {
            self.down.extend_from_slice(&bytes);
        }
    }

    fn arrive_down(&mut self, bytes: usize) {
        let mut arrived = self.down.split_to(bytes.min(self.down.len()));
        let bounds = NodeSession::<u64>::bounds(&LIMITS);
        while let Some(frame) = bounds.take(&mut arrived).unwrap() {
            for action in self.node.receive(frame).unwrap() {
                match action {
                    NodeAction::Opened(opened) => assert_eq!((opened.name.as_str(), opened.asks), ("s", 8)),
                    NodeAction::Answer(token, answer) => {
                        assert!(self.unanswered.remove(&token));
                        let events = answer.unwrap();
                        assert_eq!(events[0].object.value()["content"], token);
                        assert!(events[0].revision.0 > 0);
                    }
                    NodeAction::Dial(_) => panic!("nobody called"),
                    NodeAction::Deliver(message) => self.deliver(&message),
                }
            }
        }
        arrived.unsplit(std::mem::take(&mut self.down));
        self.down = arrived;
    }

    fn deliver(&mut self, message: &Down) {
        match message {
            Down::Welcome(welcome) => self.resumed += usize::from(welcome.resumed),
            Down::Reset { objects, .. } => {
                self.view = World::default();
                objects.iter().for_each(|object| self.view.put(object.clone()));
            }
            Down::Event(event) => self.view.fold(event),
            Down::Reached(_) => {}
        }
        self.progress.see(message);
        if let Down::Reset { revision, .. } | Down::Reached(revision) = message {
            assert_eq!(contents(&self.view), self.contents[&revision.0], "as of {revision}");
            assert_eq!(self.progress.position().unwrap().revision, *revision);
        }
    }

    fn arrive_up(&mut self, bytes: usize) {
        let mut arrived = self.up.split_to(bytes.min(self.up.len()));
        while let Some(mut master) = self.master.take() {
            let frame = master.bounds().take(&mut arrived).unwrap();
            let action = frame.map(|frame| master.receive(frame).unwrap());
            self.master = Some(master);
            match action {
                None => break,
                Some(Some(MasterAction::Hello(hello))) => self.begin(hello.from),
                Some(Some(MasterAction::Writes(id, writes))) => self.commit(id, writes),
                Some(Some(MasterAction::Renew(_)) | None) => {}
            }
        }
        arrived.unsplit(std::mem::take(&mut self.up));
        self.up = arrived;
    }

    fn begin(&mut self, from: Option<Position>) {
        let head = self.world.revision().0;
        let (current, ended) = self.lineages.split_last().unwrap();
        let good = from.filter(|from| {
            let end = if from.lineage == current.0 {
                Some(head)
            } else {
                ended.iter().find(|(name, _)| *name == from.lineage).map(|(_, end)| *end)
            };
            end.is_some_and(|end| from.revision.0 <= end) && from.revision.0 >= self.first_known
        });
        self.outbox = VecDeque::from([welcome(&current.0, good.is_some())]);
        self.fed = match good {
            Some(from) => from.revision.0,
            None => {
                self.outbox
                    .push_back(Down::Reset { revision: Revision(head), objects: self.world.iter().cloned().collect() });
                head
            }
        };
    }

    fn commit(&mut self, id: u64, writes: Vec<Write>) {
        let revision = self.world.revision().0 + 1;
        let write = &writes[0];
        let stored =
            Object::encode(write.key.resource.clone(), Revision(revision), write.value.clone().unwrap()).unwrap();
        let event =
            Event { revision: Revision(revision), change: Change::Modified, object: Arc::new(stored), previous: None };
        self.world.fold(&event);
        self.history.push_back(event.clone());
        self.contents.insert(revision, contents(&self.world));
        let bytes = self.master.as_mut().unwrap().answer(id, Ok(vec![event]));
        self.down.extend_from_slice(&bytes);
    }

    fn write(&mut self, name: &str) {
        if !self.node.has_room() {
            return;
        }
        self.asked += 1;
        let token = 1_000_000 + self.asked;
        let write = Write { key: key(name), value: Some(value(name, token)), expect: Expect::Absent };
        let bytes: Bytes = self.node.write(vec![write], token).unwrap();
        self.unanswered.insert(token);
        self.up.extend_from_slice(&bytes);
    }

    fn cut(&mut self) {
        for token in self.node.end() {
            assert!(self.unanswered.remove(&token), "answered once, or never");
        }
        assert!(self.unanswered.is_empty());
        let (node, bytes) = NodeSession::begin(&hello(self.progress.position()), LIMITS);
        self.node = node;
        self.master = Some(MasterSession::new("a".into(), "s".into(), LIMITS));
        self.outbox.clear();
        self.fed = u64::MAX;
        self.down.clear();
        self.up = BytesMut::from(&bytes[..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_node_knows_what_the_master_knows_whatever_breaks(steps in proptest::collection::vec(step(), 0..120)) {
        let mut sea = Sea::new();
        sea.fed = u64::MAX;
        for step in steps {
            sea.take(step);
        }
        // calm at last
        for _ in 0..1000 {
            sea.arrive_up(usize::MAX);
            sea.feed();
            sea.arrive_down(usize::MAX);
        }
        prop_assert!(sea.outbox.is_empty() && sea.unanswered.is_empty());
        prop_assert_eq!(contents(&sea.view), contents(&sea.world));
    }
}

#[test]
fn a_short_cut_is_resumed_and_a_long_one_is_not() {
    let mut sea = Sea::new();
    sea.fed = u64::MAX;
    let settle = |sea: &mut Sea| {
        for _ in 0..50 {
            sea.arrive_up(usize::MAX);
            sea.feed();
            sea.arrive_down(usize::MAX);
        }
    };
    sea.change(&["o1".into(), "o2".into()], false);
    settle(&mut sea);
    sea.cut();
    sea.change(&["o2".into()], true);
    settle(&mut sea);
    assert_eq!(sea.resumed, 1);
    sea.take(Step::Restart);
    settle(&mut sea);
    assert_eq!(sea.resumed, 2, "a new lineage knows the old one's end");
    sea.cut();
    sea.change(&["o3".into()], false);
    sea.take(Step::Compact(0));
    settle(&mut sea);
    assert_eq!(sea.resumed, 2, "the history does not have it any more");
    assert_eq!(contents(&sea.view), contents(&sea.world));
}
