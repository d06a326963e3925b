//! `-o`: how objects are shown. The formats, and a printer that remembers what it has printed already.

pub mod columns;
pub mod gojson;
pub mod jsonpath;
pub mod table;
pub mod tabs;

use serde_json::{Value, json};

use super::failure::{Failure, Result, fail};
use jsonpath::Template;

/// The flags of verbs that print objects.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OutputArgs {
    /// Output format: json, yaml, name, jsonpath=..., jsonpath-as-json=..., jsonpath-file=... (get also: wide, custom-columns=..., custom-columns-file=...)
    #[arg(short = 'o', long)]
    pub output: Option<String>,
    /// If true, keep the managedFields when printing objects in JSON or YAML format
    #[arg(long)]
    pub show_managed_fields: bool,
    /// Template string or path to template file to use with -o=jsonpath, -o=jsonpath-file
    #[arg(long)]
    pub template: Option<String>,
    /// If true, ignore any errors in templates when a field or map key is missing in the template
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub allow_missing_template_keys: bool,
}

/// A format, ready to print.
#[derive(Debug, Clone)]
pub enum Format {
    /// The verb's own: a table, or a line like `pod/a created`.
    Human,
    /// Tables with all columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// `pod/a`.
    Name,
    /// A template's text.
    JsonPath(Template),
    /// A template's values as a JSON list.
    JsonPathAsJson(Template),
    /// Columns of the user's own.
    Columns(columns::Columns),
}

const FORMATS: &str = "json, jsonpath, jsonpath-as-json, jsonpath-file, name, yaml";
const GET_FORMATS: &str =
    "custom-columns, custom-columns-file, json, jsonpath, jsonpath-as-json, jsonpath-file, name, wide, yaml";

impl OutputArgs {
    /// Reads the flags. Tables (`wide` and columns) are only for verbs that show them.
    pub fn format(&self, tables: bool) -> Result<Format> {
        let text = self.output.as_deref().unwrap_or("");
        let (name, given) = match text.split_once('=') {
            Some((name, argument)) => (name, Some(argument.to_string())),
            None => (text, None),
        };
        let argument = given.or_else(|| self.template.clone());
        let format = match (name, tables) {
            ("", _) => Format::Human,
            ("wide", true) => Format::Wide,
            ("json", _) => Format::Json,
            ("yaml", _) => Format::Yaml,
            ("name", _) => Format::Name,
            ("jsonpath" | "jsonpath-as-json" | "jsonpath-file", _) => self.template_format(name, argument)?,
            ("custom-columns", true) => Format::Columns(columns::Columns::parse(&required(name, argument)?)?),
            ("custom-columns-file", true) => {
                let text = read(&required(name, argument)?)?;
                Format::Columns(columns::Columns::parse_file(&text)?)
            }
            ("go-template" | "go-template-file" | "template" | "templatefile", _) => {
                return fail(format!(
                    "the output format {name:?} is not available in this version of coracle, use jsonpath"
                ));
            }
            _ => {
                let allowed = if tables { GET_FORMATS } else { FORMATS }.replace(", ", ",");
                return fail(format!(
                    "unable to match a printer suitable for the output format {text:?}, allowed formats are: {allowed}"
                ));
            }
        };
        Ok(format)
    }

    fn template_format(&self, name: &str, argument: Option<String>) -> Result<Format> {
        let mut text = match argument {
            Some(text) if !text.is_empty() => text,
            _ => return fail("template format specified but no template given"),
        };
        if name == "jsonpath-file" {
            text = read(&text)?;
        }
        let parsed =
            Template::parse(&text).map_err(|error| Failure::Text(format!("error parsing jsonpath {text}, {error}")))?;
        let template = if self.allow_missing_template_keys { parsed } else { parsed.strict() };
        Ok(if name == "jsonpath-as-json" { Format::JsonPathAsJson(template) } else { Format::JsonPath(template) })
    }
}

fn required(name: &str, argument: Option<String>) -> Result<String> {
    argument
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Failure::Text(format!("{name} format specified but no {name} given")))
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::Text(format!("error reading template {file}, {}", go_io_error(file, &error))))
}

/// Go's words for the usual errors of opening a file.
pub fn go_io_error(file: &str, error: &std::io::Error) -> String {
    let cause = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_string(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_string(),
        _ => error.to_string(),
    };
    format!("open {file}: {cause}")
}

/// Prints objects one after the other in one format.
pub struct Printer {
    format: Format,
    keep_managed_fields: bool,
    printed: usize,
}

impl Printer {
    /// A printer for the flags of a verb.
    pub fn new(format: Format, args: &OutputArgs) -> Printer {
        Printer { format, keep_managed_fields: args.show_managed_fields, printed: 0 }
    }

    /// The format.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Whether the verb's own words are wanted instead of the object.
    pub fn is_human(&self) -> bool {
        matches!(self.format, Format::Human | Format::Wide)
    }

    /// Prints one object or list; with the human format, `words` (`deployment.apps/web created`).
    pub fn print(&mut self, object: &Value, words: &str) -> Result<()> {
        let text = self.text(object, words)?;
        self.printed += 1;
        out(&text);
        Ok(())
    }

    fn text(&self, object: &Value, words: &str) -> Result<String> {
        let template_failed = |error: jsonpath::JsonPathError, template: &Template| {
            let _ = template;
            Failure::Text(format!("error executing jsonpath: {error}"))
        };
        Ok(match &self.format {
            Format::Human | Format::Wide => format!("{words}\n"),
            Format::Name => names(object).iter().map(|name| format!("{name}\n")).collect(),
            Format::Json => format!("{}\n", gojson::pretty(&self.shown(object))),
            Format::Yaml => {
                let separator = if self.printed > 0 { "---\n" } else { "" };
                format!("{separator}{}", manifests::yaml::to_string(&self.shown(object)))
            }
            Format::JsonPath(template) => template.render(object).map_err(|error| template_failed(error, template))?,
            Format::JsonPathAsJson(template) => {
                let found = template.find(object).map_err(|error| template_failed(error, template))?;
                format!("{}\n", gojson::pretty(&Value::from(found.into_iter().cloned().collect::<Vec<_>>())))
            }
            Format::Columns(columns) => columns.text(object, self.printed == 0)?,
        })
    }

    fn shown(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if !self.keep_managed_fields {
            let forget = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
                items.iter_mut().for_each(forget);
            } else if object.is_object() {
                forget(&mut object);
            }
        }
        object
    }
}

/// `deployment.apps/web` for an object, or for each of a list.
pub fn names(object: &Value) -> Vec<String> {
    if let Some(items) = object["items"].as_array() {
        return items.iter().flat_map(names).collect();
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let api_version = text(&object["apiVersion"]);
    let group = api_version.split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
    vec![format!("{}{group}/{}", text(&object["kind"]).to_lowercase(), text(&object["metadata"]["name"]))]
}

/// The list that several objects are shown as.
pub fn list_of(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
}

/// Writes to stdout; when nobody reads any more, ends the process as a shell pipe expects.
pub fn out(text: &str) {
    bytes(text.as_bytes());
}

/// Writes bytes to stdout; as above.
pub fn bytes(bytes: &[u8]) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Writes a line to stdout.
pub fn line(text: &str) {
    out(&format!("{text}\n"));
}
