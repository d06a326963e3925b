//! `wait`: until a condition holds, a field has a value, or an object exists or is gone.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::Value;

use super::client::with_query;
use super::duration;
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::get_watch::as_collection;
use super::output::jsonpath::{self, Template};
use super::output::{OutputArgs, Printer};
use super::session::{Selection, Session, Target};

/// What a negative timeout means.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often one looks for an object that does not exist yet.
const POLL: Duration = Duration::from_millis(200);

/// Flags of `wait`.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// TYPE/NAME ... or TYPE with -l or --all
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The condition to wait on: create, delete, condition=NAME[=VALUE], jsonpath='{...}'[=VALUE]
    #[arg(long = "for")]
    for_what: Option<String>,
    /// How long to wait before giving up; zero means check once, negative means a week
    #[arg(long, default_value = "30s", allow_hyphen_values = true)]
    timeout: String,
    /// Select all resources in the namespace of the specified resource types
    #[arg(long)]
    all: bool,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Selector (field query) to filter on
    #[arg(long)]
    field_selector: Option<String>,
}

/// What is waited for.
#[derive(Debug)]
enum Awaited {
    Created,
    Deleted,
    Condition { name: String, status: String },
    Field { path: Template, value: Option<String> },
}

impl Awaited {
    fn parse(text: &str) -> Result<Awaited> {
        let lower = text.to_lowercase();
        if lower == "create" {
            return Ok(Awaited::Created);
        }
        if lower == "delete" {
            return Ok(Awaited::Deleted);
        }
        if let Some(condition) = text.strip_prefix("condition=") {
            let (name, status) = condition.split_once('=').unwrap_or((condition, "true"));
            return Ok(Awaited::Condition { name: name.into(), status: status.into() });
        }
        if let Some(rest) = text.strip_prefix("jsonpath=") {
            return Awaited::field(rest);
        }
        fail(format!("unrecognized condition: {text:?}"))
    }

    /// `'{.status.phase}'=Running`, or only a path that has to have any value.
    fn field(text: &str) -> Result<Awaited> {
        let bare = text.trim_matches('\'');
        let end = match bare.rfind('}') {
            Some(end) => end + 1,
            None => {
                return fail(format!(
                    "jsonpath wait format must be --for=jsonpath='{{.status.readyReplicas}}'=3 or --for=jsonpath='{{.status.readyReplicas}}', got {text:?}"
                ));
            }
        };
        // Quotes that the shell did not take may stand around the path.
        let (path, rest) = (&bare[..end], bare[end..].trim_start_matches('\''));
        let value = match rest.strip_prefix('=') {
            Some("") => return fail("jsonpath wait has to have a value after equal sign"),
            Some(value) => Some(value.trim_matches(['\'', '"']).to_string()),
            None if rest.is_empty() => None,
            None => return fail(format!("unrecognized jsonpath wait: {text:?}")),
        };
        let path = Template::relaxed(path).map_err(|error| Failure::Text(error.to_string()))?;
        Ok(Awaited::Field { path, value })
    }

    fn holds(&self, object: &Value) -> Result<bool> {
        match self {
            Awaited::Created => Ok(true),
            Awaited::Deleted => Ok(false),
            Awaited::Condition { name, status } => Ok(condition_holds(object, name, status)),
            Awaited::Field { path, value } => {
                let found = path.find(object).map_err(|error| Failure::Text(error.to_string()))?;
                match (found.as_slice(), value) {
                    ([], _) => Ok(false),
                    ([_], None) => Ok(true),
                    ([Value::Object(_) | Value::Array(_)], Some(_)) => {
                        fail("jsonpath leads to a nested object or list which is not supported")
                    }
                    ([one], Some(value)) => Ok(jsonpath::text_of(one) == *value),
                    _ => fail("given jsonpath expression matches more than one value"),
                }
            }
        }
    }
}

/// Whether the condition has the status and is about the object as it is now.
fn condition_holds(object: &Value, name: &str, status: &str) -> bool {
    let generation = object["metadata"]["generation"].as_i64();
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    for condition in conditions {
        if !condition["type"].as_str().unwrap_or_default().eq_ignore_ascii_case(name) {
            continue;
        }
        let observed = condition["observedGeneration"].as_i64().or(object["status"]["observedGeneration"].as_i64());
        if let (Some(observed), Some(generation)) = (observed, generation)
            && observed < generation
        {
            return false;
        }
        return condition["status"].as_str().unwrap_or_default().eq_ignore_ascii_case(status);
    }
    false
}

/// Carries it out.
pub async fn run(session: &Session, args: WaitArgs) -> Result<()> {
    let Some(text) = &args.for_what else { return fail("unrecognized condition: \"\"") };
    let awaited = Awaited::parse(text)?;
    let limit = duration::parse_signed(&args.timeout)
        .map_err(|error| Failure::Text(format!("invalid argument {:?} for \"--timeout\" flag: {error}", args.timeout)))?
        .unwrap_or(WEEK);
    let selection = Selection {
        selector: args.selector.clone(),
        field_selector: args.field_selector.clone(),
        all_namespaces: args.all_namespaces,
    };
    let deadline = Instant::now() + limit;
    let (targets, mut failures) = session.all_targets("wait", &args.words, &args.files, &selection).await?;
    let chooses = args.all || args.selector.is_some() || args.field_selector.is_some() || args.all_namespaces;
    if targets.iter().any(|target| target.name.is_none() && target.manifest.is_none()) && !chooses {
        return fail("resource(s) were provided, but no name was specified");
    }
    let targets = members(session, &awaited, targets, &selection, deadline, &mut failures).await?;
    if targets.is_empty() && failures.is_empty() && !matches!(awaited, Awaited::Deleted) {
        return fail("no matching resources found");
    }
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    for target in &targets {
        // Each object has the whole time, as with kubectl.
        match until(session, &awaited, target, Instant::now() + limit).await {
            Ok(Some(object)) => printer.print(&object, &format!("{} condition met", target.full_name()))?,
            Ok(None) => {}
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    all_of(failures)
}

/// The objects to wait for. A collection that is waited to exist is asked for until it has members.
async fn members(
    session: &Session,
    awaited: &Awaited,
    targets: Vec<Target>,
    selection: &Selection,
    deadline: Instant,
    failures: &mut Vec<Failure>,
) -> Result<Vec<Target>> {
    let (named, collections): (Vec<Target>, Vec<Target>) =
        targets.into_iter().partition(|target| target.name.is_some());
    let mut all = named;
    loop {
        let (found, more) = session.fetch(collections.clone(), selection).await?;
        let waits = matches!(awaited, Awaited::Created) && !collections.is_empty();
        if found.is_empty() && waits && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
            continue;
        }
        failures.extend(more);
        all.extend(found.into_iter().map(|found| found.target));
        return Ok(all);
    }
}

/// The object when what is waited for is true; none if it was gone before one looked.
async fn until(session: &Session, awaited: &Awaited, target: &Target, deadline: Instant) -> Result<Option<Value>> {
    let work = async {
        match awaited {
            Awaited::Deleted => until_deleted(session, target, deadline).await,
            Awaited::Created => loop {
                match session.client.get(&target.path()).await {
                    Err(failure) if failure.is_not_found() => tokio::time::sleep(POLL).await,
                    other => return other.map(Some),
                }
            },
            _ => until_holds(session, awaited, target, deadline).await.map(Some),
        }
    };
    let limit = deadline.saturating_duration_since(Instant::now());
    // Even with no time at all the object is looked at once.
    match tokio::time::timeout(limit.max(Duration::from_secs(2)), work).await {
        Ok(done) => done,
        Err(_) if matches!(awaited, Awaited::Created) => fail("timed out waiting for the condition"),
        Err(_) => timed_out(target),
    }
}

fn timed_out<T>(target: &Target) -> Result<T> {
    let name = target.name.as_deref().unwrap_or_default();
    fail(format!("timed out waiting for the condition on {}/{name}", target.resource.plural))
}

async fn until_deleted(session: &Session, target: &Target, deadline: Instant) -> Result<Option<Value>> {
    let object = match session.client.get(&target.path()).await {
        Err(failure) if failure.is_not_found() => return Ok(None),
        other => other?,
    };
    let uid = object["metadata"]["uid"].as_str();
    super::delete::until_gone(session, target, uid, deadline).await?;
    Ok(Some(object))
}

async fn until_holds(session: &Session, awaited: &Awaited, target: &Target, deadline: Instant) -> Result<Value> {
    let mut seen = session.client.get(&target.path()).await?;
    let (collection, selection) = as_collection(target, Selection::default());
    loop {
        if awaited.holds(&seen)? {
            return Ok(seen);
        }
        if Instant::now() >= deadline {
            return timed_out(target);
        }
        let mut query = selection.query();
        query.push(("watch", "true".into()));
        query.push(("resourceVersion", seen["metadata"]["resourceVersion"].as_str().unwrap_or_default().into()));
        let mut events = session.client.watch(&with_query(&collection.path(), &query), "application/json").await?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(event) = tokio::time::timeout(left, events.next()).await else { return timed_out(target) };
            let Some(Ok(event)) = event else { break };
            match event["type"].as_str() {
                Some("DELETED") => {
                    let name = target.name.as_deref().unwrap_or_default();
                    return fail(format!(
                        "condition can't be met because {}/{name} was deleted",
                        target.resource.plural
                    ));
                }
                Some("ADDED" | "MODIFIED") if awaited.holds(&event["object"])? => return Ok(event["object"].clone()),
                _ => {}
            }
        }
        // The watch ended (or its revision is too old): look again, and watch from there.
        seen = session.client.get(&target.path()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_awaited() {
        let object = json!({
            "metadata": {"generation": 2},
            "status": {"phase": "Running", "n": 3, "observedGeneration": 2,
                       "conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1}]},
        });
        for (text, expected) in [
            ("condition=Ready", "true"),
            ("condition=ready=TRUE", "true"),
            ("condition=Ready=False", "false"),
            ("condition=Old", "false"),
            ("condition=Missing", "false"),
            ("jsonpath={.status.phase}=Running", "true"),
            ("jsonpath='{.status.phase}'=Running", "true"),
            ("jsonpath={.status.n}=3", "true"),
            ("jsonpath={.status.n}", "true"),
            ("jsonpath={.status.none}=3", "false"),
            ("jsonpath={.status}=3", "error: jsonpath leads to a nested object or list which is not supported"),
            ("jsonpath={.status.n}=", "error: jsonpath wait has to have a value after equal sign"),
            ("nonsense", "error: unrecognized condition: \"nonsense\""),
        ] {
            let held = Awaited::parse(text).and_then(|awaited| awaited.holds(&object));
            assert_eq!(held.map_or_else(|failure| failure.message(), |held| held.to_string()), expected, "{text}");
        }
    }
}
