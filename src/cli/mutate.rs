//! The verbs that change objects in place: the loop they share. Each object is read, changed by a function, and the
//! difference is sent as a patch, or shown, or only counted.

use http::Method;
use serde_json::{Map, Value};

use super::client::{Media, with_query};
use super::dry_run::DryRun;
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::output::{OutputArgs, Printer};
use super::session::{Found, Selection, Session};

/// The flags of verbs that change objects.
#[derive(Debug, clap::Args)]
pub struct MutateArgs {
    #[command(flatten)]
    pub files: FileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Select all resources, in the namespace of the specified resource types
    #[arg(long)]
    pub all: bool,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    pub selector: Option<String>,
    /// "none", "server" or "client"
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    pub dry_run: DryRun,
    /// Work on the files' objects without asking the server
    #[arg(long)]
    pub local: bool,
    /// Name of the manager used to track field ownership
    #[arg(long)]
    pub field_manager: Option<String>,
}

impl MutateArgs {
    /// Which objects are meant.
    pub fn selection(&self) -> Selection {
        Selection { selector: self.selector.clone(), field_selector: None, all_namespaces: self.all_namespaces }
    }

    /// The objects that words or files name, as the server has them.
    pub async fn objects(&self, session: &Session, verb: &str, words: &[String]) -> Result<(Vec<Found>, Vec<Failure>)> {
        let selection = self.selection();
        let (targets, mut failures) = session.all_targets(verb, words, &self.files, &selection).await?;
        let nothing_chosen = targets.iter().any(|target| target.name.is_none() && target.manifest.is_none());
        if nothing_chosen && !self.all && !self.all_namespaces && self.selector.is_none() {
            return fail("resource(s) were provided, but no name was specified");
        }
        if self.local {
            let local = targets.into_iter().filter_map(|target| {
                let object = target.manifest.as_ref()?.object.clone();
                Some(Found { target, object })
            });
            return Ok((local.collect(), failures));
        }
        let (found, more) = session.fetch(targets, &selection).await?;
        failures.extend(more);
        if found.is_empty() && failures.is_empty() {
            eprintln!("No resources found");
        }
        Ok((found, failures))
    }
}

/// Changes each object and prints what became of it: `words` gets the object's full name and whether anything changed.
pub async fn each(
    session: &Session,
    args: &MutateArgs,
    found: Vec<Found>,
    mut failures: Vec<Failure>,
    change: impl Fn(&mut Value) -> Result<()>,
    words: impl Fn(&Found, bool) -> String,
) -> Result<()> {
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    for found in found {
        match one(session, args, &found, &change).await {
            Ok((object, changed)) => {
                let suffix = args.dry_run.suffix();
                printer.print(&object, &format!("{}{suffix}", words(&found, changed)))?;
            }
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    all_of(failures)
}

async fn one(
    session: &Session,
    args: &MutateArgs,
    found: &Found,
    change: &impl Fn(&mut Value) -> Result<()>,
) -> Result<(Value, bool)> {
    let mut wanted = found.object.clone();
    change(&mut wanted)?;
    let patch = merge_difference(&found.object, &wanted);
    let Some(patch) = patch else { return Ok((found.object.clone(), false)) };
    if args.local || args.dry_run == DryRun::Client {
        return Ok((wanted, true));
    }
    let mut query: Vec<(&str, String)> = args.dry_run.parameter().into_iter().collect();
    query.extend(args.field_manager.clone().map(|manager| ("fieldManager", manager)));
    let path = with_query(&found.target.path(), &query);
    Ok((session.client.send(Method::PATCH, &path, Media::MergePatch, &patch).await?, true))
}

/// The merge patch from one value to another; none if they are equal.
pub fn merge_difference(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(before) => patch.extend(merge_difference(before, value).map(|inner| (key.clone(), inner))),
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    patch.extend(old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null)));
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences() {
        for (from, to, patch) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (
                json!({"a": 1, "b": {"c": 1, "d": 2}}),
                json!({"b": {"c": 3, "d": 2}}),
                Some(json!({"a": null, "b": {"c": 3}})),
            ),
            (json!({"l": [1]}), json!({"l": [1, 2]}), Some(json!({"l": [1, 2]}))),
            (json!({}), json!({"x": {"y": 1}}), Some(json!({"x": {"y": 1}}))),
        ] {
            assert_eq!(merge_difference(&from, &to), patch);
        }
    }
}
