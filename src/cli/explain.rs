//! `explain`: the documentation of kinds and fields, from the OpenAPI document that the server serves.

use serde_json::{Map, Value};

use super::failure::{Failure, Result, fail};
use super::output;
use super::session::Session;

/// Columns that descriptions are wrapped to.
const WRAP_CHARS: usize = 76;
/// How deep `--recursive` goes at most; schemas may contain themselves.
const DEPTH_MAX: usize = 24;

/// Flags of `explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// TYPE[.FIELD...]
    word: Option<String>,
    /// When true, print the name of all the fields recursively
    #[arg(long)]
    recursive: bool,
    /// Use given api-version (group/version) of the resource
    #[arg(long)]
    api_version: Option<String>,
    /// Format: plaintext
    #[arg(long, default_value = "plaintext")]
    output: String,
}

/// Carries it out.
pub async fn run(session: &Session, args: ExplainArgs) -> Result<()> {
    let Some(word) = &args.word else {
        return Err(Failure::Bare(
            "error: You must specify the type of resource to explain. Use \"coracle api-resources\" for a complete list of supported resources.".into(),
        ));
    };
    if args.output != "plaintext" {
        return fail(format!("--output {:?} is not available in this version of coracle", args.output));
    }
    let discovery = session.discovery().await?;
    // Groups have dots as field paths have: the longest word that is a resource counts, the rest are fields.
    let parts: Vec<&str> = word.split('.').collect();
    let (resource, fields) = match discovery.find(parts[0]) {
        Some(resource) => (resource, &parts[1..]),
        None => return Err(Failure::Bare(format!("the server doesn't have a resource type {:?}", parts[0]))),
    };
    let group_parts = if resource.group.is_empty() { 0 } else { resource.group.split('.').count() };
    let has_group = group_parts > 0 && fields.len() >= group_parts && fields[..group_parts].join(".") == resource.group;
    let fields: Vec<&str> =
        fields[if has_group { group_parts } else { 0 }..].iter().copied().filter(|part| !part.is_empty()).collect();
    let api_version = args.api_version.clone().unwrap_or_else(|| resource.api_version());
    let Some(resource) = discovery.by_kind(&api_version, &resource.kind) else {
        return fail(format!("couldn't find resource for {api_version:?}, Kind={}", resource.kind));
    };
    let root = if resource.group.is_empty() { "api" } else { "apis" };
    let index = session.client.get("/openapi/v3").await?;
    let url = index["paths"][format!("{root}/{api_version}")]["serverRelativeURL"].as_str().map(str::to_string);
    let Some(url) = url else { return fail(format!("couldn't find OpenAPI of {api_version}")) };
    let document = session.client.get(&url).await?;
    let text = explain(&document, &resource.group, &resource.version, &resource.kind, &fields, args.recursive)?;
    output::out(&text);
    Ok(())
}

/// The whole page.
fn explain(
    document: &Value,
    group: &str,
    version: &str,
    kind: &str,
    fields: &[&str],
    recursive: bool,
) -> Result<String> {
    let schemas = document["components"]["schemas"].as_object();
    let is_it = |schema: &&Value| {
        let names = schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
        names.into_iter().any(|gvk| gvk["group"] == group && gvk["version"] == version && gvk["kind"] == kind)
    };
    let Some(schema) = schemas.into_iter().flat_map(Map::values).find(is_it) else {
        return fail(format!("GVK {group}/{version}, Kind={kind} not found in OpenAPI schema"));
    };
    let page = Page { document, recursive };
    let mut out = String::new();
    if !group.is_empty() {
        out += &format!("GROUP:      {group}\n");
    }
    out += &format!("KIND:       {kind}\nVERSION:    {version}\n\n");
    page.walk(schema, fields, &mut out)?;
    Ok(out)
}

struct Page<'a> {
    document: &'a Value,
    recursive: bool,
}

impl<'a> Page<'a> {
    /// Follows a reference, also one that stands alone in `allOf`.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..DEPTH_MAX {
            let reference = schema["$ref"].as_str().or_else(|| match schema["allOf"].as_array() {
                Some(all) if all.len() == 1 => all[0]["$ref"].as_str(),
                _ => None,
            });
            match reference.and_then(|text| text.rsplit('/').next()) {
                Some(name) => schema = &self.document["components"]["schemas"][name],
                None => break,
            }
        }
        schema
    }

    fn walk(&self, schema: &'a Value, fields: &[&str], out: &mut String) -> Result<()> {
        let resolved = self.resolve(schema);
        let Some((first, rest)) = fields.split_first() else {
            self.describe(schema, out);
            return Ok(());
        };
        if let Some(field) = resolved["properties"].get(*first) {
            if rest.is_empty() {
                *out += &format!("FIELD: {first} <{}>\n", self.type_of(field));
                self.enumeration(field, "", out);
                *out += "\n\n";
            }
            return self.walk(field, rest, out);
        }
        for inner in ["items", "additionalProperties"] {
            if resolved[inner].is_object() {
                return self.walk(&resolved[inner], fields, out);
            }
        }
        fail(format!("field {first:?} does not exist"))
    }

    fn describe(&self, schema: &'a Value, out: &mut String) {
        *out += "DESCRIPTION:\n";
        let text = self.description(schema);
        let text = if text.is_empty() { "<empty>".to_string() } else { text };
        // kubectl's page has one more line there, with only the indent.
        *out += &indent(&format!("{}\n", wrap(&text, WRAP_CHARS)), 4);
        let mut fields = String::new();
        self.fields(schema, 1, &mut Vec::new(), &mut fields);
        if !fields.is_empty() {
            *out += "FIELDS:\n";
            *out += &fields;
        }
        *out += "\n";
    }

    /// A field's own words, then those of the type it refers to.
    fn description(&self, schema: &'a Value) -> String {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(schema["description"].as_str().map(str::to_string));
        let resolved = self.resolve(schema);
        if !std::ptr::eq(resolved, schema) {
            parts.extend(resolved["description"].as_str().map(str::to_string));
        }
        for inner in ["items", "additionalProperties"] {
            if resolved[inner].is_object() {
                parts.push(self.description(&resolved[inner]));
            }
        }
        parts.retain(|text| !text.is_empty());
        parts.join("\n")
    }

    fn fields(&self, schema: &'a Value, level: usize, seen: &mut Vec<&'a Value>, out: &mut String) {
        let resolved = self.resolve(schema);
        if level > DEPTH_MAX || seen.iter().any(|known| std::ptr::eq(*known, resolved)) {
            return;
        }
        for inner in ["items", "additionalProperties"] {
            if resolved[inner].is_object() {
                self.fields(&resolved[inner], level, seen, out);
            }
        }
        let Some(properties) = resolved["properties"].as_object() else { return };
        seen.push(resolved);
        let mut names: Vec<&String> = properties.keys().collect();
        names.sort();
        for name in names {
            let field = &properties[name];
            let required = resolved["required"].as_array().into_iter().flatten().any(|known| known == name.as_str());
            let pad = "  ".repeat(level);
            *out += &format!("{pad}{name}\t<{}>", self.type_of(field));
            if required {
                *out += " -required-";
            }
            *out += "\n";
            self.enumeration(field, &pad, out);
            if self.recursive {
                self.fields(field, level + 1, seen, out);
                continue;
            }
            // In a list of fields only the field's own words have room.
            let text = field["description"].as_str().filter(|text| !text.is_empty()).unwrap_or("<no description>");
            *out += &indent(&wrap(text, WRAP_CHARS - 2 * level + 2), 2 * level + 2);
            *out += "\n";
        }
        seen.pop();
    }

    fn enumeration(&self, field: &'a Value, pad: &str, out: &mut String) {
        let resolved = self.resolve(field);
        let Some(values) = field["enum"].as_array().or(resolved["enum"].as_array()) else { return };
        let values: Vec<String> =
            values.iter().map(|value| value.as_str().map_or(value.to_string(), str::to_string)).collect();
        if pad.is_empty() {
            *out += "ENUM:\n";
            values.iter().for_each(|value| *out += &format!("    {value}\n"));
        } else {
            *out += &format!("{pad}enum: {}\n", values.join(", "));
        }
    }

    /// `string`, `[]Container`, `map[string]Quantity`, ...
    fn type_of(&self, schema: &'a Value) -> String {
        if schema["items"].is_object() {
            return format!("[]{}", self.type_of(&schema["items"]));
        }
        if schema["additionalProperties"].is_object() {
            return format!("map[string]{}", self.type_of(&schema["additionalProperties"]));
        }
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        let resolved = self.resolve(schema);
        if let Some(name) = reference.and_then(|text| text.rsplit(['/', '.']).next()) {
            // A type that is only another name of a scalar is shown as the scalar.
            return match resolved["type"].as_str() {
                Some("object") | None => name.to_string(),
                Some(scalar) => scalar.to_string(),
            };
        }
        for many in ["allOf", "anyOf", "oneOf"] {
            if let Some([first, ..]) = resolved[many].as_array().map(Vec::as_slice) {
                return self.type_of(first);
            }
        }
        resolved["type"].as_str().unwrap_or("Object").to_string()
    }
}

/// Breaks lines at words; keeps the line breaks of the text.
fn wrap(text: &str, width: usize) -> String {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let words = paragraph.trim_start_matches(' ');
        let mut line = paragraph[..paragraph.len() - words.len()].to_string();
        let mut is_first = true;
        for word in words.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() && !is_first {
                line.push(' ');
            }
            is_first = false;
            line += word;
        }
        lines.push(line);
    }
    lines.join("\n")
}

fn indent(text: &str, by: usize) -> String {
    let pad = " ".repeat(by);
    text.split('\n').map(|line| format!("{pad}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn page(fields: &[&str], recursive: bool) -> String {
        let document = json!({"components": {"schemas": {
            "io.k8s.api.core.v1.Pod": {
                "description": "Pod is a collection.", "type": "object",
                "properties": {
                    "spec": {"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}], "description": "What is wanted."},
                    "kind": {"type": "string", "description": "The kind."},
                },
                "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Pod"}],
            },
            "io.k8s.api.core.v1.PodSpec": {
                "description": "PodSpec is a description.", "type": "object", "required": ["containers"],
                "properties": {
                    "containers": {"type": "array", "items": {"type": "string"}, "description": "Some."},
                    "restartPolicy": {"type": "string", "enum": ["Always", "Never"], "description": "When."},
                },
            },
        }}});
        explain(&document, "", "v1", "Pod", fields, recursive).unwrap_or_else(|failure| failure.message())
    }

    #[test]
    fn pages() {
        let text = [page(&[], false), page(&["spec"], false), page(&["spec", "restartPolicy"], false), page(&[], true)]
            .join("=====\n");
        expect_test::expect_file!["explain_pages.txt"].assert_eq(&text);
        assert_eq!(page(&["nothing"], false), "error: field \"nothing\" does not exist");
    }
}
