//! `patch` and `replace`.

use http::Method;
use serde_json::Value;

use super::client::{Media, with_query};
use super::dry_run::{DryRun, Validation};
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::output::{OutputArgs, Printer};
use super::session::{Selection, Session, Target};

/// Flags of `patch`.
#[derive(Debug, clap::Args)]
pub struct PatchArgs {
    /// TYPE NAME or TYPE/NAME
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The patch to be applied, as JSON or YAML
    #[arg(short = 'p', long)]
    patch: Option<String>,
    /// A file containing the patch
    #[arg(long)]
    patch_file: Option<String>,
    /// The type of patch: json, merge or strategic
    #[arg(long = "type", default_value = "strategic")]
    kind: String,
    /// Patch the subresource of the requested object
    #[arg(long)]
    subresource: Option<String>,
    /// "none", "server" or "client"
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    dry_run: DryRun,
    /// Name of the manager used to track field ownership
    #[arg(long, default_value = "kubectl-patch")]
    field_manager: String,
}

/// Carries out `patch`.
pub async fn run(session: &Session, args: PatchArgs) -> Result<()> {
    let media = match args.kind.to_lowercase().as_str() {
        "json" => Media::JsonPatch,
        "merge" => Media::MergePatch,
        "strategic" => Media::StrategicMergePatch,
        other => return fail(format!("--type must be one of [json merge strategic], not {other:?}")),
    };
    let text = match (&args.patch, &args.patch_file) {
        (Some(_), Some(_)) => return fail("cannot specify --patch and --patch-file together"),
        (Some(text), None) => text.clone(),
        (None, Some(file)) => std::fs::read_to_string(file).map_err(|error| {
            Failure::Text(format!("unable to read patch file: {}", super::output::go_io_error(file, &error)))
        })?,
        (None, None) => return fail("must specify --patch or --patch-file containing the contents of the patch"),
    };
    let patch = parse(&text)?;
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    let (targets, mut failures) = session.all_targets("patch", &args.words, &args.files, &Selection::default()).await?;
    for target in targets {
        match one(session, &args, &target, media, &patch).await {
            Ok((object, changed)) => {
                let done = if changed { "patched" } else { "patched (no change)" };
                printer.print(&object, &format!("{} {done}{}", target.full_name(), args.dry_run.suffix()))?;
            }
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    all_of(failures)
}

fn parse(text: &str) -> Result<Value> {
    let unable = |cause: String| Failure::Text(format!("unable to parse {text:?}: {cause}"));
    let documents = manifests::yaml::documents(text).map_err(|error| unable(error.to_string()))?;
    match documents.into_iter().next() {
        Some(document) if document.value.is_object() || document.value.is_array() => Ok(document.value),
        _ => Err(unable("a patch is an object or a list".into())),
    }
}

async fn one(
    session: &Session,
    args: &PatchArgs,
    target: &Target,
    media: Media,
    patch: &Value,
) -> Result<(Value, bool)> {
    if target.name.is_none() {
        return fail("resource(s) were provided, but no name was specified");
    }
    let before = session.client.get(&target.path()).await?;
    let mut query = vec![("fieldManager", args.field_manager.clone())];
    match args.dry_run {
        // The server knows best how to apply it; it is asked to keep nothing.
        DryRun::Client | DryRun::Server => query.push(("dryRun", "All".into())),
        DryRun::None => {}
    }
    let subresource = args.subresource.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
    let path = with_query(&format!("{}{subresource}", target.path()), &query);
    let after = session.client.send(Method::PATCH, &path, media, patch).await?;
    let same = |key: &str| before["metadata"][key] == after["metadata"][key];
    let changed = if args.dry_run == DryRun::None { !same("resourceVersion") } else { before != after };
    Ok((after, changed))
}

/// Flags of `replace`.
#[derive(Debug, clap::Args)]
pub struct ReplaceArgs {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Delete and create anew
    #[arg(long)]
    force: bool,
    /// Seconds given to the resource to terminate gracefully, with --force
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    grace_period: i64,
    /// How long to wait for the deletion, with --force; zero means no limit
    #[arg(long, default_value = "0s", value_parser = super::duration::flag)]
    timeout: std::time::Duration,
    /// Save the configuration in the object's annotation, for a later `apply`
    #[arg(long)]
    save_config: bool,
    /// "none", "server" or "client"
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    dry_run: DryRun,
    /// How unknown or duplicate fields are treated: strict (or true), warn, ignore (or false)
    #[arg(long, default_value = "strict", num_args = 0..=1, require_equals = true, default_missing_value = "strict")]
    validate: Validation,
    /// Name of the manager used to track field ownership
    #[arg(long, default_value = "kubectl-replace")]
    field_manager: String,
}

/// Carries out `replace`.
pub async fn replace(session: &Session, args: ReplaceArgs) -> Result<()> {
    if args.files.is_empty() {
        return fail("must specify --filename to replace");
    }
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    let (targets, mut failures) = session.file_targets(&args.files).await?;
    if targets.is_empty() && failures.is_empty() {
        return fail("no objects passed to replace");
    }
    for target in targets {
        match replace_one(session, &args, &target).await {
            Ok(object) => {
                printer.print(&object, &format!("{} replaced{}", target.full_name(), args.dry_run.suffix()))?
            }
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(target.explain(failure, "replacing")),
        }
    }
    all_of(failures)
}

async fn replace_one(session: &Session, args: &ReplaceArgs, target: &Target) -> Result<Value> {
    let Some(manifest) = &target.manifest else { return fail("nothing to replace with") };
    let mut wanted = manifest.object.clone();
    if target.name.is_none() {
        return fail("resource name may not be empty");
    }
    let live = session.client.get(&target.path()).await;
    let remembers = !wanted["metadata"]["annotations"][super::apply::LAST_APPLIED].is_null();
    if args.save_config || remembers {
        super::apply::remember(&mut wanted);
    }
    let mut query =
        vec![("fieldManager", args.field_manager.clone()), ("fieldValidation", args.validate.parameter().to_string())];
    query.extend(args.dry_run.parameter());
    if args.force && args.dry_run == DryRun::None {
        if live.is_ok() {
            let limit = if args.timeout.is_zero() { std::time::Duration::from_secs(300) } else { args.timeout };
            let grace = (args.grace_period >= 0).then_some(args.grace_period);
            super::delete::delete_and_wait(session, target, grace, limit).await?;
        }
        let path = with_query(&target.resource.collection(target.namespace.as_deref()), &query);
        return session.client.send(Method::POST, &path, Media::Json, &wanted).await;
    }
    if args.dry_run == DryRun::Client {
        return live.map(|_| wanted);
    }
    session.client.send(Method::PUT, &with_query(&target.path(), &query), Media::Json, &wanted).await
}
