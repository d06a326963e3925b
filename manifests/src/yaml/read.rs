//! Reading: a parser's events become values, under budgets.

use super::scalar;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Longest text that is read.
const TEXT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Deepest nesting; JSON's reader stops at 128.
const DEPTH_MAX: usize = 100;
/// Values that anchors may keep and aliases may repeat, in one text.
const ALIASED_VALUES_MAX: usize = 100_000;
/// Bytes that anchors may keep and aliases may repeat, in one text.
const ALIASED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One document of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Line its content starts at, from 1.
    pub line: usize,
    /// The content; null when there is none.
    pub value: Value,
}

/// Why a text is not read. Displays as `yaml: line 3: key "a" already set in map`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("yaml: line {line}: {reason}")]
pub struct YamlError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: String,
}

/// Reads all documents of a text.
///
/// # Errors
/// For what is no YAML, a key that is there twice, and what is too large, too deep or repeats itself too much.
pub fn documents(text: &str) -> Result<Vec<Document>, YamlError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(YamlError { line: 1, reason: format!("the text is longer than {TEXT_BYTES_MAX} bytes") });
    }
    read(text).or_else(|error| json(text).ok_or(error))
}

/// JSON that the YAML parser does not take: indented with tabs, or with escaped surrogates.
fn json(text: &str) -> Option<Vec<Document>> {
    let start = text.trim_start();
    if !start.starts_with('{') {
        return None;
    }
    let value = serde_json::from_str(text).ok()?;
    let line = 1 + text[..text.len() - start.len()].matches('\n').count();
    Some(vec![Document { line, value }])
}

fn read(text: &str) -> Result<Vec<Document>, YamlError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, &span.start)?,
            Err(error) => return Err(failed(error.marker(), error.info())),
        }
    }
    Ok(builder.documents)
}

fn failed(at: &Marker, reason: impl Into<String>) -> YamlError {
    YamlError { line: at.line().max(1), reason: reason.into() }
}

/// A collection that is being read.
enum Open {
    List { items: Vec<Value>, anchor: usize },
    Map { fields: Map<String, Value>, merged: Vec<Value>, key: Option<Key>, anchor: usize },
}

enum Key {
    Name(String),
    /// `<<`: the fields of other maps, where there are no own ones.
    Merge,
}

#[derive(Default)]
struct Builder {
    documents: Vec<Document>,
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    line: Option<usize>,
    root: Option<Value>,
    aliased_values: usize,
    aliased_bytes: usize,
}

struct Anchored {
    value: Value,
    values: usize,
    bytes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: &Marker) -> Result<(), YamlError> {
        let is_content =
            matches!(event, Event::Alias(_) | Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..));
        if is_content {
            self.line.get_or_insert(at.line());
            if self.open.len() >= DEPTH_MAX {
                return Err(failed(at, format!("nested deeper than {DEPTH_MAX}")));
            }
        }
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                self.line = None;
                Ok(())
            }
            Event::DocumentEnd => {
                let value = self.root.take().unwrap_or_default();
                self.documents.push(Document { line: self.line.take().unwrap_or(at.line()), value });
                Ok(())
            }
            Event::Alias(id) => self.alias(id, at),
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref(), at),
            Event::SequenceStart(anchor, _) => {
                self.no_key(at)?;
                self.open.push(Open::List { items: Vec::new(), anchor });
                Ok(())
            }
            Event::MappingStart(anchor, _) => {
                self.no_key(at)?;
                self.open.push(Open::Map { fields: Map::new(), merged: Vec::new(), key: None, anchor });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
        }
    }

    /// A collection may not stand where a key must.
    fn no_key(&self, at: &Marker) -> Result<(), YamlError> {
        match self.open.last() {
            Some(Open::Map { key: None, .. }) => Err(failed(at, "invalid map key: only scalars can be keys")),
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        at: &Marker,
    ) -> Result<(), YamlError> {
        if let Some(Open::Map { fields, key: key @ None, .. }) = self.open.last_mut() {
            *key = Some(match text {
                "<<" if style == ScalarStyle::Plain => Key::Merge,
                name if fields.contains_key(name) => {
                    return Err(failed(at, format!("key {name:?} already set in map")));
                }
                name => Key::Name(name.to_owned()),
            });
            if anchor > 0 {
                self.remember(anchor, &Value::from(text), at)?;
            }
            return Ok(());
        }
        let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && matches!(&*tag.suffix, "str" | "binary"));
        let is_typed = tag.is_some_and(|tag| tag.is_yaml_core_schema()) && !is_text;
        let value =
            if !is_text && (style == ScalarStyle::Plain || is_typed) { scalar::resolve(text) } else { text.into() };
        self.put(value, anchor, at)
    }

    fn alias(&mut self, id: usize, at: &Marker) -> Result<(), YamlError> {
        let Some(anchored) = self.anchors.get(&id) else { return Err(failed(at, "unknown anchor")) };
        let (value, values, bytes) = (anchored.value.clone(), anchored.values, anchored.bytes);
        self.spend(values, bytes, at)?;
        match (self.open.last_mut(), &value) {
            (Some(Open::Map { fields, key: key @ None, .. }), Value::String(name)) => {
                if fields.contains_key(name) {
                    return Err(failed(at, format!("key {name:?} already set in map")));
                }
                *key = Some(Key::Name(name.clone()));
                Ok(())
            }
            (Some(Open::Map { key: None, .. }), _) => Err(failed(at, "invalid map key: only scalars can be keys")),
            _ => self.put(value, 0, at),
        }
    }

    fn close(&mut self, at: &Marker) -> Result<(), YamlError> {
        match self.open.pop() {
            Some(Open::List { items, anchor }) => self.put(items.into(), anchor, at),
            Some(Open::Map { mut fields, merged, anchor, .. }) => {
                for other in merged {
                    let Value::Object(other) = other else { continue };
                    for (name, value) in other {
                        fields.entry(name).or_insert(value);
                    }
                }
                self.put(fields.into(), anchor, at)
            }
            None => Ok(()),
        }
    }

    fn put(&mut self, value: Value, anchor: usize, at: &Marker) -> Result<(), YamlError> {
        if anchor > 0 {
            self.remember(anchor, &value, at)?;
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Map { fields, merged, key, .. }) => match key.take() {
                Some(Key::Name(name)) => {
                    fields.insert(name, value);
                }
                Some(Key::Merge) => match value {
                    Value::Object(_) => merged.push(value),
                    Value::Array(maps) if maps.iter().all(Value::is_object) => merged.extend(maps),
                    _ => return Err(failed(at, "map merge requires map or sequence of maps as the value")),
                },
                None => return Err(failed(at, "invalid map key: only scalars can be keys")),
            },
        }
        Ok(())
    }

    fn remember(&mut self, anchor: usize, value: &Value, at: &Marker) -> Result<(), YamlError> {
        let (values, bytes) = size(value);
        self.spend(values, bytes, at)?;
        self.anchors.insert(anchor, Anchored { value: value.clone(), values, bytes });
        Ok(())
    }

    fn spend(&mut self, values: usize, bytes: usize, at: &Marker) -> Result<(), YamlError> {
        self.aliased_values = self.aliased_values.saturating_add(values);
        self.aliased_bytes = self.aliased_bytes.saturating_add(bytes);
        if self.aliased_values > ALIASED_VALUES_MAX || self.aliased_bytes > ALIASED_BYTES_MAX {
            return Err(failed(at, "document contains excessive aliasing"));
        }
        Ok(())
    }
}

/// Values and bytes of text in a value.
fn size(value: &Value) -> (usize, usize) {
    let add = |(values, bytes): (usize, usize), (more, text): (usize, usize)| (values + more, bytes + text);
    match value {
        Value::String(text) => (1, text.len()),
        Value::Array(items) => items.iter().map(size).fold((1, 0), add),
        Value::Object(fields) => fields.iter().map(|(name, value)| add(size(value), (0, name.len()))).fold((1, 0), add),
        _ => (1, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn expect_read(text: &str, wanted: &Expect) {
        let lines: Vec<String> = match documents(text) {
            Ok(documents) => documents.iter().map(|document| format!("{} {}", document.line, document.value)).collect(),
            Err(error) => vec![error.to_string()],
        };
        wanted.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn documents_have_their_line() {
        expect_read(
            "# first\na: 1\n---\n\n# second\nb: [x, 'y']\n--- # third\n{\"c\": null}\n",
            &expect![[r#"
                2 {"a":1}
                6 {"b":["x","y"]}
                8 {"c":null}"#]],
        );
        expect_read("", &expect![""]);
        expect_read("\t{\"a\":\n\t\t1}", &expect![[r#"1 {"a":1}"#]]);
    }

    #[test]
    fn plain_scalars_mean_what_they_mean_to_kubectl() {
        expect_read(
            "[0644, '0644', yes, 'yes', on, ~, 0x1f, 1e3, 1.5, 089, 2001-01-01, 1_000, -7, +7, .5, 1:2, .inf, !!str 5, 18446744073709551615, a1]",
            &expect![[
                r#"1 [420,"0644",true,"yes",true,null,31,1000,1.5,89,"2001-01-01",1000,-7,7,0.5,"1:2",".inf","5",18446744073709551615,"a1"]"#
            ]],
        );
    }

    #[test]
    fn anchors_and_merges_work() {
        expect_read(
            "base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\nsame: *b\n",
            &expect![[r#"1 {"base":{"x":1,"y":2},"own":{"x":1,"y":3},"same":{"x":1,"y":2}}"#]],
        );
    }

    #[test]
    fn mistakes_have_their_line() {
        expect_read("a: 1\nb:\n  c: 1\n  c: 2\n", &expect![[r#"yaml: line 4: key "c" already set in map"#]]);
        expect_read("a: *b\n", &expect!["yaml: line 1: while parsing node, found unknown anchor"]);
        expect_read("a: b: c\n", &expect!["yaml: line 1: mapping values are not allowed in this context"]);
        expect_read("a: [1\nb: 2\n", &expect!["yaml: line 2: illegal placement of ':' indicator"]);
        expect_read("a:\n\tb: 1\n", &expect!["yaml: line 2: tabs disallowed within this context (block indentation)"]);
        expect_read("{a: 1}: b\n", &expect!["yaml: line 1: invalid map key: only scalars can be keys"]);
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for level in 1..10 {
            let before = vec![format!("*a{}", level - 1); 9].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        expect_read(&laughs, &expect!["yaml: line 5: document contains excessive aliasing"]);
        assert!(documents(&"[".repeat(100_000)).is_err());
        assert!(documents(&"- ".repeat(100_000)).is_err());
        assert!(documents(&"{a: ".repeat(500)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_text_is_answered(text in "[a-c:\\-\\[\\]{}&*!|>'\"#,?%@` \n\t0-9]{0,60}") {
            let _ = documents(&text);
        }

        #[test]
        fn what_is_written_is_read_again(text in "[ -~\n\tä€]{0,30}", key in "[ -~]{1,10}") {
            let value = serde_json::json!({ key: [text.clone(), {"b": text}, [1, true, null]] });
            let written = crate::yaml::to_string(&value);
            let read = documents(&written).map_err(|error| TestCaseError::fail(format!("{error}\n{written}")))?;
            prop_assert_eq!(&read[0].value, &value, "{}", written);
        }
    }
}
