//! `diff` and `edit`: the live object beside what it would become, and the live object in an editor.

use std::path::Path;
use std::process::Command;

use http::Method;
use serde_json::Value;

use super::apply;
use super::client::{Media, with_query};
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::mutate::merge_difference;
use super::output;
use super::session::{Found, Selection, Session, Target, name_of};

/// Flags of `diff`.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
}

/// Carries out `diff`: exit code 0 without differences, 1 with, more on failure.
pub async fn diff(session: &Session, args: DiffArgs) -> Result<()> {
    if args.files.is_empty() {
        return fail("must specify one of -f and -k").map_err(worse);
    }
    if args.selector.is_some() {
        return fail("--selector is not available for diff in this version of coracle").map_err(worse);
    }
    let (targets, failures) = session.file_targets(&args.files).await.map_err(worse)?;
    all_of(failures).map_err(worse)?;
    let place = tempdir("coracle-diff")?;
    let differs = compare(session, &targets, &place).await;
    drop(std::fs::remove_dir_all(&place));
    match differs {
        Ok(true) => Err(Failure::Exit(1)),
        Ok(false) => Ok(()),
        Err(failure) => Err(worse(failure)),
    }
}

/// kubectl's diff ends with more than 1 when it failed, because 1 means "they differ".
fn worse(failure: Failure) -> Failure {
    eprintln!("{}", failure.message());
    Failure::Exit(2)
}

async fn compare(session: &Session, targets: &[Target], place: &Path) -> Result<bool> {
    for side in ["LIVE", "MERGED"] {
        std::fs::create_dir_all(place.join(side)).map_err(cannot)?;
    }
    for target in targets {
        let (live, merged) = both(session, target).await?;
        let name = format!(
            "{}.{}.{}.{}",
            target.resource.api_version().replace('/', "."),
            target.resource.kind,
            target.namespace.as_deref().unwrap_or_default(),
            target.name.as_deref().unwrap_or_default()
        );
        for (side, object) in [("LIVE", live), ("MERGED", merged)] {
            let text = object.map(|object| manifests::yaml::to_string(&without_noise(object))).unwrap_or_default();
            std::fs::write(place.join(side).join(&name), text).map_err(cannot)?;
        }
    }
    let program = std::env::var("KUBECTL_EXTERNAL_DIFF").unwrap_or_else(|_| "diff -u -N".to_string());
    let mut words = program.split_whitespace();
    let Some(command) = words.next() else { return fail("KUBECTL_EXTERNAL_DIFF names no program") };
    let status = Command::new(command)
        .args(words)
        .arg(place.join("LIVE"))
        .arg(place.join("MERGED"))
        .status()
        .map_err(|error| Failure::Text(format!("failed to run {program:?}: {error}")))?;
    match status.code() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        code => fail(format!("{program:?} exited with {code:?}")),
    }
}

fn cannot(error: std::io::Error) -> Failure {
    Failure::Text(format!("cannot write a temporary file: {error}"))
}

fn without_noise(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// The object as it is, and as the server says it would be.
async fn both(session: &Session, target: &Target) -> Result<(Option<Value>, Option<Value>)> {
    let Some(manifest) = &target.manifest else { return fail("nothing to compare") };
    if target.name.is_none() {
        return fail("resource name may not be empty");
    }
    let wanted = manifest.object.clone();
    let dry = [("dryRun", "All".to_string()), ("fieldManager", apply::MANAGER.to_string())];
    match session.client.get(&target.path()).await {
        Ok(live) => {
            let (patch, media) = apply::difference(target, &wanted, &live);
            let path = with_query(&target.path(), &dry);
            let merged = session.client.send(Method::PATCH, &path, media, &patch).await?;
            Ok((Some(live), Some(merged)))
        }
        Err(failure) if failure.is_not_found() => {
            let path = with_query(&target.resource.collection(target.namespace.as_deref()), &dry);
            Ok((None, Some(session.client.send(Method::POST, &path, Media::Json, &wanted).await?)))
        }
        Err(failure) => Err(failure),
    }
}

/// A fresh directory that only the user can read: objects may be Secrets.
fn tempdir(prefix: &str) -> Result<std::path::PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let base = std::env::temp_dir();
    for attempt in 0..100u32 {
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let path = base.join(format!("{prefix}-{}-{stamp}-{attempt}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot(error)),
        }
    }
    fail("cannot find a name for a temporary directory")
}

/// Flags of `edit`.
#[derive(Debug, clap::Args)]
pub struct EditArgs {
    /// TYPE NAME or TYPE/NAME
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Output format of the text to edit: yaml or json
    #[arg(short = 'o', long, default_value = "yaml")]
    output: String,
}

/// Carries out `edit`.
pub async fn edit(session: &Session, args: EditArgs) -> Result<()> {
    let selection = Selection::default();
    let (targets, mut failures) = session.all_targets("edit", &args.words, &args.files, &selection).await?;
    let (found, more) = session.fetch(targets, &selection).await?;
    failures.extend(more);
    let place = tempdir("coracle-edit")?;
    for found in &found {
        failures.extend(edit_one(session, &args, found, &place).await.err());
    }
    drop(std::fs::remove_dir_all(&place));
    all_of(failures)
}

async fn edit_one(session: &Session, args: &EditArgs, found: &Found, place: &Path) -> Result<()> {
    let before = without_noise(found.object.clone());
    let text = match args.output.as_str() {
        "json" => format!("{}\n", output::gojson::pretty(&before)),
        "yaml" => manifests::yaml::to_string(&before),
        other => return fail(format!("--output {other:?} is not available for edit")),
    };
    let mut complaint = String::new();
    let mut shown = text.clone();
    let file = place.join(format!("{}.{}", name_of(&before), args.output));
    loop {
        let head = "# Please edit the object below. Lines beginning with a '#' will be ignored,\n# and an empty file will abort the edit. If an error occurs while saving this file will be\n# reopened with the relevant failures.\n#\n";
        let head = if args.output == "yaml" { format!("{head}{complaint}") } else { String::new() };
        std::fs::write(&file, format!("{head}{shown}")).map_err(cannot)?;
        open_editor(&file)?;
        let edited = std::fs::read_to_string(&file).map_err(cannot)?;
        let bare: String =
            edited.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        if bare.trim().is_empty() || bare == shown {
            eprintln!("Edit cancelled, no changes made.");
            return Ok(());
        }
        let sent = match manifests::yaml::documents(&bare) {
            Ok(documents) => match documents.into_iter().next() {
                Some(document) => send(session, found, &before, &document.value).await,
                None => return Ok(()),
            },
            Err(error) => fail(error.to_string()),
        };
        match sent {
            Ok(words) => {
                output::line(&format!("{} {words}", found.target.full_name()));
                return Ok(());
            }
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => {
                complaint = failure.message().lines().map(|line| format!("# {line}\n")).collect::<String>() + "#\n";
                eprintln!("{}", failure.message());
                shown = bare;
            }
        }
    }
}

async fn send(session: &Session, found: &Found, before: &Value, after: &Value) -> Result<&'static str> {
    let Some(patch) = merge_difference(before, after) else { return Ok("skipped") };
    let path = with_query(&found.target.path(), &[("fieldManager", "kubectl-edit".to_string())]);
    session.client.send(Method::PATCH, &path, Media::MergePatch, &patch).await?;
    Ok("edited")
}

fn open_editor(file: &Path) -> Result<()> {
    let editor = ["KUBE_EDITOR", "EDITOR"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| "vi".to_string());
    // An editor setting may carry arguments and quotes, so a shell takes it apart.
    let status = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("edit")
        .arg(file)
        .status()
        .map_err(|error| Failure::Text(format!("unable to launch the editor {editor:?}: {error}")))?;
    if status.success() { Ok(()) } else { fail(format!("there was a problem with the editor {editor:?}")) }
}
