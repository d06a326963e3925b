//! Writing, as kubectl prints: keys sorted, lists not indented, quotes only where a reader would otherwise misread, long
//! lines folded, several lines as a block.

use super::scalar;
use serde_json::{Map, Value};
use std::cmp::Ordering;

/// Columns after which a line is folded at the next blank.
const WIDTH: usize = 80;

/// The value as a YAML document that ends with a newline.
pub fn to_string(value: &Value) -> String {
    let mut out = Writer { text: String::new() };
    match value {
        Value::Object(fields) if !fields.is_empty() => out.map(fields, 0),
        Value::Array(items) if !items.is_empty() => out.list(items, 0),
        other => {
            out.scalar(other, 0);
            out.text.push('\n');
        }
    }
    out.text
}

struct Writer {
    text: String,
}

impl Writer {
    /// A map whose first key starts where the cursor is; the others at the indent.
    fn map(&mut self, fields: &Map<String, Value>, indent: usize) {
        let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
        fields.sort_by(|(a, _), (b, _)| natural(a, b));
        for (at, (name, value)) in fields.into_iter().enumerate() {
            if at > 0 {
                self.indent(indent);
            }
            self.key(name);
            self.text.push(':');
            match value {
                Value::Object(inner) if !inner.is_empty() => {
                    self.text.push('\n');
                    self.indent(indent + 2);
                    self.map(inner, indent + 2);
                }
                Value::Array(items) if !items.is_empty() => {
                    self.text.push('\n');
                    self.indent(indent);
                    self.list(items, indent);
                }
                other => {
                    self.text.push(' ');
                    self.scalar(other, indent + 2);
                    self.text.push('\n');
                }
            }
        }
    }

    /// A list whose first dash stands where the cursor is.
    fn list(&mut self, items: &[Value], indent: usize) {
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.indent(indent);
            }
            self.text.push_str("- ");
            match item {
                Value::Object(fields) if !fields.is_empty() => self.map(fields, indent + 2),
                Value::Array(items) if !items.is_empty() => self.list(items, indent + 2),
                other => {
                    self.scalar(other, indent + 2);
                    self.text.push('\n');
                }
            }
        }
    }

    fn indent(&mut self, columns: usize) {
        self.text.extend(std::iter::repeat_n(' ', columns));
    }

    fn key(&mut self, name: &str) {
        if name.is_empty() {
            self.text.push_str("''");
        } else if scalar::is_misread(name) {
            self.double(name);
        } else if is_plain(name) {
            self.text.push_str(name);
        } else if is_quotable(name) && !name.contains('\n') {
            self.text.push_str(&format!("'{}'", name.replace('\'', "''")));
        } else {
            self.double(name);
        }
    }

    fn scalar(&mut self, value: &Value, indent: usize) {
        let text = match value {
            Value::String(text) => text,
            Value::Object(_) => return self.text.push_str("{}"),
            Value::Array(_) => return self.text.push_str("[]"),
            other => return self.text.push_str(&other.to_string()),
        };
        if text.contains('\n') {
            if is_block(text) { self.block(text, indent) } else { self.double(text) }
        } else if text.is_empty() || scalar::is_misread(text) {
            self.double(text);
        } else if is_plain(text) {
            self.folded(text, indent);
        } else if is_quotable(text) {
            let quoted = format!("'{}'", text.replace('\'', "''"));
            self.folded(&quoted, indent);
        } else {
            self.double(text);
        }
    }

    /// Plain or single-quoted text, broken at blanks after the width.
    fn folded(&mut self, text: &str, indent: usize) {
        let start = self.text.rfind('\n').map_or(0, |at| at + 1);
        let mut column = self.text[start..].chars().count();
        let bytes = text.as_bytes();
        for (at, char) in text.char_indices() {
            let around = |at: Option<usize>| at.and_then(|at| bytes.get(at)) == Some(&b' ');
            let is_alone = !around(at.checked_sub(1)) && !around(Some(at + 1)) && at + 1 < bytes.len();
            if char == ' ' && column > WIDTH && at > 1 && at + 2 < bytes.len() && is_alone {
                self.text.push('\n');
                self.indent(indent);
                column = indent;
            } else {
                self.text.push(char);
                column += 1;
            }
        }
    }

    /// Several lines, literally.
    fn block(&mut self, text: &str, indent: usize) {
        self.text.push('|');
        if text.starts_with([' ', '\n']) {
            self.text.push('2');
        }
        let body = match text.strip_suffix('\n') {
            None => {
                self.text.push('-');
                text
            }
            Some(body) if body.is_empty() || body.ends_with('\n') => {
                self.text.push('+');
                body
            }
            Some(body) => body,
        };
        for line in body.split('\n') {
            self.text.push('\n');
            if !line.is_empty() {
                self.indent(indent.max(2));
                self.text.push_str(line);
            }
        }
    }

    fn double(&mut self, text: &str) {
        self.text.push('"');
        for char in text.chars() {
            match char {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\t' => self.text.push_str("\\t"),
                '\r' => self.text.push_str("\\r"),
                '\0' => self.text.push_str("\\0"),
                char if is_printable(char) => self.text.push(char),
                char => match u32::from(char) {
                    code @ 0..=0xff => self.text.push_str(&format!("\\x{code:02X}")),
                    code @ 0..=0xffff => self.text.push_str(&format!("\\u{code:04X}")),
                    code => self.text.push_str(&format!("\\U{code:08X}")),
                },
            }
        }
        self.text.push('"');
    }
}

fn is_printable(char: char) -> bool {
    !char.is_control() && !matches!(char, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether single quotes are enough.
fn is_quotable(text: &str) -> bool {
    text.chars().all(is_printable)
}

/// Whether text of several lines can stand as a block.
fn is_block(text: &str) -> bool {
    let is_text = text.chars().all(|char| char == '\n' || is_printable(char));
    is_text && !text.contains(" \n") && !text.ends_with(' ') && text.chars().any(|char| char != '\n')
}

/// Whether text can stand plainly as a value or key of a block.
fn is_plain(text: &str) -> bool {
    let first = text.chars().next().unwrap_or(' ');
    let is_blank_at = |at: usize| text.as_bytes().get(at).is_none_or(|byte| *byte == b' ');
    let is_opening = match first {
        '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => false,
        '-' | '?' | ':' => !is_blank_at(1),
        _ => true,
    };
    is_opening
        && !text.starts_with("---")
        && !text.starts_with("...")
        && !text.starts_with(' ')
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && text.chars().all(is_printable)
}

/// Go's order of YAML keys: numbers in them by value, letters after all else.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) else { return a.len().cmp(&b.len()) };
    match (a[at].is_alphabetic(), b[at].is_alphabetic()) {
        (true, true) => return a[at].cmp(&b[at]),
        (false, true) => return Ordering::Less,
        (true, false) => return Ordering::Greater,
        (false, false) => {}
    }
    let digits = |text: &[char]| text[at..].iter().take_while(|char| char.is_ascii_digit()).count();
    let number =
        |text: &[char], count: usize| text[at..at + count].iter().collect::<String>().parse::<u64>().unwrap_or(0);
    let (count_a, count_b) = (digits(&a), digits(&b));
    number(&a, count_a).cmp(&number(&b, count_b)).then(count_a.cmp(&count_b)).then(a[at].cmp(&b[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn writes_as_kubectl_prints() {
        let value = json!({
            "kind": "X", "apiVersion": "v1", "empty": {}, "none": [], "null": null, "a10": 1, "a9": 2,
            "metadata": {"creationTimestamp": "2024-01-01T00:00:00Z", "labels": {"on": "yes", "n": "5"}},
            "list": [{"b": 1, "a": [1, 2]}, ["x", "y"], "- z", "a: b", "it's", "", " pad", "#c", "tab\there"],
            "script": "#!/bin/sh\necho\n", "cut": "a\nb", "wide": "a\n\n", "led": "  a\nb\n",
            "message": "The node was low on resource: storage. Container web was using 105Mi, which exceeds its request of 0.",
        });
        expect![[r##"
            a9: 2
            a10: 1
            apiVersion: v1
            cut: |-
              a
              b
            empty: {}
            kind: X
            led: |2
                a
              b
            list:
            - a:
              - 1
              - 2
              b: 1
            - - x
              - "y"
            - '- z'
            - 'a: b'
            - it's
            - ""
            - ' pad'
            - '#c'
            - "tab\there"
            message: 'The node was low on resource: storage. Container web was using 105Mi, which
              exceeds its request of 0.'
            metadata:
              creationTimestamp: "2024-01-01T00:00:00Z"
              labels:
                "n": "5"
                "on": "yes"
            none: []
            "null": null
            script: |
              #!/bin/sh
              echo
            wide: |+
              a

        "##]]
        .assert_eq(&to_string(&value));
    }
}
