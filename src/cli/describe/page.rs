//! The lines of a description: labels and annotations over several lines, indented parts, the table of events at the end.

use serde_json::Value;

use super::super::duration;
use super::super::events;
use super::super::output::{table, tabs};

/// Longer annotations get lines of their own, and are cut.
const ANNOTATION_CHARS_MAX: usize = 140;

/// Lines with tabs between cells.
#[derive(Debug)]
pub struct Page {
    text: String,
    /// Whether the events of the object belong on the page.
    pub wants_events: bool,
    now: jiff::Timestamp,
}

impl Default for Page {
    fn default() -> Page {
        Page { text: String::new(), wants_events: true, now: jiff::Timestamp::now() }
    }
}

/// A string field; empty if it is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The elements of a list; nothing if it is none.
pub fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A scalar as it is written.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The text, or `<none>`.
pub fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

impl Page {
    /// A line at a level of indent (two spaces each).
    pub fn line(&mut self, level: usize, line: impl AsRef<str>) {
        self.text.extend(std::iter::repeat_n("  ", level));
        self.text.push_str(&line.as_ref().replace('\u{1b}', "^["));
        self.text.push('\n');
    }

    /// `Key:<tab>value` at a level.
    pub fn field(&mut self, level: usize, key: &str, value: impl AsRef<str>) {
        self.line(level, format!("{key}:\t{}", value.as_ref()));
    }

    /// Text as it stands.
    pub fn raw(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// A map over several lines, `key=value` each.
    pub fn labels(&mut self, title: &str, labels: &Value) {
        let mut pairs: Vec<(&String, &Value)> = labels.as_object().into_iter().flatten().collect();
        pairs.sort_by_key(|(key, _)| key.as_str());
        if pairs.is_empty() {
            return self.field(0, title, "<none>");
        }
        for (at, (key, value)) in pairs.into_iter().enumerate() {
            let head = if at == 0 { format!("{title}:") } else { String::new() };
            self.line(0, format!("{head}\t{key}={}", text(value)));
        }
    }

    /// A map on one line, `key=value` with commas.
    pub fn labels_line(&mut self, title: &str, labels: &Value) {
        self.field(0, title, table::labels_text(labels));
    }

    /// Annotations over several lines, without the one that repeats the whole object.
    pub fn annotations(&mut self, title: &str, annotations: &Value) {
        let mut pairs: Vec<(&String, &Value)> = annotations.as_object().into_iter().flatten().collect();
        pairs.retain(|(key, _)| *key != super::super::apply::LAST_APPLIED);
        pairs.sort_by_key(|(key, _)| key.as_str());
        if pairs.is_empty() {
            return self.field(0, title, "<none>");
        }
        for (at, (key, value)) in pairs.into_iter().enumerate() {
            let head = if at == 0 { format!("{title}:") } else { String::new() };
            let value = text(value).trim_end_matches('\n');
            if key.len() + value.len() + 2 <= ANNOTATION_CHARS_MAX && !value.contains('\n') {
                self.line(0, format!("{head}\t{key}: {value}"));
                continue;
            }
            self.line(0, format!("{head}\t{key}:"));
            for part in value.split('\n') {
                self.line(0, format!("\t  {}", shorten(part, ANNOTATION_CHARS_MAX - 2)));
            }
        }
    }

    /// Name, namespace, labels, annotations: how most pages begin.
    pub fn head(&mut self, object: &Value) {
        let metadata = &object["metadata"];
        self.field(0, "Name", text(&metadata["name"]));
        if let Some(namespace) = metadata["namespace"].as_str() {
            self.field(0, "Namespace", namespace);
        }
        self.labels("Labels", &metadata["labels"]);
        self.annotations("Annotations", &metadata["annotations"]);
    }

    /// Who controls the object, if anybody does.
    pub fn controlled_by(&mut self, object: &Value) {
        if let Some(owner) = each(&object["metadata"]["ownerReferences"]).find(|owner| owner["controller"] == true) {
            self.field(0, "Controlled By", format!("{}/{}", text(&owner["kind"]), text(&owner["name"])));
        }
    }

    /// The table of events.
    pub fn events(&mut self, list: &[Value]) {
        if list.is_empty() {
            return self.field(0, "Events", "<none>");
        }
        self.line(0, "Events:");
        self.line(1, "Type\tReason\tAge\tFrom\tMessage");
        self.line(1, "----\t------\t----\t----\t-------");
        for event in list {
            let source = [&event["source"]["component"], &event["reportingComponent"]]
                .into_iter()
                .map(text)
                .find(|s| !s.is_empty());
            let from = source.unwrap_or_default();
            let message = table::printable(text(&event["message"]).trim());
            let age = events::seen(event, self.now);
            self.line(1, format!("{}\t{}\t{age}\t{from}\t{message}", text(&event["type"]), text(&event["reason"])));
        }
    }

    /// The age of a time.
    pub fn age(&self, time: &Value) -> String {
        duration::since(time.as_str(), self.now)
    }

    /// The page, lined up.
    pub fn finish(self) -> String {
        tabs::align(&self.text, 2)
    }

    /// The page with its tabs.
    pub fn finish_raw(self) -> String {
        self.text
    }
}

fn shorten(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars { text.to_string() } else { text.chars().take(chars).collect::<String>() + "..." }
}
