//! The log against a model: what was committed is there after a stop, conflicts are refused whole, watches resume.
#![allow(clippy::unwrap_used)] // a test says what is wrong by panicking

use manifests::Resource;
use proptest::prelude::*;
use serde_json::{Value, json};
use state::{Change, Expect, Key, Revision, Write};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::thread::JoinHandle;
use store::{CommitError, Limits, Store, WatchError};

struct Running {
    store: Store,
    writer: JoinHandle<()>,
}

impl Running {
    fn open(dir: &Path, limits: Limits) -> Self {
        let (store, writer) = Store::open(&dir.join("state.redb"), limits).unwrap();
        Self { store, writer: std::thread::spawn(move || writer.run()) }
    }

    async fn close(self) {
        self.store.close().await;
        self.writer.join().unwrap();
    }
}

fn limits() -> Limits {
    Limits { volatile: |resource| resource.plural == "leases", ..Limits::default() }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn key(plural: &str, name: &str) -> Key {
    Key::new(Resource::new("", plural.to_owned()), "default", name)
}

fn value(name: &str, data: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "data": data})
}

fn create(plural: &str, name: &str, data: &str) -> Write {
    Write::create(key(plural, name), value(name, data))
}

#[test]
fn a_commit_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let running = Running::open(dir.path(), limits());
        let store = &running.store;
        let made = store.commit(vec![create("configmaps", "a", "1")]).await.unwrap();
        let refused = store.commit(vec![create("configmaps", "b", "1"), create("configmaps", "a", "2")]).await;
        assert!(matches!(refused, Err(CommitError::Exists { key }) if &*key.name == "a"));
        assert!(store.world().get(&key("configmaps", "b")).is_none());
        assert_eq!(store.world().revision(), made[0].revision);

        let stale = Write { key: key("configmaps", "a"), value: None, expect: Expect::At(Revision(99)) };
        assert!(matches!(store.commit(vec![stale]).await, Err(CommitError::Conflict { .. })));
        let stranger = Write { key: key("configmaps", "a"), value: None, expect: Expect::Uid("other".into()) };
        assert!(matches!(store.commit(vec![stranger]).await, Err(CommitError::Uid { .. })));
        running.close().await;
    });
}

#[test]
fn a_value_must_be_what_its_key_names() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let running = Running::open(dir.path(), Limits { object_bytes_max: 200, ..limits() });
        let misnamed = Write::create(key("configmaps", "a"), value("b", ""));
        assert!(matches!(running.store.commit(vec![misnamed]).await, Err(CommitError::Malformed { .. })));
        let large = create("configmaps", "a", &"x".repeat(300));
        assert!(matches!(running.store.commit(vec![large]).await, Err(CommitError::TooLarge { .. })));
        running.close().await;
    });
}

#[test]
fn watches_resume_across_a_restart_and_expire_beyond_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let short = Limits { history_events_max: 3, ..limits() };
    run(async {
        let running = Running::open(dir.path(), short);
        for n in 0..6 {
            running.store.commit(vec![create("configmaps", &format!("c{n}"), "")]).await.unwrap();
        }
        running.close().await;
        let running = Running::open(dir.path(), short);
        assert!(matches!(running.store.watch(Revision(1)), Err(WatchError::Expired { oldest: Revision(3) })));
        let mut watch = running.store.watch(Revision(4)).unwrap();
        assert_eq!(watch.next().await.unwrap().revision, Revision(5));
        assert_eq!(watch.next().await.unwrap().revision, Revision(6));
        let gone = running.store.world().get(&key("configmaps", "c1")).unwrap().clone();
        running.store.commit(vec![Write::delete(&gone)]).await.unwrap();
        let event = watch.next().await.unwrap();
        assert_eq!((event.change, event.object.revision()), (Change::Deleted, event.revision));
        running.close().await;
        assert_eq!(watch.next().await.unwrap_err(), WatchError::Closed);
    });
}

#[test]
fn volatile_objects_are_gone_after_a_restart_and_their_revisions_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let running = Running::open(dir.path(), limits());
        let last = running.store.commit(vec![create("leases", "node", "")]).await.unwrap()[0].revision;
        running.close().await;
        let running = Running::open(dir.path(), limits());
        assert!(running.store.world().get(&key("leases", "node")).is_none());
        let next = running.store.commit(vec![create("configmaps", "a", "")]).await.unwrap()[0].revision;
        assert!(next > last, "{next} follows {last}");
        running.close().await;
    });
}

#[test]
fn heartbeats_do_not_push_other_changes_out_of_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let short = Limits { history_events_max: 8, ..limits() };
    run(async {
        let running = Running::open(dir.path(), short);
        let store = &running.store;
        let commit = async |write: Write| store.commit(vec![write]).await.unwrap()[0].clone();
        let labelled = |beat: usize, label: &str| {
            let mut value = value("node", &beat.to_string());
            value["metadata"]["labels"] = json!({"zone": label});
            value
        };
        let lease = async |value: Value| {
            let old = store.world().get(&key("leases", "node")).unwrap().clone();
            commit(Write::update(&old, value)).await
        };
        let begin = store.world().revision();
        commit(create("configmaps", "a", "")).await;
        commit(Write::create(key("leases", "node"), labelled(0, "x"))).await;
        for beat in 1..50 {
            lease(labelled(beat, "x")).await;
        }
        lease(labelled(50, "y")).await;
        for beat in 51..100 {
            lease(labelled(beat, "y")).await;
        }
        commit(create("configmaps", "b", "")).await;
        let old = store.world().get(&key("leases", "node")).unwrap().clone();
        commit(Write::delete(&old)).await;
        commit(Write::create(key("leases", "node"), labelled(100, "z"))).await;
        let last = lease(labelled(101, "z")).await.revision;

        let mut watch = store.watch(begin).unwrap();
        let mut told = Vec::new();
        while !watch.is_idle() {
            let event = watch.next().await.unwrap();
            let label = event.object.meta().labels.get("zone").cloned().unwrap_or_default();
            told.push(format!("{:?} {} {label}", event.change, event.key().name));
            assert!(event.revision <= last);
        }
        // every change but those of which nothing is left: a beat between two others
        let whole = [
            "Added a ",
            "Added node x",
            "Modified node y",
            "Added b ",
            "Deleted node y",
            "Added node z",
            "Modified node z",
        ];
        assert_eq!(told, whole);
        running.close().await;
    });
}

#[test]
fn a_file_is_used_by_one_store_and_strangers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let running = Running::open(dir.path(), limits());
        let second = Store::open(&dir.path().join("state.redb"), limits());
        assert!(matches!(second, Err(store::OpenError::Locked { .. })));
        running.close().await;
        let stranger = dir.path().join("stranger");
        std::fs::write(&stranger, b"not a database").unwrap();
        assert!(matches!(Store::open(&stranger, limits()), Err(store::OpenError::Disk { .. })));
    });
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u16),
    Delete(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8u8, any::<u16>()).prop_map(|(name, data)| Step::Put(name, data)),
        3 => (0..8u8).prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_world_is_what_was_committed(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let short = Limits { history_events_max: 5, ..limits() };
        run(async {
            let mut running = Running::open(dir.path(), short);
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Put(name, data) => {
                        let (name, data) = (format!("c{name}"), data.to_string());
                        let old = running.store.world().get(&key("configmaps", &name)).cloned();
                        let write = match &old {
                            Some(old) => Write::update(old, value(&name, &data)),
                            None => create("configmaps", &name, &data),
                        };
                        running.store.commit(vec![write]).await.unwrap();
                        model.insert(name, data);
                    }
                    Step::Delete(name) => {
                        let name = format!("c{name}");
                        let old = running.store.world().get(&key("configmaps", &name)).cloned();
                        assert_eq!(old.is_some(), model.remove(&name).is_some());
                        if let Some(old) = old {
                            running.store.commit(vec![Write::delete(&old)]).await.unwrap();
                        }
                    }
                    Step::Reopen => {
                        running.close().await;
                        running = Running::open(dir.path(), short);
                    }
                }
                let world = running.store.world();
                let found: BTreeMap<String, String> = world
                    .iter()
                    .map(|object| (object.key().name.to_string(), object.value()["data"].as_str().unwrap().to_owned()))
                    .collect();
                assert_eq!(found, model);
            }
            running.close().await;
        });
    }
}

#[test]
fn resting_changes_nothing_that_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let running = Running::open(dir.path(), limits());
        let store = &running.store;
        let mut watch = store.watch(Revision(0)).unwrap();
        store.commit(vec![create("pods", "a", "1")]).await.unwrap();
        let before = store.world();
        for _ in 0..3 {
            store.rest();
        }
        store.commit(vec![create("pods", "b", "1")]).await.unwrap();
        let world = store.world();
        let [old, new] = [&before, &world].map(|world| world.get(&key("pods", "a")).unwrap());
        assert_eq!((old.revision(), old.json()), (new.revision(), new.json()));
        for name in ["a", "b"] {
            let event = watch.next().await.unwrap();
            assert_eq!((&*event.key().name, event.change), (name, Change::Added));
        }
        assert_eq!(store.commit(vec![create("pods", "a", "2")]).await.unwrap_err().to_string(), {
            let key = key("pods", "a");
            CommitError::Exists { key }.to_string()
        });
        running.close().await;
    });
}
