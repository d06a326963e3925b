//! `apply`: makes the cluster's objects what the files say, keeping what others put into them.
//!
//! Client-side apply: the last applied configuration is kept in an annotation, and the patch comes from three inputs, the
//! file, that annotation and the live object. The patch itself is made by `api::patch`, which the server shares. Deliberately
//! absent: server-side apply and pruning; both are refused.

use http::Method;
use serde_json::Value;

use super::client::{Media, with_query};
use super::dry_run::{DryRun, Validation};
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::output::{self, OutputArgs, Printer, gojson};
use super::session::{Session, Target, metadata_of, name_of};

/// The annotation that remembers the last applied configuration.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How the server knows changes made this way.
pub const MANAGER: &str = "kubectl-client-side-apply";
/// How often a patch is made anew because the object changed meanwhile.
const CONFLICT_TRIES_MAX: usize = 5;

/// Flags of `apply`.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    #[command(subcommand)]
    subcommand: Option<ApplyCommand>,
    #[command(flatten)]
    pub(super) files: FileArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// "none", "server" or "client": only print what would be sent, or have the server not persist it
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    dry_run: DryRun,
    /// How unknown or duplicate fields are treated: strict (or true), warn, ignore (or false)
    #[arg(long, default_value = "strict", num_args = 0..=1, require_equals = true, default_missing_value = "strict")]
    validate: Validation,
    /// Name of the manager used to track field ownership
    #[arg(long, default_value = MANAGER)]
    field_manager: String,
    /// Selector (label query) to filter the files' objects on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Delete and create anew what cannot be patched
    #[arg(long)]
    force: bool,
    /// Resolve conflicts between the modified and live configuration by using the modified one
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    overwrite: bool,
    /// Wait for resources to be gone before returning, with --force
    #[arg(long)]
    wait: bool,
    /// Apply on the server instead of the client (not available)
    #[arg(long)]
    server_side: bool,
    /// With --server-side (not available)
    #[arg(long, hide = true)]
    force_conflicts: bool,
    /// Delete objects that are not in the files (not available)
    #[arg(long)]
    prune: bool,
    /// Select all resources, with --prune (not available)
    #[arg(long, hide = true)]
    all: bool,
}

/// What else `apply` can do.
#[derive(Debug, clap::Subcommand)]
pub enum ApplyCommand {
    /// Print the last applied configuration of objects
    ViewLastApplied {
        /// TYPE NAME or TYPE/NAME ...
        words: Vec<String>,
        #[command(flatten)]
        files: FileArgs,
        /// Output format: yaml or json
        #[arg(short = 'o', long, default_value = "yaml")]
        output: String,
    },
}

/// Carries it out.
pub async fn run(session: &Session, mut args: ApplyArgs) -> Result<()> {
    if let Some(ApplyCommand::ViewLastApplied { words, files, output }) = args.subcommand.take() {
        return view_last_applied(session, &words, &files, &output).await;
    }
    for (given, flag) in
        [(args.server_side, "--server-side"), (args.prune, "--prune"), (args.force_conflicts, "--force-conflicts")]
    {
        if given {
            return fail(format!("{flag} is not available in this version of coracle"));
        }
    }
    if args.files.is_empty() {
        return fail("must specify one of -f and -k");
    }
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    let (mut targets, mut failures) = session.file_targets(&args.files).await?;
    if let Some(selector) = &args.selector {
        keep_selected(&mut targets, selector)?;
    }
    if targets.is_empty() && failures.is_empty() {
        return fail("no objects passed to apply");
    }
    let mut shown = Vec::new();
    for target in &targets {
        match apply_one(session, &args, target).await {
            Ok((object, done)) => {
                if printer.is_human() {
                    output::line(&format!("{} {done}{}", target.full_name(), args.dry_run.suffix()));
                }
                shown.push(object);
            }
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    if !printer.is_human() && !shown.is_empty() {
        let object = if shown.len() == 1 { shown.remove(0) } else { output::list_of(shown) };
        printer.print(&object, "")?;
    }
    all_of(failures)
}

/// `-l`: only the manifests with these labels.
fn keep_selected(targets: &mut Vec<Target>, selector: &str) -> Result<()> {
    let selector = manifests::selector::LabelSelector::parse(selector)
        .map_err(|error| Failure::Text(format!("unable to parse selector {selector:?}: {error}")))?;
    targets.retain(|target| {
        let labels = target.manifest.as_ref().map(|manifest| manifest.object["metadata"]["labels"].clone());
        let labels = labels.and_then(|labels| serde_json::from_value(labels).ok()).unwrap_or_default();
        selector.matches(&labels)
    });
    Ok(())
}

/// Creates or patches one object; tells what it is now and what was done.
async fn apply_one(session: &Session, args: &ApplyArgs, target: &Target) -> Result<(Value, &'static str)> {
    let Some(manifest) = &target.manifest else { return fail("nothing to apply") };
    let place = |failure: Failure| failure.located(&manifest.place());
    let mut wanted = manifest.object.clone();
    if target.name.is_none() {
        let failure = match wanted["metadata"]["generateName"].as_str() {
            Some(prefix) => format!("from {prefix}: cannot use generate name with apply"),
            None => "resource name may not be empty".to_string(),
        };
        return Err(place(Failure::Text(failure)));
    }
    remember(&mut wanted);
    let retrieving = |failure: Failure| {
        let info = format!(
            "error when retrieving current configuration of:\nResource: {:?}, GroupVersionKind: {:?}\nName: {:?}, Namespace: {:?}\nfrom server for: {:?}",
            format!("{}, Resource={}", target.resource.api_version(), target.resource.plural),
            format!("{}, Kind={}", target.resource.api_version(), target.resource.kind),
            target.name.as_deref().unwrap_or_default(),
            target.namespace.as_deref().unwrap_or_default(),
            manifest.file,
        );
        match failure {
            Failure::Refused(mut status) => {
                status.message = format!("{info}: {}", status.message);
                Failure::Refused(status)
            }
            other => other,
        }
    };
    match session.client.get(&target.path()).await {
        Ok(live) => {
            let patched = patch(session, args, target, wanted, live).await;
            patched.map_err(|failure| place(patching(failure, target)))
        }
        Err(failure) if failure.is_not_found() => {
            if args.dry_run == DryRun::Client {
                return Ok((wanted, "created"));
            }
            create(session, args, target, &wanted)
                .await
                .map_err(|failure| place(failure.when("creating", &manifest.file)))
        }
        Err(failure) => Err(retrieving(failure)),
    }
}

fn patching(failure: Failure, target: &Target) -> Failure {
    match failure {
        Failure::Refused(mut status) => {
            let file = target.manifest.as_ref().map(|manifest| manifest.file.clone()).unwrap_or_default();
            status.message = format!("error when applying patch from {file:?}: {}", status.message);
            Failure::Refused(status)
        }
        other => other,
    }
}

fn parameters(args: &ApplyArgs) -> Vec<(&'static str, String)> {
    let mut query =
        vec![("fieldManager", args.field_manager.clone()), ("fieldValidation", args.validate.parameter().to_string())];
    query.extend(args.dry_run.parameter());
    query
}

async fn create(session: &Session, args: &ApplyArgs, target: &Target, wanted: &Value) -> Result<(Value, &'static str)> {
    let path = with_query(&target.resource.collection(target.namespace.as_deref()), &parameters(args));
    Ok((session.client.send(Method::POST, &path, Media::Json, wanted).await?, "created"))
}

async fn patch(
    session: &Session,
    args: &ApplyArgs,
    target: &Target,
    wanted: Value,
    mut live: Value,
) -> Result<(Value, &'static str)> {
    if live["metadata"]["annotations"][LAST_APPLIED].is_null() {
        eprintln!(
            "Warning: resource {}/{} is missing the {LAST_APPLIED} annotation which is required by coracle apply. coracle apply should only be used on resources created declaratively by either coracle create --save-config or coracle apply. The missing annotation will be patched automatically.",
            target.resource.plural,
            name_of(&live)
        );
    }
    let path = with_query(&target.path(), &parameters(args));
    for _ in 0..CONFLICT_TRIES_MAX {
        let (patch, media) = difference(target, &wanted, &live);
        if patch.as_object().is_none_or(serde_json::Map::is_empty) {
            return Ok((live, "unchanged"));
        }
        if args.dry_run == DryRun::Client {
            return Ok((merged(&live, &patch, media, target)?, "configured"));
        }
        match session.client.send(Method::PATCH, &path, media, &patch).await {
            Ok(object) => {
                let same = object["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
                // A dry run on the server keeps the revision although something would change.
                let unchanged = same && args.dry_run != DryRun::Server;
                return Ok((object, if unchanged { "unchanged" } else { "configured" }));
            }
            Err(failure) if failure.is_conflict() => live = session.client.get(&target.path()).await?,
            Err(failure) if args.force && (failure.has_reason("Invalid") || failure.has_reason("Conflict")) => {
                return replace(session, args, target, &wanted).await;
            }
            Err(failure) => return Err(failure),
        }
    }
    fail("the object changed every time it was about to be patched")
}

/// `--force`: delete, wait, create.
async fn replace(
    session: &Session,
    args: &ApplyArgs,
    target: &Target,
    wanted: &Value,
) -> Result<(Value, &'static str)> {
    super::delete::delete_and_wait(session, target, Some(0), std::time::Duration::from_secs(60)).await?;
    create(session, args, target, wanted).await.map(|(object, _)| (object, "configured"))
}

/// The patch that makes the live object what is wanted.
pub fn difference(target: &Target, wanted: &Value, live: &Value) -> (Value, Media) {
    let original = live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .unwrap_or(Value::Null);
    match manifests::by_kind(&target.resource.api_version(), &target.resource.kind) {
        Some(kind) => {
            let rules = api::patch::rules_of(kind);
            (api::patch::three_way_strategic(&original, wanted, live, &rules), Media::StrategicMergePatch)
        }
        None => (api::patch::three_way_merge(&original, wanted, live), Media::MergePatch),
    }
}

/// What a patch would make of an object, for a dry run on the client.
fn merged(live: &Value, patch: &Value, media: Media, target: &Target) -> Result<Value> {
    let mut object = live.clone();
    let kind = manifests::by_kind(&target.resource.api_version(), &target.resource.kind);
    match (media, kind) {
        (Media::StrategicMergePatch, Some(kind)) => {
            object = api::patch::strategic::apply(&object, patch, &api::patch::rules_of(kind))
                .map_err(|error| Failure::Text(error.to_string()))?;
        }
        _ => api::patch::merge::apply(&mut object, patch),
    }
    Ok(object)
}

/// Writes the configuration into its own annotation: without that annotation, in one line with a newline at its end.
pub fn remember(object: &mut Value) {
    let Some(metadata) = metadata_of(object) else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| serde_json::json!({}));
    if annotations.is_null() {
        *annotations = serde_json::json!({});
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{}\n", gojson::compact(object));
    object["metadata"]["annotations"][LAST_APPLIED] = Value::from(text);
}

async fn view_last_applied(session: &Session, words: &[String], files: &FileArgs, format: &str) -> Result<()> {
    let selection = Default::default();
    let (targets, mut failures) = session.all_targets("apply view-last-applied", words, files, &selection).await?;
    let (found, more) = session.fetch(targets, &selection).await?;
    failures.extend(more);
    for found in found {
        let Some(text) = found.object["metadata"]["annotations"][LAST_APPLIED].as_str() else {
            failures.push(Failure::Text(format!(
                "no last-applied-configuration annotation found on resource: {}",
                name_of(&found.object)
            )));
            continue;
        };
        let value: Value = serde_json::from_str(text).map_err(|error| Failure::Text(error.to_string()))?;
        match format {
            "yaml" => output::out(&manifests::yaml::to_string(&value)),
            "json" => output::line(&gojson::pretty(&value)),
            other => {
                return fail(format!("Unexpected -o output mode: {other}, the flag 'output' must be one of yaml|json"));
            }
        }
    }
    all_of(failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_annotation_holds_the_configuration_without_itself() {
        let mut object =
            json!({"kind": "Pod", "metadata": {"name": "a<b", "annotations": {LAST_APPLIED: "old", "x": "y"}}});
        remember(&mut object);
        assert_eq!(
            object["metadata"]["annotations"][LAST_APPLIED],
            "{\"kind\":\"Pod\",\"metadata\":{\"annotations\":{\"x\":\"y\"},\"name\":\"a\\u003cb\"}}\n"
        );
    }
}
