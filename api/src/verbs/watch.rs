//! Watches: the changes of a resource from a revision on, as they happen.
//!
//! An event is a frame around bytes that were encoded when the change was committed; only tables and metadata-only
//! watches encode anew. A client that does not read is given up after a while; one that reads too slowly for the
//! store's history is told that its revision is gone (410) and lists again.

use crate::body::{self, Answer, Feed, Gone};
use crate::front::Call;
use crate::negotiate::Shape;
use crate::render;
use crate::selection::Selection;
use crate::status::Status;
use crate::table::{self, Include};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use state::{Change, Event, Object, Revision};
use std::time::Duration;
use store::{Watch, WatchError};
use tokio::time::{Instant, interval_at, sleep_until};

/// Objects up to this size are copied into their event.
const COPIED_BYTES_MAX: usize = 16 * 1024;
/// Longest watch a client may ask for.
const SECONDS_MAX: u64 = 24 * 3600;

/// One watch being served.
struct Watcher {
    call: Call,
    selection: Selection,
    include: Include,
    bookmarks: bool,
    columns_sent: bool,
    /// The last revision this watch has seen, of whatever resource.
    seen: Revision,
}

pub(super) async fn watch(call: Call) -> Result<Answer, Status> {
    let selection = Selection::of(&call)?;
    let include = Include::of(&call.query)?;
    let from = call.query.revision()?.unwrap_or_default();
    let initial = initial(&call, from)?;
    let seconds = call.query.number("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
    let lasts = match seconds.filter(|seconds| *seconds > 0) {
        Some(seconds) => Duration::from_secs(seconds.min(SECONDS_MAX)),
        None => call.api.limits().watch_time_default,
    };
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let (feed, body) = Feed::new(call.api.limits());
    let watcher = Watcher { call, selection, include, bookmarks, columns_sent: false, seen: from };
    tokio::spawn(async move {
        // the only way to fail is that the client is gone, and then there is nobody to tell
        let _ = watcher.run(&feed, initial, Instant::now() + lasts).await;
    });
    Ok(body::answer(200, "application/json", body))
}

/// What comes before the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Initial {
    /// Nothing: the client has listed.
    Nothing,
    /// Everything there is, as additions.
    Objects,
    /// The same, and a bookmark that says that this was all.
    ObjectsAndBookmark,
}

fn initial(call: &Call, from: Revision) -> Result<Initial, Status> {
    match call.query.flag_given("sendInitialEvents") {
        Some(true) => {
            if call.query.revision_match()? != Some(crate::query::RevisionMatch::NotOlderThan) {
                let why = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                let field = "resourceVersionMatch";
                return Err(crate::query::invalid_option("ListOptions", field, "FieldValueForbidden", why));
            }
            Ok(Initial::ObjectsAndBookmark)
        }
        Some(false) => Ok(Initial::Nothing),
        None if from == Revision(0) => Ok(Initial::Objects),
        None => Ok(Initial::Nothing),
    }
}

impl Watcher {
    async fn run(mut self, feed: &Feed, initial: Initial, ends: Instant) -> Result<(), Gone> {
        let world = self.call.api.world();
        // from the world's revision on, so that nothing falls between the listing and the watching
        let from = if initial == Initial::Nothing && self.seen != Revision(0) { self.seen } else { world.revision() };
        let mut events = match self.call.api.store().watch(from) {
            Ok(events) => events,
            Err(error) => return self.fail(feed, &error).await,
        };
        self.seen = from;
        if initial != Initial::Nothing {
            for object in world.list(&self.call.resource(), self.selection.namespace()) {
                if self.selection.takes(object) {
                    let frame = self.frame("ADDED", object);
                    feed.send(frame).await?;
                }
            }
        }
        if initial == Initial::ObjectsAndBookmark && self.bookmarks {
            feed.send(self.bookmark(true)).await?;
        }
        drop(world);
        self.follow(feed, &mut events, ends).await
    }

    async fn follow(&mut self, feed: &Feed, events: &mut Watch, ends: Instant) -> Result<(), Gone> {
        let every = self.call.api.limits().bookmark_interval;
        let mut bookmark_at = interval_at(Instant::now() + every, every);
        let ended = self.call.ended.clone();
        loop {
            tokio::select! {
                biased;
                () = ended.cancelled() => return Ok(()),
                () = feed.closed() => return Err(Gone),
                () = sleep_until(ends) => {
                    // lets the client go on from here instead of from its object's last change
                    if self.bookmarks {
                        feed.send(self.bookmark(false)).await?;
                    }
                    return Ok(());
                }
                _ = bookmark_at.tick(), if self.bookmarks => feed.send(self.bookmark(false)).await?,
                event = events.next() => match event {
                    Ok(event) => {
                        if let Some(frame) = self.event(&event) {
                            feed.send(frame).await?;
                        }
                        self.seen = self.seen.max(event.revision);
                    }
                    Err(WatchError::Closed) => return Ok(()),
                    Err(error) => return self.fail(feed, &error).await,
                },
            }
        }
    }

    /// What an event is to this watch: an object may come into its selection or leave it.
    fn event(&mut self, event: &Event) -> Option<Vec<Bytes>> {
        if !self.selection.covers(event.key()) || event.revision <= self.seen {
            return None;
        }
        let was = event.previous.as_ref().is_some_and(|previous| self.selection.takes(previous));
        let is = event.change != Change::Deleted && self.selection.takes(&event.object);
        match (was, is) {
            (false, true) => Some(self.frame("ADDED", &event.object)),
            (true, true) => Some(self.frame("MODIFIED", &event.object)),
            (true, false) if event.change == Change::Deleted => Some(self.frame("DELETED", &event.object)),
            // the last state that was in the selection, at the revision that took it out
            (true, false) => {
                let left = event.previous.as_ref()?.at(event.revision);
                Some(self.frame("DELETED", &left))
            }
            (false, false) => None,
        }
    }

    fn frame(&mut self, change: &str, object: &Object) -> Vec<Bytes> {
        if self.call.wanted.shape == Shape::Whole {
            let head = format!(r#"{{"type":"{change}","object":"#);
            let tail = b"}\n";
            // one small write is cheaper than three; a large object is shared by everybody who waits to send it
            if object.json().len() > COPIED_BYTES_MAX {
                return vec![head.into(), object.json().clone(), Bytes::from_static(tail)];
            }
            let whole = [head.as_bytes(), object.json(), tail].concat();
            return vec![whole.into()];
        }
        let shaped = match self.call.wanted.shape {
            Shape::Table => self.table(&[object.value()], json!({"resourceVersion": object.revision().to_string()})),
            _ => render::metadata_only(&object.value()),
        };
        line(change, &shaped)
    }

    fn table(&mut self, values: &[Value], meta: Value) -> Value {
        let columns = !std::mem::replace(&mut self.columns_sent, true);
        let now: Timestamp = self.call.api.now();
        table::table(self.call.kind, values, meta, self.include, columns, now)
    }

    fn bookmark(&mut self, is_initial_end: bool) -> Vec<Bytes> {
        let mut metadata = json!({"resourceVersion": self.seen.to_string(), "creationTimestamp": null});
        if is_initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let value =
            json!({"kind": self.call.kind.kind, "apiVersion": self.call.kind.api_version(), "metadata": metadata});
        let shaped = match self.call.wanted.shape {
            Shape::Whole => value,
            Shape::Metadata => render::metadata_only(&value),
            Shape::Table => {
                let meta = json!({"resourceVersion": self.seen.to_string()});
                let mut table = self.table(&[], meta);
                if is_initial_end {
                    table["rows"] = json!([{"cells": [], "object": render::metadata_only(&value)}]);
                }
                table
            }
        };
        line("BOOKMARK", &shaped)
    }

    async fn fail(&self, feed: &Feed, error: &WatchError) -> Result<(), Gone> {
        let status = match error {
            WatchError::Expired { oldest, .. } => {
                Status::expired(format!("too old resource version: {} ({oldest})", self.seen))
            }
            WatchError::Closed => return Ok(()),
        };
        feed.send(line("ERROR", &status.to_value())).await
    }
}

fn line(change: &str, object: &Value) -> Vec<Bytes> {
    let mut line = json!({"type": change, "object": object}).to_string().into_bytes();
    line.push(b'\n');
    vec![line.into()]
}
