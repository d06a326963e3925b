//! Bodies that are one JSON document. Fields that are not known are ignored.

use super::WireError;
use crate::{ClusterFacts, Rejected, Welcome};
use manifests::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use state::{Change, Expect, Key, Revision, Write};

/// Reads a body.
pub(crate) fn json<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|source| WireError::Json { what, source })
}

/// [`Welcome`] as it travels, with what only the connections need.
#[derive(Serialize, Deserialize)]
pub(crate) struct Welcomed {
    /// Version of the protocol that is spoken from now on.
    pub(crate) version: u32,
    pub(crate) lineage: String,
    pub(crate) cluster: ClusterFacts,
    pub(crate) resumed: bool,
    /// Names the session to further connections.
    pub(crate) session: String,
    /// Unanswered batches and heartbeats the node may have under way.
    #[serde(default = "one")]
    pub(crate) batches: usize,
    /// Asks the node may have under way; an older master takes none.
    #[serde(default)]
    pub(crate) asks: usize,
}

fn one() -> usize {
    1
}

impl Welcomed {
    pub(crate) fn welcome(self) -> Welcome {
        Welcome { lineage: self.lineage, cluster: self.cluster, resumed: self.resumed }
    }
}

/// A batch of writes.
#[derive(Serialize, Deserialize)]
pub(crate) struct Writes {
    pub(crate) id: u64,
    pub(crate) writes: Vec<WriteBody>,
}

/// One [`Write`].
#[derive(Serialize, Deserialize)]
pub(crate) struct WriteBody {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    group: String,
    resource: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    expect: ExpectBody,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExpectBody {
    Absent,
    At(u64),
    Uid(String),
}

impl From<Write> for WriteBody {
    fn from(write: Write) -> Self {
        let Key { resource, namespace, name } = write.key;
        Self {
            group: resource.group.into_owned(),
            resource: resource.plural.into_owned(),
            namespace: namespace.to_string(),
            name: name.to_string(),
            value: write.value,
            expect: match write.expect {
                Expect::Absent => ExpectBody::Absent,
                Expect::At(revision) => ExpectBody::At(revision.0),
                Expect::Uid(uid) => ExpectBody::Uid(uid),
            },
        }
    }
}

impl From<WriteBody> for Write {
    fn from(body: WriteBody) -> Self {
        let resource = Resource::new(body.group, body.resource);
        Self {
            key: Key::new(resource, &body.namespace, &body.name),
            value: body.value,
            expect: match body.expect {
                ExpectBody::Absent => Expect::Absent,
                ExpectBody::At(revision) => Expect::At(Revision(revision)),
                ExpectBody::Uid(uid) => Expect::Uid(uid),
            },
        }
    }
}

/// What became of a batch.
#[derive(Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) outcome: Answered,
}

/// How it went.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answered {
    /// The events that the writes have made, in order.
    Done(Vec<Made>),
    /// None of them was done.
    Conflict(String),
    /// As before.
    Failed(String),
    /// As before; the master is going down.
    Disconnected,
}

/// One event that a batch has made.
#[derive(Serialize, Deserialize)]
pub(crate) struct Made {
    #[serde(with = "super::revision")]
    pub(crate) revision: Revision,
    pub(crate) change: ChangeBody,
    /// Which write of the batch made it.
    #[serde(default)]
    pub(crate) write: usize,
    /// The object, where it is not what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<Value>,
}

/// [`Change`] by its name.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChangeBody {
    Added,
    Modified,
    Deleted,
}

impl From<Change> for ChangeBody {
    fn from(change: Change) -> Self {
        match change {
            Change::Added => Self::Added,
            Change::Modified => Self::Modified,
            Change::Deleted => Self::Deleted,
        }
    }
}

impl From<ChangeBody> for Change {
    fn from(change: ChangeBody) -> Self {
        match change {
            ChangeBody::Added => Self::Added,
            ChangeBody::Modified => Self::Modified,
            ChangeBody::Deleted => Self::Deleted,
        }
    }
}

impl From<Rejected> for Answered {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Conflict(message) => Self::Conflict(message),
            Rejected::Failed(message) => Self::Failed(message),
            Rejected::Disconnected => Self::Disconnected,
        }
    }
}

/// A heartbeat; its answer is an [`Answer`] without events.
#[derive(Serialize, Deserialize)]
pub(crate) struct Renew {
    pub(crate) id: u64,
}

/// Nothing else changed up to here.
#[derive(Serialize, Deserialize)]
pub(crate) struct Reached {
    #[serde(with = "super::revision")]
    pub(crate) revision: Revision,
}

/// The node shall dial a connection for a call.
#[derive(Serialize, Deserialize)]
pub(crate) struct Dial {
    pub(crate) stream: u64,
}

/// The session is over.
#[derive(Serialize, Deserialize)]
pub(crate) struct Goodbye {
    pub(crate) reason: String,
    /// Trying again will not help for a while.
    #[serde(default)]
    pub(crate) refused: bool,
    /// The node has been taken out of the cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) dismissed: bool,
}

/// First on a connection that belongs to a session.
#[derive(Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) session: String,
    /// Which call, on a connection of one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<u64>,
}

/// A body's JSON. Cannot fail: these types have string keys and no foreign serializers.
pub(crate) fn to_json<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn writes_come_back_as_they_went() {
        let key = |group: &str, namespace: &str| Key::new(Resource::new(group.to_owned(), "things"), namespace, "a");
        let cases = [
            Write { key: key("", "n"), value: Some(json!({"metadata": {"name": "a"}})), expect: Expect::Absent },
            Write { key: key("x.io", ""), value: None, expect: Expect::At(Revision(7)) },
            Write { key: key("", "n"), value: Some(json!({"spec": null})), expect: Expect::Uid("u".into()) },
        ];
        for write in cases {
            let text = to_json(&WriteBody::from(write.clone()));
            let back: WriteBody = json("write", &text).unwrap();
            assert_eq!(Write::from(back), write);
        }
    }

    #[test]
    fn bodies_are_as_the_protocol_says_and_unknown_fields_are_ignored() {
        let writes: Writes = json(
            "writes",
            br#"{"id":3,"new":true,"writes":[{"resource":"pods","name":"a","expect":{"at":5},"more":1}]}"#,
        )
        .unwrap();
        assert_eq!((writes.id, writes.writes.len()), (3, 1));
        let made = Made { revision: Revision(4), change: ChangeBody::Added, write: 0, object: None };
        let text = to_json(&Answer { id: 3, outcome: Answered::Done(vec![made]) });
        assert_eq!(text, br#"{"id":3,"done":[{"revision":4,"change":"added","write":0}]}"#);
        let text = to_json(&Answer { id: 4, outcome: Rejected::Conflict("gone".into()).into() });
        assert_eq!(text, br#"{"id":4,"conflict":"gone"}"#);
        let answer: Answer = json("answer", br#"{"id":5,"later":{},"disconnected":null}"#).unwrap();
        assert!(matches!(answer.outcome, Answered::Disconnected));
    }
}
