//! Bodies with whole objects: a line of JSON that says what follows, then the object's bytes as they are kept.

use super::WireError;
use super::body::{ChangeBody, json, to_json};
use bytes::{Buf, Bytes};
use manifests::Resource;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use state::{Change, Event, Object, Revision};
use std::sync::Arc;

/// Bytes of a head line.
const HEAD_BYTES_MAX: usize = 4096;

/// What an object's bytes are of.
#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(with = "super::revision")]
    revision: Revision,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    group: String,
    resource: String,
    /// Bytes of the object that follow the line.
    bytes: usize,
}

#[derive(Serialize, Deserialize)]
struct EventHead {
    change: ChangeBody,
    #[serde(with = "super::revision")]
    at: Revision,
}

#[derive(Serialize, Deserialize)]
struct SnapshotHead {
    #[serde(with = "super::revision")]
    at: Revision,
    /// No other part follows.
    last: bool,
}

/// A part of a snapshot.
pub(crate) struct Part {
    pub(crate) at: Revision,
    pub(crate) last: bool,
    pub(crate) objects: Vec<Arc<Object>>,
    /// Of the objects' JSON.
    pub(crate) bytes: usize,
}

/// An event's body. A deletion carries the object's names only.
pub(crate) fn event(event: &Event) -> Vec<u8> {
    let mut out = line(&EventHead { change: event.change.into(), at: event.revision });
    match event.change {
        Change::Added | Change::Modified => object(&mut out, &event.object),
        Change::Deleted => {
            let names = names_of(&event.object);
            entry(&mut out, &event.object, &to_json(&names));
        }
    }
    out
}

/// What is left of an object that is gone.
fn names_of(object: &Object) -> Value {
    let meta = object.meta();
    let mut names = serde_json::json!({"metadata": {"name": meta.name, "uid": meta.uid}});
    if let Some(namespace) = &meta.namespace {
        names["metadata"]["namespace"] = namespace.as_str().into();
    }
    names
}

/// Reads [`event`].
pub(crate) fn read_event(mut body: Bytes) -> Result<Event, WireError> {
    let head: EventHead = take_line("event", &mut body)?;
    let object = take_object("event", &mut body)?;
    let object = match Change::from(head.change) {
        Change::Deleted => object.at(head.at),
        _ => object,
    };
    Ok(Event { revision: head.at, change: head.change.into(), object, previous: None })
}

/// The body of one part of a snapshot.
pub(crate) fn snapshot(at: Revision, last: bool, objects: &[Arc<Object>]) -> Vec<u8> {
    let mut out = line(&SnapshotHead { at, last });
    for one in objects {
        object(&mut out, one);
    }
    out
}

/// Reads [`snapshot`].
pub(crate) fn read_snapshot(mut body: Bytes) -> Result<Part, WireError> {
    let head: SnapshotHead = take_line("snapshot", &mut body)?;
    let (mut objects, mut bytes) = (Vec::new(), 0);
    while body.has_remaining() {
        let object = take_object("snapshot", &mut body)?;
        bytes += object.json().len();
        objects.push(object);
    }
    Ok(Part { at: head.at, last: head.last, objects, bytes })
}

fn object(out: &mut Vec<u8>, object: &Object) {
    entry(out, object, object.json());
}

fn entry(out: &mut Vec<u8>, object: &Object, json: &[u8]) {
    let resource = &object.key().resource;
    let head = Head {
        revision: object.revision(),
        group: resource.group.to_string(),
        resource: resource.plural.to_string(),
        bytes: json.len(),
    };
    out.extend(line(&head));
    out.extend_from_slice(json);
}

fn line<T: Serialize>(head: &T) -> Vec<u8> {
    let mut line = to_json(head);
    line.push(b'\n');
    line
}

fn take_line<T: serde::de::DeserializeOwned>(what: &'static str, body: &mut Bytes) -> Result<T, WireError> {
    let end = body.iter().take(HEAD_BYTES_MAX).position(|byte| *byte == b'\n').ok_or(WireError::Cut(what))?;
    let head = json(what, &body[..end])?;
    body.advance(end + 1);
    Ok(head)
}

fn take_object(what: &'static str, body: &mut Bytes) -> Result<Arc<Object>, WireError> {
    let head: Head = take_line(what, body)?;
    if head.bytes > body.len() {
        return Err(WireError::Cut(what));
    }
    // a copy of its own: a small object that lives long must not keep its whole frame in memory
    let json = Bytes::copy_from_slice(&body.split_to(head.bytes));
    let resource = Resource::new(head.group, head.resource);
    let object = Object::decode(resource, head.revision, json).map_err(|source| WireError::Object { what, source })?;
    Ok(Arc::new(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, revision: u64) -> Arc<Object> {
        let value = json!({"kind": "Thing", "metadata": {"name": name, "namespace": "n", "uid": "u"}, "x": 1.50});
        Arc::new(Object::encode(Resource::new("x.io", "things"), Revision(revision), value).unwrap())
    }

    #[test]
    fn objects_travel_as_they_are() {
        for change in [Change::Added, Change::Modified] {
            let sent = Event { revision: Revision(9), change, object: object("a", 8), previous: None };
            let got = read_event(event(&sent).into()).unwrap();
            assert_eq!((got.revision, got.change, got.key()), (sent.revision, sent.change, sent.key()));
            assert_eq!((got.object.revision(), got.object.json()), (sent.object.revision(), sent.object.json()));
        }
        let objects = [object("a", 1), object("b", 2)];
        let part = read_snapshot(snapshot(Revision(5), true, &objects).into()).unwrap();
        assert_eq!((part.at, part.last, part.objects.len()), (Revision(5), true, 2));
        assert_eq!(part.objects[1].json(), objects[1].json());
    }

    #[test]
    fn a_deletion_says_only_what_is_gone() {
        let gone = Event { revision: Revision(9), change: Change::Deleted, object: object("a", 8), previous: None };
        let got = read_event(event(&gone).into()).unwrap();
        assert_eq!((got.key(), got.object.revision()), (gone.key(), Revision(9)));
        assert_eq!(got.object.meta().uid, "u");
        assert!(got.object.value()["x"].is_null());
    }

    #[test]
    fn what_is_cut_short_or_no_object_is_refused() {
        let whole =
            event(&Event { revision: Revision(9), change: Change::Added, object: object("a", 8), previous: None });
        for length in 0..whole.len() {
            assert!(read_event(Bytes::copy_from_slice(&whole[..length])).is_err(), "{length}");
        }
        let cases: [&[u8]; 3] = [
            b"{\"change\":\"moved\",\"at\":1}\n",
            b"{\"change\":\"added\",\"at\":1}\n{\"revision\":1,\"resource\":\"pods\",\"bytes\":2}\n{}",
            b"{\"change\":\"added\",\"at\":1}\n{\"revision\":1,\"resource\":\"pods\",\"bytes\":99999999999}\n{}",
        ];
        for case in cases {
            assert!(read_event(Bytes::from_static(case)).is_err());
        }
    }
}
