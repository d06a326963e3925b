//! `rollout`: status, history, undo, pause, resume and restart of workloads.

use std::time::Duration;

use futures::StreamExt;
use http::Method;
use serde_json::{Value, json};

use super::client::{Media, with_query};
use super::dry_run::DryRun;
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::get_watch::as_collection;
use super::output::{self, OutputArgs, Printer};
use super::rollout_history;
use super::session::{Found, Selection, Session};

/// What can be done to a rollout.
#[derive(Debug, clap::Subcommand)]
pub enum RolloutCommand {
    /// Show the status of the rollout
    Status(StatusArgs),
    /// View rollout history
    History(rollout_history::HistoryArgs),
    /// Undo a previous rollout
    Undo(rollout_history::UndoArgs),
    /// Mark the provided resource as paused
    Pause(ChangeArgs),
    /// Resume a paused resource
    Resume(ChangeArgs),
    /// Restart a resource
    Restart(ChangeArgs),
}

/// Which objects.
#[derive(Debug, clap::Args)]
pub struct WhichArgs {
    /// TYPE NAME or TYPE/NAME ...
    pub words: Vec<String>,
    #[command(flatten)]
    pub files: FileArgs,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    pub selector: Option<String>,
}

impl WhichArgs {
    /// The objects as the server has them.
    pub async fn objects(&self, session: &Session, verb: &str) -> Result<(Vec<Found>, Vec<Failure>)> {
        let selection = Selection { selector: self.selector.clone(), ..Default::default() };
        if self.words.is_empty() && self.files.is_empty() {
            return fail("required resource not specified");
        }
        let (targets, mut failures) = session.all_targets(verb, &self.words, &self.files, &selection).await?;
        let (found, more) = session.fetch(targets, &selection).await?;
        failures.extend(more);
        if found.is_empty() && failures.is_empty() {
            eprintln!("No resources found in {} namespace.", session.namespace);
        }
        Ok((found, failures))
    }
}

/// Flags of `rollout status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Watch the status of the rollout until it's done
    #[arg(short = 'w', long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    watch: bool,
    /// The length of time to wait before ending watch; zero means never
    #[arg(long, default_value = "0s", value_parser = super::duration::flag)]
    timeout: Duration,
    /// Pin to a specific revision for showing its status
    #[arg(long, default_value_t = 0)]
    revision: i64,
}

/// Flags of `rollout pause`, `resume` and `restart`.
#[derive(Debug, clap::Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Name of the manager used to track field ownership
    #[arg(long, default_value = "kubectl-rollout")]
    field_manager: String,
}

/// Carries it out.
pub async fn run(session: &Session, command: RolloutCommand) -> Result<()> {
    match command {
        RolloutCommand::Status(args) => status(session, args).await,
        RolloutCommand::History(args) => rollout_history::history(session, args).await,
        RolloutCommand::Undo(args) => rollout_history::undo(session, args).await,
        RolloutCommand::Pause(args) => change(session, args, "pause", pause).await,
        RolloutCommand::Resume(args) => change(session, args, "resume", resume).await,
        RolloutCommand::Restart(args) => change(session, args, "restart", restart).await,
    }
}

async fn status(session: &Session, args: StatusArgs) -> Result<()> {
    let (found, mut failures) = args.which.objects(session, "rollout status").await?;
    for found in found {
        let following = follow(session, &args, &found);
        let done = if args.timeout.is_zero() {
            following.await
        } else {
            tokio::time::timeout(args.timeout, following)
                .await
                .unwrap_or_else(|_| fail("timed out waiting for the condition"))
        };
        failures.extend(done.err());
    }
    all_of(failures)
}

async fn follow(session: &Session, args: &StatusArgs, found: &Found) -> Result<()> {
    let (collection, selection) = as_collection(&found.target, Selection::default());
    loop {
        let list = session.list(&collection, &selection, 0).await?;
        let Some(object) = list["items"].as_array().and_then(|items| items.first()).cloned() else {
            return fail("object has been deleted");
        };
        if report(&found.target.resource.kind, &object, args)? || !args.watch {
            return Ok(());
        }
        let mut query = selection.query();
        query.push(("watch", "true".into()));
        query.push(("resourceVersion", list["metadata"]["resourceVersion"].as_str().unwrap_or_default().into()));
        let mut events = session.client.watch(&with_query(&collection.path(), &query), "application/json").await?;
        while let Some(event) = events.next().await {
            let Ok(event) = event else { break };
            match event["type"].as_str() {
                Some("DELETED") => return fail("object has been deleted"),
                Some("ADDED" | "MODIFIED") if report(&found.target.resource.kind, &event["object"], args)? => {
                    return Ok(());
                }
                _ => {}
            }
        }
    }
}

/// Prints where the rollout stands; true when it is over.
fn report(kind: &str, object: &Value, args: &StatusArgs) -> Result<bool> {
    if args.revision > 0 {
        let running = rollout_history::revision_of(object);
        if running != args.revision {
            return fail(format!(
                "desired revision ({}) is different from the running revision ({running})",
                args.revision
            ));
        }
    }
    let (text, done) = progress(kind, object)?;
    output::line(&text);
    Ok(done)
}

fn progress(kind: &str, object: &Value) -> Result<(String, bool)> {
    let name = super::session::name_of(object);
    let status = |key: &str| object["status"][key].as_i64().unwrap_or(0);
    let is_observed = status("observedGeneration") >= object["metadata"]["generation"].as_i64().unwrap_or(0);
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(1);
    let (updated, wait) = (status("updatedReplicas"), |text: String| Ok((text, false)));
    match kind {
        "Deployment" => {
            if !is_observed {
                return wait("Waiting for deployment spec update to be observed...".into());
            }
            let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            let is_late = |c: &Value| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded";
            if conditions.into_iter().any(is_late) {
                return fail(format!("deployment {name:?} exceeded its progress deadline"));
            }
            let waiting = |what: String| wait(format!("Waiting for deployment {name:?} rollout to finish: {what}..."));
            let (all, available) = (status("replicas"), status("availableReplicas"));
            if updated < replicas {
                return waiting(format!("{updated} out of {replicas} new replicas have been updated"));
            }
            if all > updated {
                return waiting(format!("{} old replicas are pending termination", all - updated));
            }
            if available < updated {
                return waiting(format!("{available} of {updated} updated replicas are available"));
            }
            Ok((format!("deployment {name:?} successfully rolled out"), true))
        }
        "DaemonSet" => {
            let (desired, updated) = (status("desiredNumberScheduled"), status("updatedNumberScheduled"));
            let available = status("numberAvailable");
            if !is_observed {
                return wait("Waiting for daemon set spec update to be observed...".into());
            }
            let waiting = |what: String| wait(format!("Waiting for daemon set {name:?} rollout to finish: {what}..."));
            if updated < desired {
                return waiting(format!("{updated} out of {desired} new pods have been updated"));
            }
            if available < desired {
                return waiting(format!("{available} of {desired} updated pods are available"));
            }
            Ok((format!("daemon set {name:?} successfully rolled out"), true))
        }
        "StatefulSet" => {
            if !is_observed || status("observedGeneration") == 0 {
                return wait("Waiting for statefulset spec update to be observed...".into());
            }
            let ready = status("readyReplicas");
            if ready < replicas {
                return wait(format!("Waiting for {} pods to be ready...", replicas - ready));
            }
            let (update, current) = (&object["status"]["updateRevision"], &object["status"]["currentRevision"]);
            let revision = update.as_str().unwrap_or_default();
            if update != current {
                return wait(format!(
                    "waiting for statefulset rolling update to complete {updated} pods at revision {revision}..."
                ));
            }
            let count = status("currentReplicas");
            Ok((format!("statefulset rolling update complete {count} pods at revision {revision}..."), true))
        }
        other => fail(format!("no status viewer has been implemented for {other}")),
    }
}

async fn change(
    session: &Session,
    args: ChangeArgs,
    verb: &str,
    decide: impl Fn(&Found) -> Result<(Value, &'static str)>,
) -> Result<()> {
    let (found, mut failures) = args.which.objects(session, &format!("rollout {verb}")).await?;
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    for found in found {
        let done = async {
            let (patch, done) = decide(&found)?;
            let path = with_query(&found.target.path(), &[("fieldManager", args.field_manager.clone())]);
            let object = session.client.send(Method::PATCH, &path, Media::MergePatch, &patch).await?;
            printer.print(&object, &format!("{} {done}{}", found.target.full_name(), DryRun::None.suffix()))
        };
        failures.extend(done.await.err());
    }
    all_of(failures)
}

fn label(found: &Found) -> String {
    format!("{} {:?}", found.target.resource.qualified(), found.target.name.as_deref().unwrap_or_default())
}

fn only_deployments(found: &Found, what: &str) -> Result<()> {
    match found.target.resource.kind.as_str() {
        "Deployment" => Ok(()),
        _ => fail(format!("{} {what} is not supported", label(found))),
    }
}

fn pause(found: &Found) -> Result<(Value, &'static str)> {
    only_deployments(found, "pausing")?;
    if found.object["spec"]["paused"] == true {
        return fail(format!("{} is already paused", label(found)));
    }
    Ok((json!({"spec": {"paused": true}}), "paused"))
}

fn resume(found: &Found) -> Result<(Value, &'static str)> {
    only_deployments(found, "resuming")?;
    if found.object["spec"]["paused"] != true {
        return fail(format!("{} is not paused", label(found)));
    }
    Ok((json!({"spec": {"paused": null}}), "resumed"))
}

fn restart(found: &Found) -> Result<(Value, &'static str)> {
    if !matches!(found.target.resource.kind.as_str(), "Deployment" | "DaemonSet" | "StatefulSet") {
        return fail(format!("{} restarting is not supported", label(found)));
    }
    if found.object["spec"]["paused"] == true {
        return fail(format!("{} can't restart paused deployment (run rollout resume first)", label(found)));
    }
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
    Ok((json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}), "restarted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployments_way() {
        let deployment = |generation: i64, updated: i64, all: i64, available: i64| {
            json!({"metadata": {"name": "web", "generation": generation}, "spec": {"replicas": 3},
                   "status": {"observedGeneration": 2, "updatedReplicas": updated, "replicas": all, "availableReplicas": available}})
        };
        for (object, expected) in [
            (deployment(3, 0, 0, 0), "Waiting for deployment spec update to be observed..."),
            (
                deployment(2, 1, 4, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...",
            ),
            (
                deployment(2, 3, 4, 3),
                "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...",
            ),
            (
                deployment(2, 3, 3, 2),
                "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available...",
            ),
            (deployment(2, 3, 3, 3), "deployment \"web\" successfully rolled out"),
        ] {
            assert_eq!(progress("Deployment", &object).unwrap().0, expected);
        }
        let mut late = deployment(2, 1, 1, 1);
        late["status"]["conditions"] = json!([{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]);
        assert_eq!(
            progress("Deployment", &late).unwrap_err().message(),
            "error: deployment \"web\" exceeded its progress deadline"
        );
    }
}
