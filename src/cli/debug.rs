//! `debug`: a container to look around with, in a running pod, in a copy of it, or on a node.
//!
//! What is made is decided in `debug_copy` and `debug_profile`. Deliberately absent: `--custom`, which is refused.

use http::Method;
use serde_json::{Value, json};

use super::attach::Wish;
use super::client::Media;
use super::debug_copy::{self, CopyWanted, Wanted};
use super::debug_profile::{Keep, Profile};
use super::failure::{Failure, Result, fail};
use super::files::FileArgs;
use super::output;
use super::run_attached::{attach_or_read, has_started, status_of, wait_for};
use super::session::{Selection, Session, Target, name_of};
use super::stream::target;

/// The letters of made-up names: no vowels, so no words; nothing that is taken for something else.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_CHARS: usize = 5;

/// Flags of `debug`.
#[derive(Debug, clap::Args)]
pub struct DebugArgs {
    /// POD or TYPE/NAME
    words: Vec<String>,
    /// What the container runs
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Container image to use for debug container
    #[arg(long, default_value = "", hide_default_value = true)]
    image: String,
    /// The image pull policy for the container
    #[arg(long)]
    image_pull_policy: Option<String>,
    /// Container name to use for debug container
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// When using an ephemeral container, target processes in this container name
    #[arg(long)]
    target: Option<String>,
    /// Environment variables to set in the container (name=value)
    #[arg(long)]
    env: Vec<String>,
    /// What follows -- is the arguments of the image's command
    #[arg(long)]
    arguments_only: bool,
    /// Keep stdin open on the container
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Allocate a TTY for the debugging container
    #[arg(short = 't', long)]
    tty: bool,
    /// Wait for the container to start running, and then attach to it; the default with -i
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    attach: Option<bool>,
    /// Suppress informational messages
    #[arg(short = 'q', long)]
    quiet: bool,
    /// legacy, general, baseline, netadmin, restricted or sysadmin
    #[arg(long, default_value = "legacy")]
    profile: String,
    /// A partial container spec (not available)
    #[arg(long, hide = true)]
    custom: Option<String>,
    /// Create a copy of the target pod with this name
    #[arg(long, default_value = "", hide_default_value = true)]
    copy_to: String,
    /// With --copy-to, delete the original pod
    #[arg(long)]
    replace: bool,
    /// With --copy-to, schedule the copy on the same node
    #[arg(long)]
    same_node: bool,
    /// With --copy-to, a list of name=image pairs for changing container images
    #[arg(long, value_delimiter = ',')]
    set_image: Vec<String>,
    /// With --copy-to, enable process namespace sharing in the copy
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    share_processes: Option<bool>,
    /// With --copy-to, keep the original pod's labels
    #[arg(long)]
    keep_labels: bool,
    /// With --copy-to, keep the original pod's annotations
    #[arg(long)]
    keep_annotations: bool,
    /// With --copy-to, keep the original pod's liveness probes
    #[arg(long)]
    keep_liveness: bool,
    /// With --copy-to, keep the original pod's readiness probes
    #[arg(long)]
    keep_readiness: bool,
    /// With --copy-to, keep the original pod's startup probes
    #[arg(long)]
    keep_startup: bool,
    /// With --copy-to, run the init containers of the pod
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    keep_init_containers: bool,
}

/// Carries it out.
pub async fn run(session: &Session, args: DebugArgs) -> Result<()> {
    let (wanted, copy) = read(&args)?;
    if let Some(target) = args.target.as_ref().filter(|_| !args.quiet) {
        output::line(&format!(
            "Targeting container {target:?}. If you don't see processes from this container it may be because the container runtime doesn't support this feature."
        ));
    }
    if wanted.profile == Profile::Legacy {
        eprintln!(
            "--profile=legacy is deprecated and will be removed in the future. It is recommended to explicitly specify a profile, for example \"--profile=general\"."
        );
    }
    let mut failures = Vec::new();
    for target in targets(session, &args).await? {
        match debug(session, &args, &wanted, &copy, &target).await {
            Ok(()) => {}
            Err(failure @ (Failure::Unreachable { .. } | Failure::Terminated(_))) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    super::failure::all_of(failures)
}

/// What is to be looked at: words without a type are pods.
async fn targets(session: &Session, args: &DebugArgs) -> Result<Vec<Target>> {
    if !args.files.is_empty() {
        let (targets, failures) = session.file_targets(&args.files).await?;
        super::failure::all_of(failures)?;
        return Ok(targets);
    }
    let words: Vec<String> =
        args.words.iter().map(|word| if word.contains('/') { word.clone() } else { format!("pods/{word}") }).collect();
    session.targets(&words, &Selection::default()).await
}

/// Reads the flags and refuses what makes no sense, in kubectl's order.
fn read(args: &DebugArgs) -> Result<(Wanted, CopyWanted)> {
    if args.custom.is_some() {
        return fail("--custom is not available in this version of coracle");
    }
    let mut env = Vec::new();
    for text in &args.env {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => env.push((name.to_string(), value.to_string())),
            _ => {
                return Err(Failure::Bare(format!(
                    "error: invalid argument {text:?} for \"--env\" flag: {text} must be formatted as key=value\nSee 'coracle debug --help' for usage."
                )));
            }
        }
    }
    let mut set_images = Vec::new();
    for text in &args.set_image {
        match text.split_once('=') {
            Some((name, image)) if !name.is_empty() && !image.is_empty() => {
                set_images.push((name.to_string(), image.to_string()));
            }
            _ => {
                return Err(Failure::Bare(format!(
                    "error: invalid argument {text:?} for \"--set-image\" flag: {text} must be formatted as key=value\nSee 'coracle debug --help' for usage."
                )));
            }
        }
    }
    let Some(profile) = Profile::parse(&args.profile) else {
        return fail(format!("unknown profile: {}", args.profile));
    };
    check(args, &set_images)?;
    let keep = Keep {
        labels: args.keep_labels,
        annotations: args.keep_annotations,
        liveness: args.keep_liveness,
        readiness: args.keep_readiness,
        startup: args.keep_startup,
        init_containers: args.keep_init_containers,
    };
    let wanted = Wanted {
        image: args.image.clone(),
        pull_policy: args.image_pull_policy.clone().filter(|policy| !policy.is_empty()),
        args: args.command.clone(),
        arguments_only: args.arguments_only,
        env,
        stdin: args.stdin,
        tty: args.tty,
        profile,
    };
    let copy = CopyWanted {
        name: args.copy_to.clone(),
        set_images,
        same_node: args.same_node,
        share_processes: args.share_processes,
        keep,
    };
    Ok((wanted, copy))
}

fn check(args: &DebugArgs, set_images: &[(String, String)]) -> Result<()> {
    let has_container = args.container.as_ref().is_some_and(|name| !name.is_empty());
    if args.attach == Some(true) && args.image.is_empty() && !has_container {
        return fail("you must specify --container or create a new container using --image in order to attach.");
    }
    if args.copy_to.is_empty() {
        let only_copies =
            [(args.replace, "--replace"), (args.same_node, "--same-node"), (!set_images.is_empty(), "--set-image")];
        if let Some((_, flag)) = only_copies.into_iter().find(|(given, _)| *given) {
            return fail(format!("{flag} may only be used with --copy-to."));
        }
        if args.image.is_empty() {
            return fail("you must specify --image when not using --copy-to.");
        }
    } else {
        if args.image.is_empty() && set_images.is_empty() && args.command.is_empty() {
            return fail("you must specify --image, --set-image or command arguments.");
        }
        if !args.command.is_empty() && !has_container && args.image.is_empty() {
            return fail("you must specify an existing container or a new image when specifying args.");
        }
    }
    if !args.image.is_empty() && !is_reference(&args.image) {
        return fail(format!("invalid image name {:?}: invalid reference format", args.image));
    }
    if args.words.is_empty() && args.files.is_empty() {
        return fail("NAME or filename is required for debug");
    }
    if let Some(policy) = args.image_pull_policy.as_deref()
        && !matches!(policy, "" | "Always" | "IfNotPresent" | "Never")
    {
        return fail(format!("invalid image pull policy: {policy}"));
    }
    if let Some((name, image)) = set_images.iter().find(|(_, image)| !is_reference(image)) {
        return fail(format!("invalid image name {image:?} for container {name:?}"));
    }
    if args.target.is_some() && !args.copy_to.is_empty() {
        return fail("--target is incompatible with --copy-to. Use --share-processes instead.");
    }
    if args.tty && !args.stdin {
        return fail("-i/--stdin is required for containers with -t/--tty=true");
    }
    Ok(())
}

/// Whether a text can name an image: of a registry as elsewhere, or a Wasm file by its address, as here.
fn is_reference(text: &str) -> bool {
    if text.starts_with("file://") || text.starts_with("https://") {
        return !text.contains(char::is_whitespace);
    }
    let name = text.split('@').next().unwrap_or_default();
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("", name),
    };
    let path = path.rsplit_once(':').map_or(path, |(path, _)| path);
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    let is_path = !path.is_empty() && path.chars().all(lower);
    let no_edges = path.split('/').all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    });
    is_path && no_edges && domain.chars().all(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(c))
}

async fn debug(session: &Session, args: &DebugArgs, wanted: &Wanted, copy: &CopyWanted, target: &Target) -> Result<()> {
    let object = session.client.get(&target.path()).await?;
    let (pod, container) = match target.resource.kind.as_str() {
        "Node" => on_node(session, args, wanted, &object).await?,
        "Pod" if copy.name.is_empty() => in_pod(session, args, wanted, target, &object).await?,
        "Pod" => in_copy(session, args, wanted, copy, target, &object).await?,
        _ => {
            let group_version = target.resource.api_version();
            return fail(format!("\"{group_version}, Kind={}\" not supported by debug", target.resource.kind));
        }
    };
    let Some(container) = container.filter(|_| args.attach.unwrap_or(args.stdin)) else { return Ok(()) };
    let mut told = String::new();
    let pod = wait_for(session, &pod, None, |pod| {
        let waiting = status_of(pod, &container).and_then(|status| status["state"]["waiting"]["message"].as_str());
        if let Some(message) = waiting.filter(|message| !message.is_empty() && *message != told && !args.quiet) {
            told = message.to_string();
            eprintln!("Warning: container {container}: {message}");
        }
        has_started(pod, &container)
    })
    .await?;
    let wish = Wish { stdin: args.stdin, tty: args.tty, quiet: args.quiet };
    attach_or_read(session, &pod, &container, wish).await
}

async fn in_pod(
    session: &Session,
    args: &DebugArgs,
    wanted: &Wanted,
    target: &Target,
    pod: &Value,
) -> Result<(Value, Option<String>)> {
    let name = match &args.container {
        Some(name) if !name.is_empty() => name.clone(),
        _ => made_up(pod, args.quiet)?,
    };
    let patch = debug_copy::ephemeral_patch(pod, wanted, &name, args.target.as_deref());
    let path = format!("{}/ephemeralcontainers", target.path());
    let pod = match session.client.send(Method::PATCH, &path, Media::StrategicMergePatch, &patch).await {
        Ok(pod) => pod,
        Err(Failure::Refused(status)) if status.reason == "NotFound" && status.details["name"].as_str().is_none() => {
            return fail(format!(
                "ephemeral containers are disabled for this cluster (error from server: {:?}).",
                status.message
            ));
        }
        Err(failure) => return Err(failure),
    };
    Ok((pod, Some(name)))
}

async fn in_copy(
    session: &Session,
    args: &DebugArgs,
    wanted: &Wanted,
    copy: &CopyWanted,
    target: &Target,
    pod: &Value,
) -> Result<(Value, Option<String>)> {
    let container = args.container.as_deref().filter(|name| !name.is_empty());
    let made_up = suffixed("debugger", |name| target::container_of(pod, name).is_some())?;
    let (made, name) = debug_copy::pod_copy(pod, wanted, copy, container, || {
        announce(&made_up, args.quiet);
        made_up.clone()
    })?;
    let collection = target.resource.collection(target.namespace.as_deref());
    let created = session.client.send(Method::POST, &collection, Media::Json, &made).await?;
    if args.replace {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        session.client.send(Method::DELETE, &target.path(), Media::Json, &options).await?;
    }
    Ok((created, name))
}

async fn on_node(
    session: &Session,
    args: &DebugArgs,
    wanted: &Wanted,
    node: &Value,
) -> Result<(Value, Option<String>)> {
    let node = name_of(node);
    let container = args.container.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "debugger".into());
    let pod_name = suffixed(&format!("node-debugger-{node}"), |_| false)?;
    if !args.quiet {
        output::line(&format!("Creating debugging pod {pod_name} with container {container} on node {node}."));
    }
    let pod = debug_copy::node_pod(node, wanted, &pod_name, &container);
    let collection = session.resource("pods").await?.collection(Some(&session.namespace));
    let created = session.client.send(Method::POST, &collection, Media::Json, &pod).await?;
    Ok((created, Some(container)))
}

/// A name for the container that nobody named.
fn made_up(pod: &Value, quiet: bool) -> Result<String> {
    let name = suffixed("debugger", |name| target::container_of(pod, name).is_some())?;
    announce(&name, quiet);
    Ok(name)
}

fn announce(name: &str, quiet: bool) {
    if !quiet {
        output::line(&format!("Defaulting debug container name to {name}."));
    }
}

/// `PREFIX-xxxxx` with letters made up until the name is free.
fn suffixed(prefix: &str, is_taken: impl Fn(&str) -> bool) -> Result<String> {
    loop {
        let mut random = [0u8; SUFFIX_CHARS];
        getrandom::fill(&mut random).map_err(|error| Failure::Text(format!("no random numbers: {error}")))?;
        let suffix: String =
            random.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect();
        let name = format!("{prefix}-{suffix}");
        if !is_taken(&name) {
            return Ok(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: DebugArgs,
    }

    #[test]
    fn what_makes_no_sense() {
        let check = |line: &str, expected: &str| {
            let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
            let message = read(&args).map_or_else(|failure| failure.message(), |_| String::new());
            assert_eq!(message, expected, "{line}");
        };
        check("debug", "error: you must specify --image when not using --copy-to.");
        check("debug p", "error: you must specify --image when not using --copy-to.");
        check("debug --image=b", "error: NAME or filename is required for debug");
        check("debug p --image=A", "error: invalid image name \"A\": invalid reference format");
        check("debug p --image=busybox -t", "error: -i/--stdin is required for containers with -t/--tty=true");
        check("debug p --image=busybox --replace", "error: --replace may only be used with --copy-to.");
        check("debug p --set-image=a=b", "error: --set-image may only be used with --copy-to.");
        check("debug p --copy-to=x", "error: you must specify --image, --set-image or command arguments.");
        check(
            "debug p --copy-to=x --target=y --image=b",
            "error: --target is incompatible with --copy-to. Use --share-processes instead.",
        );
        check("debug p --image=b --profile=foo", "error: unknown profile: foo");
        check("debug p --image=b --image-pull-policy=foo", "error: invalid image pull policy: foo");
        check(
            "debug p --copy-to=x -- ls",
            "error: you must specify an existing container or a new image when specifying args.",
        );
        check(
            "debug p --attach",
            "error: you must specify --container or create a new container using --image in order to attach.",
        );
        check(
            "debug p --image=b --env a",
            "error: invalid argument \"a\" for \"--env\" flag: a must be formatted as key=value\nSee 'coracle debug --help' for usage.",
        );
        check("debug p -it --image=b --profile=general -- sh -c x", "");
        check("debug p --copy-to=q --set-image=*=x:2,b=reg.io:5000/a/b@sha256:0", "");
        check("debug node/n -it --image=file:///guest.wasm", "");
    }

    #[test]
    fn made_up_names() {
        let name = suffixed("debugger", |_| false).unwrap();
        assert_eq!(name.len(), "debugger-".len() + SUFFIX_CHARS);
        let taken = std::cell::Cell::new(0);
        suffixed("x", |_| taken.replace(taken.get() + 1) < 2).unwrap();
        assert_eq!(taken.get(), 3);
    }
}
