//! Messages that are not objects in JSON: times, quantities, int-or-string, raw JSON, lists of strings.

use super::{ProtobufError, Reader, Result, Wire, text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

/// Go's `[]byte`.
pub(super) fn base64(bytes: &[u8]) -> Value {
    STANDARD.encode(bytes).into()
}

/// A moment with so many places after the second; null for Go's zero time.
pub(super) fn time(bytes: &[u8], places: u8) -> Result<Value> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Number(number)) => seconds = number as i64,
            (2, Wire::Number(number)) => nanos = number as i32,
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let at = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed("time out of range"))?;
    Ok(match places {
        0 => Timestamp::from_second(seconds).unwrap_or(at).to_string(),
        places => format!("{at:.0$}", usize::from(places)),
    }
    .into())
}

/// A quantity's text.
pub(super) fn quantity(bytes: &[u8]) -> Result<Value> {
    let mut amount = Value::Null;
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            amount = text(bytes)?.into();
        }
    }
    Ok(amount)
}

/// A number or a text; which of them is in the first field.
pub(super) fn int_or_string(bytes: &[u8]) -> Result<Value> {
    let (mut is_text, mut int, mut string) = (false, 0, String::new());
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Number(number)) => is_text = number == 1,
            (2, Wire::Number(number)) => int = number as i64,
            (3, Wire::Bytes(bytes)) => string = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { string.into() } else { int.into() })
}

/// JSON within.
pub(super) fn raw(bytes: &[u8]) -> Result<Value> {
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            return serde_json::from_slice(bytes).map_err(|_| ProtobufError::Malformed("invalid raw JSON"));
        }
    }
    Ok(Value::Null)
}

/// A list of strings.
pub(super) fn strings(bytes: &[u8]) -> Result<Value> {
    let mut items = Vec::new();
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            items.push(Value::from(text(bytes)?));
        }
    }
    Ok(items.into())
}
