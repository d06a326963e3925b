//! Tables as the server draws them: choosing, adding and ordering columns and rows, then lining them up.

use std::cmp::Ordering;

use serde_json::Value;

use super::jsonpath::{self, Template};
use super::tabs::Grid;

/// How a table is shown.
#[derive(Debug, Clone, Default)]
pub struct TableOptions {
    /// Columns of lower priority too.
    pub wide: bool,
    /// No header line.
    pub no_headers: bool,
    /// A first column with the namespace.
    pub with_namespace: bool,
    /// `pod/` before the names: the word to put there.
    pub kind_prefix: Option<String>,
    /// A last column with all labels.
    pub show_labels: bool,
    /// Labels with a column of their own.
    pub label_columns: Vec<String>,
    /// A first column with the kind of watch event.
    pub event: Option<String>,
}

/// The rows of a table as text cells, the header first unless it is not wanted.
pub fn cells(table: &Value, options: &TableOptions) -> Vec<Vec<String>> {
    let definitions: Vec<&Value> = array(&table["columnDefinitions"]).collect();
    let shown: Vec<usize> = (0..definitions.len())
        .filter(|at| options.wide || definitions[*at]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let mut rows = Vec::new();
    if !options.no_headers {
        let mut header: Vec<String> = Vec::new();
        header.extend(options.event.as_ref().map(|_| "EVENT".to_string()));
        header.extend(options.with_namespace.then(|| "NAMESPACE".to_string()));
        header.extend(shown.iter().map(|at| definitions[*at]["name"].as_str().unwrap_or_default().to_uppercase()));
        // A label's column is headed by the part behind its slash.
        header.extend(
            options.label_columns.iter().map(|label| label.rsplit('/').next().unwrap_or_default().to_uppercase()),
        );
        header.extend(options.show_labels.then(|| "LABELS".to_string()));
        rows.push(header);
    }
    for row in array(&table["rows"]) {
        let metadata = &row["object"]["metadata"];
        let mut line: Vec<String> = Vec::new();
        line.extend(options.event.clone());
        line.extend(options.with_namespace.then(|| metadata["namespace"].as_str().unwrap_or_default().to_string()));
        for at in &shown {
            let mut cell = cell_text(&row["cells"][*at]);
            if definitions[*at]["format"] == "name"
                && let Some(kind) = &options.kind_prefix
            {
                cell = format!("{kind}/{cell}");
            }
            line.push(cell);
        }
        let label = |name: &String| metadata["labels"][name.as_str()].as_str().unwrap_or_default().to_string();
        line.extend(options.label_columns.iter().map(label));
        line.extend(options.show_labels.then(|| labels_text(&metadata["labels"])));
        rows.push(line);
    }
    rows
}

/// Prints a table through a grid that remembers widths. A table without rows prints nothing.
pub fn text(table: &Value, options: &TableOptions, grid: &mut Grid) -> String {
    if array(&table["rows"]).next().is_none() {
        return String::new();
    }
    grid.print(&cells(table, options))
}

/// `app=web,tier=front`, or `<none>`.
pub fn labels_text(labels: &Value) -> String {
    let mut pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() {
        return "<none>".into();
    }
    pairs.sort();
    pairs.join(",")
}

/// A cell as text: cut at the first line break; control characters made visible, so that no object can drive a terminal.
fn cell_text(cell: &Value) -> String {
    let text = match cell {
        Value::Null => return String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.find(['\n', '\r', '\u{c}']) {
        Some(end) => format!("{}...", printable(&text[..end])),
        None => printable(&text),
    }
}

/// Replaces the escape character, as kubectl does.
pub fn printable(text: &str) -> String {
    text.replace('\u{1b}', "^[").replace('\t', " ")
}

/// Orders the rows of a table by a field of their objects; rows without the field come first.
pub fn sort_rows(table: &mut Value, by: &Template) {
    if let Some(rows) = table["rows"].as_array_mut() {
        rows.sort_by(|a, b| order(&a["object"], &b["object"], by));
    }
}

/// Orders two objects by a field.
pub fn order(a: &Value, b: &Value, by: &Template) -> Ordering {
    let field = |object| by.find(object).ok().and_then(|found| found.first().map(|value| (*value).clone()));
    match (field(a), field(b)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => compare(&a, &b),
    }
}

/// Strings compare naturally: runs of digits by their value; quantities and times of one form then come out right too.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::String(a), Value::String(b)) => natural(a, b),
        _ => jsonpath::compare(a, b).unwrap_or(Ordering::Equal),
    }
}

fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (run_a, run_b) = (digits(a), digits(b));
        if run_a > 0 && run_b > 0 {
            let number = |text: &str| text.trim_start_matches('0').to_string();
            let (x, y) = (number(&a[..run_a]), number(&b[..run_b]));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(&y));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (&a[run_a..], &b[run_b..]);
            continue;
        }
        match (a.chars().next(), b.chars().next()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(x), Some(y)) if x != y => return x.cmp(&y),
            (Some(x), Some(_)) => (a, b) = (&a[x.len_utf8()..], &b[x.len_utf8()..]),
        }
    }
}

fn digits(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Value {
        json!({
            "columnDefinitions": [
                {"name": "Name", "format": "name", "priority": 0}, {"name": "Ready", "priority": 0},
                {"name": "Age", "priority": 0}, {"name": "IP", "priority": 1},
            ],
            "rows": [
                {"cells": ["web-10", "1/1", "5m", null], "object": {"metadata": {"name": "web-10", "namespace": "x", "labels": {"app": "web", "a/tier": "f"}}}},
                {"cells": ["web-2", "0/1\nbad", 3, "10.0.0.1"], "object": {"metadata": {"name": "web-2", "namespace": "y"}}},
            ],
        })
    }

    #[test]
    fn as_kubectl_shows_it() {
        let mut text = text(&table(), &TableOptions::default(), &mut Grid::default());
        let options = TableOptions {
            wide: true,
            with_namespace: true,
            kind_prefix: Some("pod".into()),
            show_labels: true,
            label_columns: vec!["a/tier".into()],
            ..Default::default()
        };
        text += &super::text(&table(), &options, &mut Grid::default());
        expect_test::expect![[r#"
            NAME     READY    AGE
            web-10   1/1      5m
            web-2    0/1...   3
            NAMESPACE   NAME         READY    AGE   IP         TIER   LABELS
            x           pod/web-10   1/1      5m               f      a/tier=f,app=web
            y           pod/web-2    0/1...   3     10.0.0.1          <none>
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn sorting_is_natural() {
        let mut table = table();
        sort_rows(&mut table, &Template::relaxed(".metadata.name").unwrap());
        assert_eq!(table["rows"][0]["cells"][0], "web-2");
    }

    #[test]
    fn no_rows_no_header() {
        let empty = json!({"columnDefinitions": [{"name": "Name"}], "rows": []});
        assert_eq!(text(&empty, &TableOptions::default(), &mut Grid::default()), "");
    }
}
