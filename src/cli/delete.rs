//! `delete`: by name, by label, by file; and the wait until what was deleted is gone.

use std::time::{Duration, Instant};

use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use super::client::{Media, with_query};
use super::dry_run::DryRun;
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::get_watch::as_collection;
use super::output;
use super::session::{Selection, Session, Target};

/// kubectl's way of saying "no limit".
const WAIT_LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Flags of `delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// TYPE [NAME...] or TYPE/NAME ...
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Delete all resources, in the namespace of the specified resource types
    #[arg(long)]
    all: bool,
    /// Delete the selected objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Selector (field query) to filter on
    #[arg(long)]
    field_selector: Option<String>,
    /// What happens to dependents: background, orphan or foreground
    #[arg(long, default_value = "background", num_args = 0..=1, require_equals = true, default_missing_value = "background")]
    cascade: String,
    /// "none", "server" or "client"
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    dry_run: DryRun,
    /// Immediately remove resources and bypass graceful deletion
    #[arg(long)]
    force: bool,
    /// Seconds given to the resource to terminate gracefully; ignored if negative
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    grace_period: i64,
    /// Treat "resource not found" as a successful delete
    #[arg(long)]
    ignore_not_found: bool,
    /// Delete only when the user confirms
    #[arg(short = 'i', long)]
    interactive: bool,
    /// Signal for immediate shutdown (same as --grace-period=1)
    #[arg(long)]
    now: bool,
    /// Use "-o name" for shorter output (resource/name)
    #[arg(short = 'o', long)]
    output: Option<String>,
    /// How long to wait before giving up on a delete; zero means no limit
    #[arg(long, default_value = "0s", value_parser = super::duration::flag)]
    timeout: Duration,
    /// If true, wait for resources to be gone before returning
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    wait: bool,
}

/// Carries it out.
pub async fn run(session: &Session, args: DeleteArgs) -> Result<()> {
    let selection = Selection {
        selector: args.selector.clone(),
        field_selector: args.field_selector.clone(),
        all_namespaces: args.all_namespaces,
    };
    let grace = grace_period(&args)?;
    let propagation = match args.cascade.as_str() {
        "background" | "true" => "Background",
        "foreground" => "Foreground",
        "orphan" | "false" => "Orphan",
        other => {
            return fail(format!(
                "invalid cascade value ({other}). Must be \"background\", \"foreground\", or \"orphan\""
            ));
        }
    };
    if args.output.as_deref().is_some_and(|output| output != "name" && !output.is_empty()) {
        return fail(format!(
            "unexpected -o output mode: {}. We only support '-o name'",
            args.output.as_deref().unwrap_or_default()
        ));
    }
    if args.words.is_empty() && args.files.is_empty() {
        return Err(Failure::Bare(
            "error: You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f rsrc.yaml'\n   '--filename=rsrc.json'\n   '<resource> <name>'\n   '<resource>'".into(),
        ));
    }
    if args.all && (args.selector.is_some() || args.field_selector.is_some()) && args.field_selector.is_none() {
        return fail("cannot set --all and --selector at the same time");
    }
    let (targets, mut failures) = session.all_targets("delete", &args.words, &args.files, &selection).await?;
    let (targets, ignore) = expand(session, &args, &selection, targets, &mut failures).await?;
    if targets.is_empty() && failures.is_empty() {
        output::line("No resources found");
        return Ok(());
    }
    if args.interactive && !confirmed(&targets)? {
        output::line("deletion is cancelled");
        return Ok(());
    }
    if args.force && grace == Some(0) {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    }
    let mut gone = Vec::new();
    for target in targets {
        match delete_one(session, &args, &target, grace, propagation).await {
            Ok(uid) => {
                announce(&args, &target, grace);
                gone.push((target, uid));
            }
            Err(failure) if ignore && failure.is_not_found() => {}
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(target.explain(failure, "deleting")),
        }
    }
    if args.wait && args.dry_run == DryRun::None {
        let limit = if args.timeout.is_zero() { WAIT_LONGEST } else { args.timeout };
        let deadline = Instant::now() + limit;
        for (target, uid) in &gone {
            failures.extend(until_gone(session, target, uid.as_deref(), deadline).await.err());
        }
    }
    all_of(failures)
}

fn grace_period(args: &DeleteArgs) -> Result<Option<i64>> {
    let mut grace = args.grace_period;
    if args.now {
        if grace != -1 {
            return fail("--now and --grace-period cannot be specified together");
        }
        grace = 1;
    }
    if args.force && grace < 0 {
        grace = 0;
    }
    if args.force && grace > 0 {
        return fail("--force and --grace-period greater than 0 cannot be specified together");
    }
    if grace == 0 && !args.force {
        // kubectl too: zero needs --force, so the object gets the shortest grace instead.
        grace = 1;
    }
    Ok((grace >= 0).then_some(grace))
}

/// Collections become their members, which then count as "may be gone already".
async fn expand(
    session: &Session,
    args: &DeleteArgs,
    selection: &Selection,
    targets: Vec<Target>,
    failures: &mut Vec<Failure>,
) -> Result<(Vec<Target>, bool)> {
    let selects = args.all || args.selector.is_some() || args.field_selector.is_some();
    let has_collection = targets.iter().any(|target| target.name.is_none() && target.manifest.is_none());
    if has_collection && !selects {
        return fail("resource(s) were provided, but no name was specified");
    }
    if !has_collection && args.all && args.files.is_empty() {
        return fail("name cannot be provided when a selector is specified");
    }
    if !has_collection {
        let (named, nameless): (Vec<Target>, Vec<Target>) =
            targets.into_iter().partition(|target| target.name.is_some());
        failures.extend(
            nameless
                .iter()
                .map(|target| target.explain(Failure::Text("resource name may not be empty".into()), "deleting")),
        );
        return Ok((named, args.ignore_not_found));
    }
    let (found, more) = session.fetch(targets, selection).await?;
    failures.extend(more);
    Ok((found.into_iter().map(|found| found.target).collect(), true))
}

fn confirmed(targets: &[Target]) -> Result<bool> {
    output::line("You are about to delete the following resource(s):");
    for target in targets {
        output::line(&target.full_name());
    }
    output::out("Do you want to continue? (y/N): ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Failure::Text(error.to_string()))?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Sends one deletion and returns the uid of what will be gone.
async fn delete_one(
    session: &Session,
    args: &DeleteArgs,
    target: &Target,
    grace: Option<i64>,
    propagation: &str,
) -> Result<Option<String>> {
    if args.dry_run == DryRun::Client {
        return session.client.get(&target.path()).await.map(|_| None);
    }
    let query: Vec<_> = args.dry_run.parameter().into_iter().collect();
    delete(session, target, grace, propagation, &query).await
}

async fn delete(
    session: &Session,
    target: &Target,
    grace: Option<i64>,
    propagation: &str,
    query: &[(&str, String)],
) -> Result<Option<String>> {
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation});
    if let Some(seconds) = grace {
        options["gracePeriodSeconds"] = seconds.into();
    }
    let path = with_query(&target.path(), query);
    let answer = session.client.send(Method::DELETE, &path, Media::Json, &options).await?;
    // A Status when it is gone at once, else the object that waits for its end.
    let uid = if answer["kind"] == "Status" { &answer["details"]["uid"] } else { &answer["metadata"]["uid"] };
    Ok(uid.as_str().map(str::to_string))
}

/// For verbs that delete to create anew.
pub async fn delete_and_wait(session: &Session, target: &Target, grace: Option<i64>, limit: Duration) -> Result<()> {
    let uid = delete(session, target, grace, "Background", &[]).await?;
    until_gone(session, target, uid.as_deref(), Instant::now() + limit).await
}

fn announce(args: &DeleteArgs, target: &Target, grace: Option<i64>) {
    let operation = if grace == Some(0) { "force deleted" } else { "deleted" };
    let name = target.name.as_deref().unwrap_or_default();
    if args.output.as_deref() == Some("name") {
        output::line(&target.full_name());
    } else {
        output::line(&format!("{} {name:?} {operation}{}", target.resource.kind_word(), args.dry_run.suffix()));
    }
}

/// Watches until the object with this uid is no more, or another took its name.
pub async fn until_gone(session: &Session, target: &Target, uid: Option<&str>, deadline: Instant) -> Result<()> {
    let watch = async {
        loop {
            let (collection, selection) = as_collection(target, Selection::default());
            let list = session.list(&collection, &selection, 0).await?;
            let is_there = list["items"].as_array().into_iter().flatten().any(|item| same(item, uid));
            if !is_there {
                return Ok(());
            }
            let mut query = selection.query();
            query.push(("watch", "true".into()));
            query.push(("resourceVersion", list["metadata"]["resourceVersion"].as_str().unwrap_or_default().into()));
            let mut events = session.client.watch(&with_query(&collection.path(), &query), "application/json").await?;
            while let Some(Ok(event)) = events.next().await {
                if event["type"] == "DELETED" && same(&event["object"], uid) {
                    return Ok(());
                }
            }
        }
    };
    let limit = deadline.saturating_duration_since(Instant::now());
    match tokio::time::timeout(limit, watch).await {
        Ok(done) => done,
        Err(_) => fail(format!(
            "timed out waiting for the condition on {}/{}",
            target.resource.plural,
            target.name.as_deref().unwrap_or_default()
        )),
    }
}

fn same(object: &Value, uid: Option<&str>) -> bool {
    uid.is_none_or(|uid| object["metadata"]["uid"] == uid)
}
