//! What only pods have: their log, and their binding to a node.

use crate::body::{self, Answer, Feed};
use crate::decode;
use crate::front::Call;
use crate::nodes::{ByteStream, CallError, LogStreamKind, LogsOptions};
use crate::query::invalid_option;
use crate::render;
use crate::status::Status;
use crate::verbs::{Subresource, find, update_with};
use futures::StreamExt;
use jiff::SignedDuration;
use manifests::Resource;
use serde_json::{Value, json};
use state::rfc3339;

/// GET `pods/x/log`.
pub(crate) async fn log(call: Call) -> Result<Answer, Status> {
    let pod = find(&call, &call.api.world())?;
    let value = pod.value();
    let options = log_options(&call, &value)?;
    let name = &call.at.name;
    if value["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        // Kubernetes answers an empty log for a pod that is nowhere yet
        return Ok(body::text(200, ""));
    }
    waiting(name, &value, &options)?;
    let stream = call.api.config.nodes.logs(pod, options.clone()).await.map_err(|error| refusal(&call, &error))?;
    let (feed, body) = Feed::new(call.api.limits());
    let ended = call.ended.clone();
    tokio::spawn(async move { pump(stream, feed, ended).await });
    Ok(body::answer(200, "text/plain", body))
}

async fn pump(mut stream: ByteStream, feed: Feed, ended: tokio_util::sync::CancellationToken) {
    loop {
        let piece = tokio::select! {
            () = ended.cancelled() => return,
            () = feed.closed() => return,
            piece = stream.next() => piece,
        };
        match piece {
            None => return,
            Some(Ok(bytes)) => {
                if feed.send(vec![bytes]).await.is_err() {
                    return;
                }
            }
            Some(Err(error)) => {
                // the kubelet's way: the text ends with what broke it
                drop(feed.send(vec![format!("{error}\n").into()]).await);
                return;
            }
        }
    }
}

fn refusal(call: &Call, error: &CallError) -> Status {
    match error {
        CallError::Unreachable { node } => Status::internal(format!(
            "Get logs of {}/{} from node {node}: the node is not connected",
            call.at.namespace, call.at.name
        )),
        CallError::NotFound { message } | CallError::Refused { message } => Status::bad_request(message.clone()),
        CallError::Failed { message } => Status::internal(message),
    }
}

fn log_options(call: &Call, pod: &Value) -> Result<LogsOptions, Status> {
    let query = &call.query;
    let count = |name: &str, least: i64| {
        let number = query.number(name)?;
        match number.map(|number| (number, u64::try_from(number).ok().filter(|_| number >= least))) {
            Some((number, None)) => {
                let why = format!("Invalid value: {number}: must be greater than or equal to {least}");
                Err(pod_log_option(name, &why))
            }
            checked => Ok(checked.and_then(|(_, checked)| checked)),
        }
    };
    let since_seconds = count("sinceSeconds", 1)?;
    let since_time = query.get("sinceTime").map(str::parse).transpose();
    let since_time = since_time.map_err(|error| Status::bad_request(format!("sinceTime: {error}")))?;
    if since_seconds.is_some() && since_time.is_some() {
        let why = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified";
        return Err(pod_log_option("sinceSeconds", why));
    }
    let ago = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        call.api.now().checked_sub(SignedDuration::from_secs(seconds)).ok()
    };
    let stream = match query.get("stream") {
        None | Some("All") => LogStreamKind::All,
        Some("Stdout") => LogStreamKind::Stdout,
        Some("Stderr") => LogStreamKind::Stderr,
        Some(other) => {
            let why = format!(r#"Unsupported value: {other:?}: supported values: "All", "Stderr", "Stdout""#);
            return Err(pod_log_option("stream", &why));
        }
    };
    // insecureSkipTLSVerifyBackend is about a kubelet's certificate, and a node's link has none of its own to skip
    Ok(LogsOptions {
        container: container(&call.at.name, query.get("container"), pod)?,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        since: since_time.or_else(|| since_seconds.and_then(ago)),
        tail_lines: count("tailLines", 0)?,
        limit_bytes: count("limitBytes", 1)?,
        timestamps: query.flag("timestamps"),
        stream,
    })
}

fn pod_log_option(field: &str, why: &str) -> Status {
    let mut status = invalid_option("PodLogOptions", field, "FieldValueInvalid", why);
    status.message = status.message.replacen("PodLogOptions.meta.k8s.io", "PodLogOptions", 1);
    status
}

/// The container that is meant: the one named, or the only one.
pub(crate) fn container(pod_name: &str, asked: Option<&str>, pod: &Value) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
    };
    let (containers, init) = (names("containers"), names("initContainers"));
    let ephemeral = names("ephemeralContainers");
    match asked {
        Some(asked) if containers.iter().chain(&init).chain(&ephemeral).any(|name| name == asked) => {
            Ok(asked.to_owned())
        }
        Some(asked) => Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}"))),
        None if containers.len() == 1 => Ok(containers[0].clone()),
        None => {
            let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
            if let Some(default) = default.filter(|default| containers.iter().any(|name| name == default)) {
                return Ok(default.to_owned());
            }
            let mut why = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                containers.join(" ")
            );
            if !init.is_empty() {
                why.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(why))
        }
    }
}

/// A container that has not run yet has no log.
fn waiting(pod_name: &str, pod: &Value, options: &LogsOptions) -> Result<(), Status> {
    let container = &options.container;
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let found = lists
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
        .find(|status| status["name"] == container.as_str());
    let Some(found) = found else {
        return Err(Status::bad_request(format!(
            "container {container:?} in pod {pod_name:?} is waiting to start: ContainerCreating"
        )));
    };
    if options.previous {
        if found["lastState"]["terminated"].is_object() {
            return Ok(());
        }
        return Err(Status::bad_request(format!(
            "previous terminated container {container:?} in pod {pod_name:?} not found"
        )));
    }
    let waiting = &found["state"]["waiting"];
    let has_run = found["state"]["running"].is_object()
        || found["state"]["terminated"].is_object()
        || found["lastState"]["terminated"].is_object();
    if has_run {
        return Ok(());
    }
    let reason = waiting["reason"].as_str().unwrap_or("ContainerCreating");
    let why = match reason {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    Err(Status::bad_request(format!("container {container:?} in pod {pod_name:?} is waiting to start: {why}")))
}

/// POST `pods/x/binding`: what a scheduler says.
pub(crate) async fn bind(call: &Call) -> Result<Answer, Status> {
    let is_dry = call.query.dry_run("CreateOptions")?;
    let binding = decode::value(&call.headers, &call.body)?;
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() || !matches!(binding["target"]["kind"].as_str(), None | Some("" | "Node")) {
        return Err(Status::bad_request("a binding's target is a Node with a name"));
    }
    let bindings = Resource::new("", "pods/binding");
    let at = rfc3339(call.api.now());
    update_with(call, Subresource::Binding, is_dry, call.api.limits().patch_tries_max, |current| {
        let mut pod = current.value();
        let name = &call.at.name;
        let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        if current.is_deleting() {
            let why = format!("pod {name} is being deleted, cannot be assigned to a host");
            return Err(Status::conflict(&bindings, name, &why));
        }
        if !bound.is_empty() {
            let why = format!("pod {name} is already assigned to node {bound:?}");
            return Err(Status::conflict(&bindings, name, &why));
        }
        pod["spec"]["nodeName"] = node.clone().into();
        scheduled(&mut pod, &at);
        Ok(pod)
    })
    .await?;
    Ok(render::written(
        call,
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Sets the condition `PodScheduled`.
fn scheduled(pod: &mut Value, at: &str) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let status = &mut pod["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": at,
    }));
}
