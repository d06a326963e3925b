//! Kinds without a page of their own: every field by its name, `sailColor` as `Sail Color`.

use serde_json::{Map, Value};

use super::page::{Page, scalar};

/// Fields of `metadata` that the head of the page shows already, or that nobody wants to read.
const HIDDEN: [&str; 5] = ["managedFields", "name", "namespace", "labels", "annotations"];

/// The page of any object.
pub fn describe(page: &mut Page, object: &Value) {
    page.head(object);
    if let Some(map) = object.as_object() {
        fields(page, 0, map, false);
    }
}

fn fields(page: &mut Page, level: usize, map: &Map<String, Value>, is_metadata: bool) {
    let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
    pairs.sort_by_key(|(key, _)| key.as_str());
    for (key, value) in pairs {
        if is_metadata && HIDDEN.contains(&key.as_str()) {
            continue;
        }
        let title = title_of(key);
        match value {
            Value::Object(inner) => {
                page.line(level, format!("{title}:"));
                fields(page, level + 1, inner, level == 0 && key == "metadata");
            }
            Value::Array(items) => {
                page.line(level, format!("{title}:"));
                for item in items {
                    match item {
                        Value::Object(inner) => fields(page, level + 1, inner, false),
                        other => page.line(level + 1, scalar(other)),
                    }
                }
            }
            Value::Null => page.field(level, &title, "<nil>"),
            other => page.field(level, &title, scalar(other)),
        }
    }
}

/// `creationTimestamp` -> `Creation Timestamp`, `apiVersion` -> `API Version`; names with other characters stay.
fn title_of(key: &str) -> String {
    if !key.chars().all(char::is_alphanumeric) {
        return key.to_string();
    }
    let mut parts: Vec<String> = Vec::new();
    let chars: Vec<char> = key.chars().collect();
    for (at, c) in chars.iter().enumerate() {
        let before_is_upper = at > 0 && chars[at - 1].is_uppercase();
        let after_is_lower = chars.get(at + 1).is_some_and(|next| next.is_lowercase());
        let starts = at == 0 || (c.is_uppercase() && (!before_is_upper || after_is_lower));
        match parts.last_mut() {
            Some(part) if !starts => part.push(*c),
            _ => parts.push(c.to_string()),
        }
    }
    let word = |part: String| match part.to_uppercase().as_str() {
        upper @ ("API" | "URL" | "UID" | "OSB" | "GUID") => upper.to_string(),
        _ => part.chars().take(1).flat_map(char::to_uppercase).chain(part.chars().skip(1)).collect(),
    };
    parts.into_iter().map(word).collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn titles() {
        for (key, title) in [
            ("apiVersion", "API Version"),
            ("creationTimestamp", "Creation Timestamp"),
            ("uid", "UID"),
            ("podIPs", "Pod I Ps"),
            ("app.kubernetes.io/x", "app.kubernetes.io/x"),
        ] {
            assert_eq!(super::title_of(key), title);
        }
    }
}
