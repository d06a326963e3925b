//! JSON as Go's encoder writes it, which is what scripts that read kubectl's output have always seen: keys sorted, `<`, `>`
//! and `&` escaped, four spaces of indent in the long form.

use serde_json::Value;

/// One line without spaces.
pub fn compact(value: &Value) -> String {
    let mut out = String::new();
    write(value, None, &mut out);
    out
}

/// Four spaces per level, no newline at the end.
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(value, Some(0), &mut out);
    out
}

fn newline(level: usize, out: &mut String) {
    out.push('\n');
    out.extend(std::iter::repeat_n("    ", level));
}

fn write(value: &Value, level: Option<usize>, out: &mut String) {
    let inner = level.map(|level| level + 1);
    match value {
        Value::String(text) => write_string(text, out),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                inner.inspect(|level| newline(*level, out));
                write(item, inner, out);
            }
            level.inspect(|level| newline(*level, out));
            out.push(']');
        }
        Value::Object(map) => {
            // serde_json keeps insertion order if any crate of the build asks it to; Go never does.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (at, (key, item)) in entries.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                inner.inspect(|level| newline(*level, out));
                write_string(key, out);
                out.push_str(if level.is_some() { ": " } else { ":" });
                write(item, inner, out);
            }
            level.inspect(|level| newline(*level, out));
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_go() {
        let value = serde_json::json!({"b": [1, "<&>"], "a": {}, "c": [], "d": null});
        assert_eq!(compact(&value), r#"{"a":{},"b":[1,"\u003c\u0026\u003e"],"c":[],"d":null}"#);
        expect_test::expect![[r#"
            {
                "a": {},
                "b": [
                    1,
                    "\u003c\u0026\u003e"
                ],
                "c": [],
                "d": null
            }"#]]
        .assert_eq(&pretty(&value));
    }
}
