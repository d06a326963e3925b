//! YAML (and so JSON) in and out.
//!
//! In: several documents in a text, each with its line; duplicate keys, bombs of aliases and too deep nesting are refused;
//! plain scalars mean what they mean to kubectl (YAML 1.1: `yes` is true, `0644` is octal). That needs the style of each
//! scalar, which is why this reads a parser's events instead of going through serde.
//! Out: as kubectl prints, with sorted keys and lists not indented.

mod read;
mod scalar;
mod write;

pub use read::{Document, YamlError, documents};
pub use write::to_string;
