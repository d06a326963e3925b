//! `create`: objects from files, or from flags through the generators of `generate`.

use http::Method;
use serde_json::Value;

use super::apply;
use super::client::{Media, with_query};
use super::dry_run::{DryRun, Validation};
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::generate::{self, Generator};
use super::output::{OutputArgs, Printer};
use super::session::{Selection, Session, metadata_of, name_of};

/// How the server knows changes made this way.
const MANAGER: &str = "kubectl-create";

/// Flags of `create`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = false, subcommand_negates_reqs = true)]
pub struct CreateArgs {
    #[command(subcommand)]
    generator: Option<Generator>,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    common: CreateFlags,
}

/// The flags that go with files and with generators.
#[derive(Debug, Clone, clap::Args)]
pub struct CreateFlags {
    #[command(flatten)]
    pub(super) output: CreateOutput,
    /// "none", "server" or "client": only print what would be sent, or have the server not persist it
    #[arg(long, global = true, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    pub(super) dry_run: DryRun,
    /// How unknown or duplicate fields are treated: strict (or true), warn, ignore (or false)
    #[arg(long, global = true, default_value = "strict", num_args = 0..=1, require_equals = true, default_missing_value = "strict")]
    pub(super) validate: Validation,
    /// Save the configuration in the object's annotation, for a later `apply`
    #[arg(long, global = true)]
    pub(super) save_config: bool,
    /// Name of the manager used to track field ownership
    #[arg(long, global = true, default_value = MANAGER)]
    pub(super) field_manager: String,
}

/// The output flags, which `create deployment ... -o yaml` takes behind the subcommand too.
#[derive(Debug, Clone, clap::Args)]
pub struct CreateOutput {
    /// Output format: json, yaml, name, jsonpath=...
    #[arg(short = 'o', long, global = true)]
    output: Option<String>,
    /// If true, keep the managedFields when printing objects in JSON or YAML format
    #[arg(long, global = true)]
    show_managed_fields: bool,
    /// Template string for -o=jsonpath
    #[arg(long, global = true)]
    template: Option<String>,
}

impl CreateOutput {
    /// As the other verbs have it.
    pub fn args(&self) -> OutputArgs {
        OutputArgs {
            output: self.output.clone(),
            show_managed_fields: self.show_managed_fields,
            template: self.template.clone(),
            allow_missing_template_keys: true,
        }
    }
}

/// Carries it out.
pub async fn run(session: &Session, args: CreateArgs) -> Result<()> {
    let output = args.common.output.args();
    let mut printer = Printer::new(output.format(false)?, &output);
    if let Some(generator) = args.generator {
        let object = match generator {
            Generator::Job { name, from: Some(from), .. } => {
                generate::job_from(&name, &cron_job(session, &from).await?)
            }
            generator => generate::object(generator)?,
        };
        let what = what_is_made(&object);
        return create(session, object, &args.common, &mut printer).await.map_err(|failure| match (failure, what) {
            (Failure::Refused(status), Some(what)) if status.reason != "Invalid" => {
                Failure::Text(format!("failed to create {what}: {}", status.message))
            }
            (failure, _) => failure,
        });
    }
    if args.files.is_empty() {
        return fail("must specify one of -f and -k");
    }
    let (targets, mut failures) = session.file_targets(&args.files).await?;
    if targets.is_empty() && failures.is_empty() {
        return fail("no objects passed to create");
    }
    for target in targets {
        let Some(manifest) = &target.manifest else { continue };
        match create(session, manifest.object.clone(), &args.common, &mut printer).await {
            Ok(()) => {}
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(target.explain(failure, "creating")),
        }
    }
    all_of(failures)
}

/// The CronJob that `--from` names.
async fn cron_job(session: &Session, from: &str) -> Result<Value> {
    let targets = session.targets(&[from.to_owned()], &Selection::default()).await?;
    let [target] = targets.as_slice() else { return fail("from must be an existing cronjob") };
    if target.resource.kind != "CronJob" {
        return fail(format!("unknown object type {}", target.resource.kind));
    }
    session.client.get(&target.path()).await
}

/// What kubectl calls the object when it could not be made from flags; none where it repeats the server's words only.
fn what_is_made(object: &Value) -> Option<String> {
    match object["kind"].as_str().unwrap_or_default() {
        "Namespace" => None,
        "Service" => Some(format!("{} service", object["spec"]["type"].as_str().unwrap_or("ClusterIP"))),
        kind => Some(kind.to_lowercase()),
    }
}

/// Creates one object and prints what became of it.
pub async fn create(session: &Session, mut object: Value, flags: &CreateFlags, printer: &mut Printer) -> Result<()> {
    if flags.save_config {
        apply::remember(&mut object);
    }
    let created = match flags.dry_run {
        // kubectl names a namespace in a dry run only if the user did.
        DryRun::Client => {
            if session.namespace_is_forced
                && is_namespaced(&object)
                && let Some(metadata) = metadata_of(&mut object)
            {
                metadata.entry("namespace").or_insert_with(|| session.namespace.clone().into());
            }
            object
        }
        _ => send(session, object, flags).await?,
    };
    let words = format!("{} created{}", super::output::names(&created).join(" "), flags.dry_run.suffix());
    printer.print(&created, &words)
}

/// Sends one object to be created.
pub async fn send(session: &Session, mut object: Value, flags: &CreateFlags) -> Result<Value> {
    let resource = session.discovery().await?.of_object(&object)?.clone();
    let mut namespace = None;
    if resource.namespaced
        && let Some(metadata) = metadata_of(&mut object)
    {
        let own = metadata.entry("namespace").or_insert_with(|| session.namespace.clone().into());
        namespace = own.as_str().map(str::to_string);
    }
    if name_of(&object).is_empty() && object["metadata"]["generateName"].is_null() {
        return fail("resource name may not be empty");
    }
    let mut query = vec![
        ("fieldManager", flags.field_manager.clone()),
        ("fieldValidation", flags.validate.parameter().to_string()),
    ];
    query.extend(flags.dry_run.parameter());
    let path = with_query(&resource.collection(namespace.as_deref()), &query);
    session.client.send(Method::POST, &path, Media::Json, &object).await
}

/// The generators make only one kind that has no namespace.
fn is_namespaced(object: &Value) -> bool {
    object["kind"] != "Namespace"
}
