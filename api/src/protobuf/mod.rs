//! Bodies in Kubernetes' protobuf, read into the JSON they mean: kubectl 1.32 and newer send their typed requests so.
//! Answers are always JSON, which every client that sends protobuf takes too.
//!
//! The messages are a table of facts (`messages.txt`), so one small reader does for all kinds. Its one difficulty: the
//! encoder writes fields that are not pointers in Go even when they are zero, where JSON leaves them out; [`ZEROS_KEPT`]
//! tells the pointers.

use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::LazyLock;

mod special;

/// First bytes of every body.
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages.
const DEPTH_MAX: u32 = 64;
/// Values of one body, so that few bytes do not become much memory.
const VALUES_MAX: usize = 300_000;

/// Scalars that are pointers in Go: zero is a value of theirs and not the lack of one.
const ZEROS_KEPT: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "averageUtilization",
    "backoffLimit",
    "backoffLimitPerIndex",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseTransitions",
    "manualSelector",
    "maxFailedIndexes",
    "minReplicas",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "restartCount",
    "revision",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "stabilizationWindowSeconds",
    "started",
    "startingDeadlineSeconds",
    "storageClassName",
    "successfulJobsHistoryLimit",
    "suspend",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "value",
];

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not begin as one.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// It is of a kind whose messages are not known here.
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Unknown {
        /// `apps/v1`
        version: String,
        /// `Deployment`
        kind: String,
    },
    /// It breaks off, or is not what its kind's messages are.
    #[error("proto: {0}")]
    Malformed(&'static str),
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// One field of a message.
struct Field {
    name: &'static str,
    shape: Shape,
    of: &'static str,
}

/// How often a field is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
}

type Messages = HashMap<&'static str, HashMap<u64, Field>>;

static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let rows = include_str!("messages.txt").lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|row| {
        let mut parts = row.split(' ');
        let message = parts.next()?;
        Some((message, parts.filter_map(field).collect()))
    })
    .collect()
});

/// `2:data={string}`
fn field(text: &'static str) -> Option<(u64, Field)> {
    let (number, rest) = text.split_once(':')?;
    let (name, of) = rest.split_once('=')?;
    let list = of.strip_prefix('[').and_then(|of| of.strip_suffix(']'));
    let map = of.strip_prefix('{').and_then(|of| of.strip_suffix('}'));
    let (shape, of) = match (list, map) {
        (Some(of), _) => (Shape::List, of),
        (_, Some(of)) => (Shape::Map, of),
        _ => (Shape::One, of),
    };
    Some((number.parse().ok()?, Field { name, shape, of }))
}

/// Reads a body: its envelope says which kind it is.
///
/// # Errors
/// When it is none, or of a kind that is not known.
pub fn decode(body: &[u8]) -> Result<Value> {
    let mut envelope = Reader { rest: body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)? };
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, wire)) = envelope.next()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader { rest: meta };
                while let Some((number, wire)) = meta.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let group = version.split_once('/').map_or("core", |(group, _)| group);
    let group = group.split('.').next().unwrap_or_default();
    let number = version.rsplit('/').next().unwrap_or_default();
    // options of a request carry the version of the resource they are about
    let message =
        if kind == "DeleteOptions" { "meta.v1.DeleteOptions".to_owned() } else { format!("{group}.{number}.{kind}") };
    let Some((message, _)) = MESSAGES.get_key_value(message.as_str()) else {
        return Err(ProtobufError::Unknown { version, kind });
    };
    let mut values_left = VALUES_MAX;
    let mut object = read(raw, message, DEPTH_MAX, &mut values_left)?;
    object.insert("apiVersion".into(), version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn read(bytes: &[u8], message: &str, depth_left: u32, values_left: &mut usize) -> Result<Map<String, Value>> {
    let fields = MESSAGES.get(message).ok_or(ProtobufError::Malformed("unknown message"))?;
    let depth_left = depth_left.checked_sub(1).ok_or(ProtobufError::Malformed("nested too deeply"))?;
    let mut object = Map::new();
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        // a field of a newer Kubernetes
        let Some(field) = fields.get(&number) else { continue };
        *values_left = values_left.checked_sub(1).ok_or(ProtobufError::Malformed("too many values"))?;
        match field.shape {
            Shape::Map => {
                let (key, value) = entry(wire, field.of, depth_left, values_left)?;
                if let Some(entries) = object.entry(field.name).or_insert_with(|| json!({})).as_object_mut() {
                    entries.insert(key, value);
                }
            }
            Shape::List => {
                let value = one(wire, field.of, depth_left, values_left)?;
                if let Some(items) = object.entry(field.name).or_insert_with(|| json!([])).as_array_mut() {
                    items.push(value);
                }
            }
            Shape::One => match one(wire, field.of, depth_left, values_left)? {
                Value::Object(embedded) if field.name.is_empty() => object.extend(embedded),
                value if is_left_out(field.name, &value) => {}
                value => {
                    object.insert(field.name.to_owned(), value);
                }
            },
        }
    }
    Ok(object)
}

/// Whether a value is what Go has where JSON has nothing.
fn is_left_out(name: &str, value: &Value) -> bool {
    let is_zero = match value {
        Value::Null => return true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0) && !matches!(name, "maxSurge" | "maxUnavailable"),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    is_zero && !ZEROS_KEPT.contains(&name)
}

fn entry(wire: Wire<'_>, of: &'static str, depth_left: u32, values_left: &mut usize) -> Result<(String, Value)> {
    let Wire::Bytes(bytes) = wire else { return Err(ProtobufError::Malformed("wrong wireType")) };
    let mut reader = Reader { rest: bytes };
    let (mut key, mut value) = (String::new(), None);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => value = Some(one(wire, of, depth_left, values_left)?),
            _ => {}
        }
    }
    let absent = || if of == "quantity" || of == "string" || of == "bytes" { "".into() } else { json!({}) };
    Ok((key, value.unwrap_or_else(absent)))
}

fn one(wire: Wire<'_>, of: &'static str, depth_left: u32, values_left: &mut usize) -> Result<Value> {
    Ok(match (of, wire) {
        ("string", Wire::Bytes(bytes)) => text(bytes)?.into(),
        ("bytes", Wire::Bytes(bytes)) => special::base64(bytes),
        ("bool", Wire::Number(number)) => (number != 0).into(),
        // negative numbers are sign-extended to 64 bits on the wire
        ("int", Wire::Number(number)) => (number as i64).into(),
        ("double", Wire::Fixed64(bits)) => json!(f64::from_bits(bits)),
        ("time", Wire::Bytes(bytes)) => special::time(bytes, 0)?,
        ("microtime", Wire::Bytes(bytes)) => special::time(bytes, 6)?,
        ("quantity", Wire::Bytes(bytes)) => special::quantity(bytes)?,
        ("intorstring", Wire::Bytes(bytes)) => special::int_or_string(bytes)?,
        ("raw", Wire::Bytes(bytes)) => special::raw(bytes)?,
        // a list of strings in a message of its own
        ("[string]", Wire::Bytes(bytes)) => special::strings(bytes)?,
        (message, Wire::Bytes(bytes)) => Value::Object(read(bytes, message, depth_left, values_left)?),
        _ => return Err(ProtobufError::Malformed("wrong wireType")),
    })
}

fn text(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| ProtobufError::Malformed("invalid UTF-8"))?;
    Ok(text.to_owned())
}

/// A field's content as it is on the wire.
#[derive(Clone, Copy)]
enum Wire<'b> {
    Number(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'b [u8]),
}

/// Walks the fields of a message.
struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'b>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.number()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(bytes.iter().rev().fold(0, |bits, byte| (bits << 8) | u64::from(*byte)))
            }
            2 => {
                let length =
                    usize::try_from(self.number()?).map_err(|_| ProtobufError::Malformed("negative length"))?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(ProtobufError::Malformed("illegal wireType")),
        };
        Ok(Some((tag >> 3, wire)))
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ProtobufError::Malformed("integer overflow"))
    }

    fn take(&mut self, bytes: usize) -> Result<&'b [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(ProtobufError::Malformed("unexpected EOF"))?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    /// What kubectl 1.33 sends for `create deployment web --image=nginx:1.27 --port=80 --replicas=0`.
    const DEPLOYMENT: &str = "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50Er0BCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEosBCAASDAoKCgNhcHASA3dlYhpxChwKABIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViElESMwoFbmdpbngSCm5naW54OjEuMjcqADIKCgAQABhQIgAqAEIAagByAIABAIgBAJABAKIBABoAMgBCAEoAUgBYAGAAaACCAQCKAQCaAQDCAQAiAgoAKAA4ABoMCAAQABgAIAAoADgAGgAiAA==";

    #[test]
    fn reads_what_kubectl_sends() {
        let object = decode(&STANDARD.decode(DEPLOYMENT).expect("base64")).expect("protobuf");
        let labels = json!({"app": "web"});
        let container =
            json!({"name": "nginx", "image": "nginx:1.27", "ports": [{"containerPort": 80}], "resources": {}});
        assert_eq!(object["apiVersion"], "apps/v1");
        assert_eq!(object["metadata"], json!({"name": "web", "labels": labels}));
        assert_eq!(object["spec"]["replicas"], 0, "a pointer to zero is zero");
        assert_eq!(object["spec"].get("minReadySeconds"), None, "a zero that is no pointer is nothing");
        assert_eq!(object["spec"]["selector"], json!({"matchLabels": labels}));
        assert_eq!(object["spec"]["template"]["spec"]["containers"], json!([container]));
    }

    #[test]
    fn no_bytes_do_harm() {
        let whole = STANDARD.decode(DEPLOYMENT).expect("base64");
        for end in 0..whole.len() {
            // some prefixes are messages of their own: what counts is that each is answered
            let _ = decode(&whole[..end]);
        }
        for at in 4..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            let _ = decode(&broken);
        }
        assert_eq!(decode(b"{}"), Err(ProtobufError::Magic));
    }
}
