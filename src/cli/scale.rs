//! `scale`: sets the number of replicas through the subresource `scale`.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use super::client::{Media, with_query};
use super::dry_run::DryRun;
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::output::{OutputArgs, Printer};
use super::session::{Selection, Session, Target};

/// How often the replicas are counted while waiting.
const POLL: Duration = Duration::from_millis(250);

/// Flags of `scale`.
#[derive(Debug, clap::Args)]
pub struct ScaleArgs {
    /// TYPE NAME or TYPE/NAME ...
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The new desired number of replicas
    #[arg(long, allow_hyphen_values = true)]
    replicas: Option<i64>,
    /// Precondition for current size
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    current_replicas: i64,
    /// Precondition for resource version
    #[arg(long)]
    resource_version: Option<String>,
    /// Select all resources in the namespace of the specified resource types
    #[arg(long)]
    all: bool,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// How long to wait for the replicas; zero means don't wait
    #[arg(long, default_value = "0s", value_parser = super::duration::flag)]
    timeout: Duration,
    /// "none", "server" or "client"
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    dry_run: DryRun,
}

/// Carries it out.
pub async fn run(session: &Session, args: ScaleArgs) -> Result<()> {
    let replicas = match args.replicas {
        Some(replicas) if replicas >= 0 => replicas,
        Some(_) => return fail("The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0"),
        None => return fail("required flag(s) \"replicas\" not set"),
    };
    let selection = Selection { selector: args.selector.clone(), ..Default::default() };
    let (targets, mut failures) = session.all_targets("scale", &args.words, &args.files, &selection).await?;
    let chooses = args.all || args.selector.is_some();
    if targets.iter().any(|target| target.name.is_none()) && !chooses {
        return fail("resource(s) were provided, but no name was specified");
    }
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    let (found, more) = session.fetch(targets, &selection).await?;
    if found.is_empty()
        && let [Failure::Refused(status)] = more.as_slice()
    {
        return fail(format!("no objects passed to scale {}", status.message));
    }
    failures.extend(more);
    for found in found {
        match one(session, &args, &found.target, replicas).await {
            Ok(object) => {
                let words = format!("{} scaled{}", found.target.full_name(), args.dry_run.suffix());
                printer.print(&object, &words)?;
            }
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    all_of(failures)
}

async fn one(session: &Session, args: &ScaleArgs, target: &Target, replicas: i64) -> Result<Value> {
    if !target.resource.subresources.iter().any(|sub| sub == "scale") {
        return fail(format!(
            "cannot scale {}: the server could not find the requested resource",
            target.resource.qualified()
        ));
    }
    if args.dry_run == DryRun::Client {
        return session.client.get(&target.path()).await;
    }
    let path = format!("{}/scale", target.path());
    let mut patch = json!({"spec": {"replicas": replicas}});
    if args.current_replicas >= 0 || args.resource_version.is_some() {
        let scale = session.client.get(&path).await?;
        let current = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if args.current_replicas >= 0 && current != args.current_replicas {
            return fail(format!("Expected replicas to be {}, was {current}", args.current_replicas));
        }
        let revision = &scale["metadata"]["resourceVersion"];
        if args.resource_version.as_ref().is_some_and(|wanted| revision != wanted.as_str()) {
            let wanted = args.resource_version.clone().unwrap_or_default();
            return fail(format!(
                "Expected resource version to be {wanted}, was {}",
                revision.as_str().unwrap_or_default()
            ));
        }
        patch["metadata"]["resourceVersion"] = revision.clone();
    }
    let query: Vec<_> = args.dry_run.parameter().into_iter().collect();
    let scale = session.client.send(Method::PATCH, &with_query(&path, &query), Media::MergePatch, &patch).await?;
    if !args.timeout.is_zero() && args.dry_run == DryRun::None {
        until_scaled(session, target, replicas, args.timeout).await?;
    }
    Ok(scale)
}

async fn until_scaled(session: &Session, target: &Target, replicas: i64, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let object = session.client.get(&target.path()).await?;
        let seen = object["status"]["observedGeneration"].as_i64() >= object["metadata"]["generation"].as_i64();
        if seen && object["status"]["replicas"].as_i64().unwrap_or(0) == replicas {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return fail("timed out waiting for the condition");
        }
        tokio::time::sleep(POLL).await;
    }
}
