//! `-o custom-columns=NAME:.metadata.name,...`: columns that the user names.

use serde_json::Value;

use super::super::failure::{Failure, Result, fail};
use super::jsonpath::Template;
use super::tabs;

/// Headers and what stands below them.
#[derive(Debug, Clone)]
pub struct Columns {
    columns: Vec<(String, Template)>,
    /// Whether the header line is left out.
    pub no_headers: bool,
}

impl Columns {
    /// Reads `HEADER:path,HEADER:path`.
    pub fn parse(text: &str) -> Result<Columns> {
        let mut columns = Vec::new();
        for part in split(text) {
            let Some((header, path)) = part.split_once(':') else {
                return fail(format!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"));
            };
            columns.push((header.to_string(), template(path)?));
        }
        Ok(Columns { columns, no_headers: false })
    }

    /// Reads a file of two lines: headers, then paths, both parted by blanks.
    pub fn parse_file(text: &str) -> Result<Columns> {
        let mut lines = text.lines();
        let (headers, paths) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let headers: Vec<&str> = headers.split_whitespace().collect();
        let paths: Vec<&str> = paths.split_whitespace().collect();
        if headers.is_empty() || headers.len() != paths.len() {
            return fail(format!(
                "number of headers ({}) and field specifications ({}) don't match",
                headers.len(),
                paths.len()
            ));
        }
        let columns = headers
            .iter()
            .zip(paths)
            .map(|(header, path)| Ok((header.to_string(), template(path)?)))
            .collect::<Result<_>>()?;
        Ok(Columns { columns, no_headers: false })
    }

    /// The lines for an object or for each of a list; headers first, if they are wanted.
    pub fn text(&self, object: &Value, with_headers: bool) -> Result<String> {
        let mut rows = Vec::new();
        if with_headers && !self.no_headers {
            rows.push(self.columns.iter().map(|(header, _)| header.clone()).collect());
        }
        match object["items"].as_array() {
            Some(items) => {
                for item in items {
                    rows.push(self.row(item)?);
                }
            }
            None => rows.push(self.row(object)?),
        }
        Ok(tabs::grid(&rows))
    }

    fn row(&self, object: &Value) -> Result<Vec<String>> {
        self.columns
            .iter()
            .map(|(_, template)| {
                let found = template.find(object).map_err(|error| Failure::Text(error.to_string()))?;
                if found.is_empty() {
                    return Ok("<none>".to_string());
                }
                Ok(found.into_iter().map(go_text).collect::<Vec<_>>().join(","))
            })
            .collect()
    }
}

/// Go's `%v`: what kubectl prints for lists and maps in a column.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut fields: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

fn template(path: &str) -> Result<Template> {
    Template::relaxed(path).map_err(|error| Failure::Text(error.to_string()))
}

/// Splits at commas that are not inside brackets or quotes.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut part, mut depth, mut quote) = (Vec::new(), String::new(), 0, None);
    for c in text.chars() {
        match (c, quote) {
            (',', None) if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            ('[' | '(', None) => depth += 1,
            (']' | ')', None) => depth -= 1,
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns() {
        let list = json!({"items": [{"metadata": {"name": "a", "labels": {"x": "y"}}, "p": [1, 2]}, {"metadata": {"name": "b"}}]});
        let columns = Columns::parse("NAME:.metadata.name,L:metadata.labels,P:{.p[*]},ALL:.p").unwrap();
        expect_test::expect![[r#"
            NAME   L          P        ALL
            a      map[x:y]   1,2      [1 2]
            b      <none>     <none>   <none>
        "#]]
        .assert_eq(&columns.text(&list, true).unwrap());
        assert_eq!(
            Columns::parse("NAME").unwrap_err().message(),
            "error: unexpected custom-columns spec: NAME, expected <header>:<json-path-expr>"
        );
        assert!(Columns::parse_file("A B\n.a\n").is_err());
        assert_eq!(Columns::parse_file("A\n.p[0]\n").unwrap().text(&list["items"][0], false).unwrap(), "1\n");
    }
}
