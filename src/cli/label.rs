//! `label` and `annotate`: `key=value` sets, `key-` removes.

use serde_json::{Value, json};

use super::failure::{Result, all_of, fail};
use super::mutate::{self, MutateArgs};
use super::output;
use super::session::{Session, metadata_of};
use super::words::split_changes;

/// Flags of `label` and `annotate`.
#[derive(Debug, clap::Args)]
pub struct LabelArgs {
    /// TYPE NAME... or TYPE/NAME ..., then KEY=VALUE or KEY- ...
    pub words: Vec<String>,
    #[command(flatten)]
    common: MutateArgs,
    /// Allow labels or annotations to be overwritten
    #[arg(long)]
    overwrite: bool,
    /// Display the labels or annotations
    #[arg(long)]
    list: bool,
    /// Only change the object if it has this resource version
    #[arg(long)]
    resource_version: Option<String>,
}

/// Which of the two maps is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `metadata.labels`
    Labels,
    /// `metadata.annotations`
    Annotations,
}

impl Which {
    fn field(self) -> &'static str {
        match self {
            Which::Labels => "labels",
            Which::Annotations => "annotations",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Which::Labels => "label",
            Which::Annotations => "annotate",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Which::Labels => "labeled",
            Which::Annotations => "annotated",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Changes {
    set: Vec<(String, String)>,
    remove: Vec<String>,
}

/// Carries it out.
pub async fn run(session: &Session, args: LabelArgs, which: Which) -> Result<()> {
    let (words, changes) = split_changes(&args.words);
    let changes = parse(&changes, which)?;
    let is_change = !changes.set.is_empty() || !changes.remove.is_empty();
    if !is_change && !args.list {
        return fail(format!("at least one {} update is required", singular(which)));
    }
    let (found, failures) = args.common.objects(session, which.verb(), &words).await?;
    if !is_change {
        for found in &found {
            for (key, value) in found.object["metadata"][which.field()].as_object().into_iter().flatten() {
                output::line(&format!("{key}={}", value.as_str().unwrap_or_default()));
            }
        }
        return all_of(failures);
    }
    let revision = args.resource_version.clone();
    let change = |object: &mut Value| {
        if let Some(revision) = &revision {
            object["metadata"]["resourceVersion"] = revision.clone().into();
        }
        apply(object, &changes, args.overwrite, which)
    };
    let removed_only = changes.set.is_empty();
    mutate::each(session, &args.common, found, failures, change, |found, changed| {
        let name = found.target.full_name();
        match (which, changed) {
            (Which::Labels, false) => format!("{name} not labeled"),
            (Which::Labels, true) if removed_only => format!("{name} unlabeled"),
            _ => format!("{name} {}", which.done()),
        }
    })
    .await
}

fn singular(which: Which) -> &'static str {
    match which {
        Which::Labels => "label",
        Which::Annotations => "annotation",
    }
}

fn parse(words: &[String], which: Which) -> Result<Changes> {
    let mut changes = Changes { set: Vec::new(), remove: Vec::new() };
    for word in words {
        if let Some((key, value)) = word.split_once('=') {
            if key.is_empty() {
                return fail(format!("invalid {} spec: {word}", singular(which)));
            }
            changes.set.push((key.to_string(), value.to_string()));
        } else if let Some(key) = word.strip_suffix('-') {
            changes.remove.push(key.to_string());
        } else {
            return fail(format!("unknown {} spec: {word}", singular(which)));
        }
    }
    match changes.set.iter().find(|(key, _)| changes.remove.contains(key)) {
        Some((key, _)) => fail(format!(
            "can not both modify and remove a{} in the same command: {key}",
            match which {
                Which::Labels => " label",
                Which::Annotations => "n annotation",
            }
        )),
        None => Ok(changes),
    }
}

fn apply(object: &mut Value, changes: &Changes, overwrite: bool, which: Which) -> Result<()> {
    let Some(metadata) = metadata_of(object) else { return fail("the object has no metadata") };
    let map = metadata.entry(which.field()).or_insert_with(|| json!({}));
    if map.is_null() {
        *map = json!({});
    }
    let Some(map) = map.as_object_mut() else { return fail(format!("metadata.{} is not a map", which.field())) };
    for (key, value) in &changes.set {
        match map.get(key).and_then(Value::as_str) {
            // The cause of a change is new with every change.
            Some(_) if key == "kubernetes.io/change-cause" => {
                map.insert(key.clone(), value.clone().into());
            }
            Some(known) if !overwrite && (known != value || which == Which::Annotations) => {
                return match which {
                    Which::Labels => fail(format!("'{key}' already has a value ({known}), and --overwrite is false")),
                    Which::Annotations => fail(format!(
                        "--overwrite is false but found the following declared annotation(s): '{key}' already has a value ({known})"
                    )),
                };
            }
            _ => {
                map.insert(key.clone(), value.clone().into());
            }
        }
    }
    for key in &changes.remove {
        if map.remove(key).is_none() && which == Which::Labels {
            output::line(&format!("label {key:?} not found."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(which: Which, labels: Value, words: &[&str], overwrite: bool, expected: &str) {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let mut object = json!({"metadata": {"name": "x", which.field(): labels}});
        let done = parse(&words, which).and_then(|changes| apply(&mut object, &changes, overwrite, which));
        let text = done.map_or_else(|failure| failure.message(), |()| object["metadata"][which.field()].to_string());
        assert_eq!(text, expected);
    }

    #[test]
    fn decisions() {
        check(Which::Labels, json!({}), &["a=b", "c="], false, r#"{"a":"b","c":""}"#);
        check(Which::Labels, json!(null), &["a=b"], false, r#"{"a":"b"}"#);
        check(Which::Labels, json!({"a": "b"}), &["a=b"], false, r#"{"a":"b"}"#);
        check(Which::Labels, json!({"a": "b"}), &["a=c"], true, r#"{"a":"c"}"#);
        check(Which::Labels, json!({"a": "b", "d": "e"}), &["a-"], false, r#"{"d":"e"}"#);
        check(
            Which::Labels,
            json!({"a": "b"}),
            &["a=c"],
            false,
            "error: 'a' already has a value (b), and --overwrite is false",
        );
        check(
            Which::Annotations,
            json!({"a": "b"}),
            &["a=c"],
            false,
            "error: --overwrite is false but found the following declared annotation(s): 'a' already has a value (b)",
        );
        check(
            Which::Labels,
            json!({}),
            &["a=b", "a-"],
            false,
            "error: can not both modify and remove a label in the same command: a",
        );
    }
}
