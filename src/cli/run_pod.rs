//! `run` and `expose`: a pod from an image, a Service for what is there already.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::attach::Wish;
use super::client::Media;
use super::create::{self, CreateFlags};
use super::dry_run::DryRun;
use super::failure::{Failure, Result, all_of, fail, usage};
use super::files::FileArgs;
use super::output::{self, Printer};
use super::run_attached::{attach_or_read, is_ready_or_over, outcome_of, wait_for};
use super::session::{Selection, Session, name_of, namespace_of};
use super::stream::{target, terminal};

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    name: String,
    /// The image for the container to run
    #[arg(long)]
    image: String,
    /// The port that this container exposes
    #[arg(long)]
    port: Option<u16>,
    /// Create a ClusterIP service associated with the pod; requires --port
    #[arg(long)]
    expose: bool,
    /// Environment variables to set in the container (name=value)
    #[arg(long)]
    env: Vec<String>,
    /// Comma separated labels to apply to the pod
    #[arg(short = 'l', long, value_delimiter = ',')]
    labels: Vec<String>,
    /// Annotations to apply to the pod (name=value)
    #[arg(long)]
    annotations: Vec<String>,
    /// The restart policy: Always, OnFailure, Never
    #[arg(long, default_value = "Always")]
    restart: String,
    /// The image pull policy for the container
    #[arg(long)]
    image_pull_policy: Option<String>,
    /// Use the extra arguments as the command rather than as its arguments
    #[arg(long)]
    command: bool,
    /// Keep stdin open on the container in the pod, even if nothing is attached
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Allocate a TTY for the container in the pod
    #[arg(short = 't', long)]
    tty: bool,
    /// Wait for the pod to start running, and then attach to it; the default with -i
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    attach: Option<bool>,
    /// Leave stdin open after the first attach completes
    #[arg(long)]
    leave_stdin_open: bool,
    /// Delete the pod after it exits; only valid when attaching to the container
    #[arg(long)]
    rm: bool,
    /// Suppress prompt messages
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Run the container in privileged mode
    #[arg(long)]
    privileged: bool,
    /// How long to wait until the pod is running (5s, 2m, 3h)
    #[arg(long, default_value = "1m0s", value_parser = super::duration::flag)]
    pod_running_timeout: Duration,
    #[command(flatten)]
    common: CreateFlags,
    /// What the container runs
    args: Vec<String>,
}

/// Carries out `run`.
pub async fn run(session: &Session, args: RunArgs) -> Result<()> {
    let is_attached = check(&args)?;
    if args.expose && args.port.is_none() {
        return fail("--port must be set when exposing a service");
    }
    let output = args.common.output.args();
    let mut printer = Printer::new(output.format(false)?, &output);
    if args.expose
        && let Some(port) = args.port
    {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": args.name},
            "spec": {"ports": [{"port": port, "protocol": "TCP", "targetPort": port}], "selector": {"run": args.name}},
            "status": {"loadBalancer": {}},
        });
        create::create(session, service, &args.common, &mut printer).await?;
    }
    if !is_attached {
        return create::create(session, pod(&args)?, &args.common, &mut printer).await;
    }
    let made = create::send(session, pod(&args)?, &args.common).await?;
    let work = attached(session, &args, &made);
    if !args.rm {
        return work.await;
    }
    // Whoever wants the pod gone wants that after Ctrl-C too.
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = terminal::killed() => Err(Failure::Exit(1)),
    };
    remove(session, &args, &made).await.and(outcome)
}

/// Refuses what makes no sense; says whether the pod is attached to.
fn check(args: &RunArgs) -> Result<bool> {
    if args.tty && !args.stdin {
        return usage("run", "-i/--stdin is required for containers with -t/--tty=true");
    }
    if !matches!(args.restart.as_str(), "Always" | "OnFailure" | "Never") {
        return usage("run", format!("invalid restart policy: {}", args.restart));
    }
    let is_attached = args.attach.unwrap_or(args.stdin);
    if args.rm && !is_attached {
        return usage("run", "--rm should only be used for attached containers");
    }
    if args.common.dry_run != DryRun::None && (is_attached || args.stdin || args.tty) {
        return usage(
            "run",
            "--dry-run=[server|client] can't be used with attached containers options (--attach, --stdin, or --tty)",
        );
    }
    if is_attached {
        target::running_timeout("run", args.pod_running_timeout)?;
    }
    Ok(is_attached)
}

/// Attaches to the pod, and takes its program's exit code if the program is not started again.
async fn attached(session: &Session, args: &RunArgs, made: &Value) -> Result<()> {
    let pod = wait_for(session, made, Some(args.pod_running_timeout), is_ready_or_over).await?;
    let wish = Wish { stdin: args.stdin, tty: args.tty, quiet: args.quiet };
    match attach_or_read(session, &pod, &args.name, wish).await {
        // The pod tells the same, and knows whether the program is started again.
        Err(Failure::Terminated(_)) => {}
        other => other?,
    }
    if args.leave_stdin_open || args.restart == "Always" {
        return Ok(());
    }
    let is_over = |pod: &Value| match pod["status"]["phase"].as_str() {
        Some("Succeeded") => true,
        Some("Failed") => args.restart == "Never",
        _ => false,
    };
    let pod = wait_for(session, made, Some(args.pod_running_timeout), is_over).await?;
    outcome_of(&pod, namespace_of(&pod).unwrap_or(&session.namespace))
}

async fn remove(session: &Session, args: &RunArgs, made: &Value) -> Result<()> {
    let mut paths = vec![("pod", target::path(session, made, ""))];
    if args.expose {
        let resource = session.resource("services").await?;
        let namespace = namespace_of(made).unwrap_or(&session.namespace);
        paths.push(("service", resource.path(Some(namespace), &args.name)));
    }
    let mut failures = Vec::new();
    for (kind, path) in paths {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        match session.client.send(Method::DELETE, &path, Media::Json, &options).await {
            Ok(_) => output::line(&format!("{kind} {:?} deleted", args.name)),
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => failures.push(failure),
        }
    }
    all_of(failures)
}

fn pod(args: &RunArgs) -> Result<Value> {
    let mut container = json!({"name": args.name, "image": args.image, "resources": {}});
    if args.stdin {
        container["stdin"] = true.into();
        if !args.leave_stdin_open {
            container["stdinOnce"] = true.into();
        }
    }
    if args.tty {
        container["tty"] = true.into();
    }
    if args.privileged {
        container["securityContext"] = json!({"privileged": true});
    }
    if let Some(port) = args.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if let Some(policy) = &args.image_pull_policy {
        container["imagePullPolicy"] = policy.clone().into();
    }
    let mut env = Vec::new();
    for text in &args.env {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => env.push(json!({"name": name, "value": value})),
            _ => return fail(format!("invalid env: {text}")),
        }
    }
    if !env.is_empty() {
        container["env"] = env.into();
    }
    if !args.args.is_empty() {
        container[if args.command { "command" } else { "args" }] = args.args.clone().into();
    } else if args.command {
        return fail("cannot specify --command without a command");
    }
    let mut metadata = json!({"name": args.name, "labels": pairs(&args.labels)?});
    if args.labels.is_empty() {
        metadata["labels"] = json!({"run": args.name});
    }
    if !args.annotations.is_empty() {
        metadata["annotations"] = pairs(&args.annotations)?;
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": args.restart},
        "status": {},
    }))
}

fn pairs(list: &[String]) -> Result<Value> {
    let mut map = serde_json::Map::new();
    for text in list {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => map.insert(key.to_string(), value.into()),
            _ => return fail(format!("unexpected label or annotation: {text}")),
        };
    }
    Ok(map.into())
}

/// Flags of `expose`.
#[derive(Debug, clap::Args)]
pub struct ExposeArgs {
    /// TYPE NAME or TYPE/NAME
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    common: CreateFlags,
    /// The port that the service should serve on
    #[arg(long)]
    port: Option<String>,
    /// Name or number for the port on the container that the service should direct traffic to
    #[arg(long)]
    target_port: Option<String>,
    /// The name for the newly created object
    #[arg(long)]
    name: Option<String>,
    /// Type for this service: ClusterIP, NodePort, LoadBalancer, or ExternalName
    #[arg(long = "type")]
    kind: Option<String>,
    /// The network protocol for the service to be created
    #[arg(long)]
    protocol: Option<String>,
    /// A label selector to use for this service
    #[arg(long)]
    selector: Option<String>,
    /// Labels to apply to the service created by this call
    #[arg(short = 'l', long, value_delimiter = ',')]
    labels: Vec<String>,
    /// ClusterIP to be assigned to the service; 'None' creates a headless service
    #[arg(long)]
    cluster_ip: Option<String>,
    /// Additional external IP address for the service
    #[arg(long)]
    external_ip: Option<String>,
    /// Session affinity: None, ClientIP
    #[arg(long)]
    session_affinity: Option<String>,
}

/// Carries out `expose`.
pub async fn expose(session: &Session, args: ExposeArgs) -> Result<()> {
    let selection = Selection::default();
    let (targets, mut failures) = session.all_targets("expose", &args.words, &args.files, &selection).await?;
    let (found, more) = session.fetch(targets, &selection).await?;
    failures.extend(more);
    let output = args.common.output.args();
    let mut printer = Printer::new(output.format(false)?, &output);
    for found in found {
        let service = service(&args, &found.target.resource.kind, &found.object)?;
        let name = name_of(&service).to_string();
        let made = create::send(session, service, &args.common).await;
        match made {
            Ok(object) => {
                let words = format!("service/{name} exposed{}", args.common.dry_run.suffix());
                printer.print(&object, &words)?;
            }
            Err(failure) => failures.push(failure),
        }
    }
    super::failure::all_of(failures)
}

/// The Service that exposes an object.
fn service(args: &ExposeArgs, kind: &str, object: &Value) -> Result<Value> {
    let selector = match (&args.selector, kind) {
        (Some(text), _) => pairs(&text.split(',').map(str::to_string).collect::<Vec<_>>())?,
        (None, "Pod") => object["metadata"]["labels"].clone(),
        (None, "Service" | "ReplicationController") => object["spec"]["selector"].clone(),
        (None, "Deployment" | "ReplicaSet") => {
            if !object["spec"]["selector"]["matchExpressions"].is_null() {
                return fail(format!(
                    "couldn't convert expressions - \"{}\" to map-based selector format",
                    object["spec"]["selector"]["matchExpressions"]
                ));
            }
            object["spec"]["selector"]["matchLabels"].clone()
        }
        (None, _) => return fail(format!("cannot expose a {kind}")),
    };
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        return fail(
            "couldn't retrieve selectors via --selector flag or introspection: the object has no labels and cannot be exposed",
        );
    }
    let found = ports_of(kind, object);
    let wanted: Vec<(i64, String)> = match &args.port {
        None => found.clone(),
        Some(text) => {
            let mut ports = Vec::new();
            for part in text.split(',') {
                let Ok(port) = part.parse::<u16>() else { return fail(format!("invalid port {part:?}")) };
                let port = i64::from(port);
                let protocol = found.iter().find(|(known, _)| *known == port).map_or("TCP", |(_, protocol)| protocol);
                ports.push((port, protocol.to_string()));
            }
            ports
        }
    };
    if wanted.is_empty() {
        return fail("couldn't find port via --port flag or introspection");
    }
    let several = wanted.len() > 1;
    let mut ports = Vec::new();
    for (at, (port, protocol)) in wanted.iter().enumerate() {
        let target = args
            .target_port
            .clone()
            .map_or(Value::from(*port), |text| text.parse::<u16>().map_or(text.into(), Value::from));
        let protocol = args.protocol.clone().unwrap_or_else(|| protocol.clone());
        let mut entry = json!({"port": port, "protocol": protocol, "targetPort": target});
        if several {
            entry["name"] = format!("port-{}", at + 1).into();
        }
        ports.push(entry);
    }
    let mut spec = json!({"ports": ports, "selector": selector});
    let settings = [("type", &args.kind), ("clusterIP", &args.cluster_ip), ("sessionAffinity", &args.session_affinity)];
    for (field, value) in settings {
        if let Some(value) = value {
            spec[field] = value.clone().into();
        }
    }
    if let Some(address) = &args.external_ip {
        spec["externalIPs"] = json!([address]);
    }
    let mut metadata = json!({"name": args.name.clone().unwrap_or_else(|| name_of(object).to_string())});
    let labels = if args.labels.is_empty() { object["metadata"]["labels"].clone() } else { pairs(&args.labels)? };
    if !labels.is_null() {
        metadata["labels"] = labels;
    }
    Ok(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": {"loadBalancer": {}}}),
    )
}

/// Ports and protocols that the object serves.
fn ports_of(kind: &str, object: &Value) -> Vec<(i64, String)> {
    let pair = |port: &Value, field: &str| {
        Some((port[field].as_i64()?, port["protocol"].as_str().unwrap_or("TCP").to_string()))
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    if kind == "Service" {
        return list(&object["spec"]["ports"]).iter().filter_map(|port| pair(port, "port")).collect();
    }
    let spec = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
    let containers = list(&spec["containers"]);
    containers
        .iter()
        .flat_map(|container| list(&container["ports"]))
        .filter_map(|port| pair(&port, "containerPort"))
        .collect()
}
