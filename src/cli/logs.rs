//! `logs`: what containers wrote, now or as they write it; of a pod, of a workload's pods, of all pods with a label.

use futures::io::AsyncBufReadExt;
use futures::{AsyncReadExt, StreamExt};
use serde_json::Value;

use super::client::with_query;
use super::duration;
use super::failure::{Failure, Result, all_of, fail};
use super::output;
use super::session::{Selection, Session, Target, items_of, name_of, namespace_of};

/// Lines shown of each container when pods are chosen by label.
const TAIL_LINES_BY_LABEL: i64 = 10;
/// The longest line that is passed on with a prefix; longer ones are passed on in parts.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Flags of `logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// POD [CONTAINER] or TYPE/NAME
    pub words: Vec<String>,
    /// Specify if the logs should be streamed
    #[arg(short = 'f', long)]
    follow: bool,
    /// Lines of recent log file to display; -1 shows all
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    tail: i64,
    /// Only return logs newer than a relative duration like 5s, 2m, or 3h
    #[arg(long)]
    since: Option<String>,
    /// Only return logs after a specific date (RFC3339)
    #[arg(long)]
    since_time: Option<String>,
    /// Print the logs for the previous instance of the container in a pod if it exists
    #[arg(short = 'p', long)]
    previous: bool,
    /// Print the logs of this container
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// Get all containers' logs in the pods
    #[arg(long)]
    all_containers: bool,
    /// Get logs from all pods of a workload
    #[arg(long)]
    all_pods: bool,
    /// Include timestamps on each line
    #[arg(long)]
    timestamps: bool,
    /// Prefix each log line with the log source (pod name and container name)
    #[arg(long)]
    prefix: bool,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Maximum number of concurrent logs to follow when using a selector
    #[arg(long, default_value_t = 5)]
    max_log_requests: usize,
    /// Maximum bytes of logs to return; 0 means no limit
    #[arg(long, default_value_t = 0)]
    limit_bytes: u64,
    /// If watching or following pod logs, allow for any errors that occur to be non-fatal
    #[arg(long)]
    ignore_errors: bool,
    /// Skip identity checks of the node that serves the logs
    #[arg(long)]
    insecure_skip_tls_verify_backend: bool,
    /// How long to wait until at least one pod is running
    #[arg(long, default_value = "20s", value_parser = super::duration::flag)]
    pod_running_timeout: std::time::Duration,
}

/// One log to read.
#[derive(Debug, Clone)]
struct Source {
    path: String,
    /// `[pod/web-1/main] `, or nothing.
    prefix: String,
}

/// Carries it out.
pub async fn run(session: &Session, args: LogsArgs) -> Result<()> {
    check(&args)?;
    let mut container = args.container.clone();
    let mut words = args.words.clone();
    if words.len() == 2 && !words[0].contains('/') {
        if container.is_some() {
            return fail("only one of -c or an inline [CONTAINER] arg is allowed");
        }
        container = words.pop();
    }
    let pods = pods(session, &args, &words).await.map_err(|failure| in_namespace(failure, session))?;
    let by_label = args.selector.is_some();
    if pods.is_empty() {
        eprintln!("No resources found in {} namespace.", session.namespace);
        return Ok(());
    }
    let mut sources = Vec::new();
    for pod in &pods {
        for name in containers(pod, container.as_deref(), args.all_containers)? {
            sources.push(source(session, &args, pod, &name, by_label)?);
        }
    }
    if !args.follow || sources.len() == 1 {
        let mut failures = Vec::new();
        for source in &sources {
            match read(session, &args, source).await {
                Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
                other => failures.extend(other.err()),
            }
            if !failures.is_empty() && !args.ignore_errors {
                break;
            }
        }
        return all_of(failures);
    }
    if sources.len() > args.max_log_requests {
        return fail(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {}, use --max-log-requests to increase the limit",
            sources.len(),
            args.max_log_requests
        ));
    }
    let mut reading: futures::stream::FuturesUnordered<_> =
        sources.iter().map(|source| read(session, &args, source)).collect();
    while let Some(done) = reading.next().await {
        match done {
            Err(failure) if args.ignore_errors => eprintln!("{}", failure.message()),
            other => other?,
        }
    }
    Ok(())
}

fn check(args: &LogsArgs) -> Result<()> {
    if args.words.is_empty() && args.selector.is_none() {
        return Err(Failure::Bare(
            "error: expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'.\nPOD or TYPE/NAME is a required argument for the logs command\nSee 'coracle logs -h' for help and examples".into(),
        ));
    }
    if !args.words.is_empty() && args.selector.is_some() {
        return fail("only a selector (-l) or a POD name is allowed");
    }
    if args.all_containers && (args.container.is_some() || args.words.len() == 2) {
        return fail("--all-containers=true should not be specified with container name");
    }
    if args.since.is_some() && args.since_time.is_some() {
        return fail("only one of sinceTime or sinceSeconds may be provided");
    }
    if args.tail < -1 {
        return fail("--tail must be greater than or equal to -1");
    }
    if args.words.len() > 2 {
        return fail("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'");
    }
    Ok(())
}

/// kubectl's longer sentence for a pod or workload that is not there.
fn in_namespace(failure: Failure, session: &Session) -> Failure {
    match failure {
        Failure::Refused(status) if status.reason == "NotFound" => Failure::Text(format!(
            "error from server (NotFound): {} in namespace {:?}",
            status.message, session.namespace
        )),
        other => other,
    }
}

/// The pods that the words or the selector mean.
async fn pods(session: &Session, args: &LogsArgs, words: &[String]) -> Result<Vec<Value>> {
    let resource = session.resource("pods").await?;
    let collection =
        Target { resource: resource.clone(), namespace: Some(session.namespace.clone()), name: None, manifest: None };
    if let Some(selector) = &args.selector {
        let selection = Selection { selector: Some(selector.clone()), ..Default::default() };
        let list = session.list(&collection, &selection, super::session::CHUNK_OBJECTS).await?;
        return Ok(items_of(list, &resource));
    }
    let word = words.first().map(String::as_str).unwrap_or_default();
    if !word.contains('/') {
        return Ok(vec![session.client.get(&resource.path(Some(&session.namespace), word)).await?]);
    }
    let targets = session.targets(&words[..1], &Selection::default()).await?;
    let Some(target) = targets.first() else { return Ok(Vec::new()) };
    let object = session.client.get(&target.path()).await?;
    if target.resource.kind == "Pod" {
        return Ok(vec![object]);
    }
    let selector = match pod_selector(&target.resource.kind, &object) {
        Some(selector) => selector,
        None => return fail(format!("cannot get the logs from {}: selector not found", target.resource.qualified())),
    };
    let selection = Selection { selector: Some(selector), ..Default::default() };
    let mut pods = items_of(session.list(&collection, &selection, super::session::CHUNK_OBJECTS).await?, &resource);
    if pods.is_empty() {
        return fail("timed out waiting for the condition");
    }
    pods.sort_by_key(rank);
    if pods.len() > 1 && !args.all_pods {
        eprintln!("Found {} pods, using pod/{}", pods.len(), name_of(&pods[0]));
        pods.truncate(1);
    }
    Ok(pods)
}

/// The label selector of a workload's or Service's pods, as a list request has it.
pub fn pod_selector(kind: &str, object: &Value) -> Option<String> {
    let selector = &object["spec"]["selector"];
    let labels = match kind {
        "Service" | "ReplicationController" => selector,
        _ => &selector["matchLabels"],
    };
    let mut parts: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("Exists") => key.to_string(),
            _ => format!("!{key}"),
        });
    }
    (!parts.is_empty()).then(|| parts.join(","))
}

/// Pods that have something to say come first: assigned, running, ready, older.
pub fn rank(pod: &Value) -> (bool, u8, bool, String) {
    let phase = match pod["status"]["phase"].as_str() {
        Some("Running") => 0,
        Some("Pending") => 2,
        _ => 1,
    };
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is_ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_string();
    (pod["spec"]["nodeName"].is_null(), phase, !is_ready, created)
}

/// The containers whose logs are wanted; says which one it is when nobody said.
fn containers(pod: &Value, wanted: Option<&str>, all: bool) -> Result<Vec<String>> {
    let names = |field: &str| -> Vec<String> {
        let list = pod["spec"][field].as_array().into_iter().flatten();
        list.filter_map(|container| container["name"].as_str().map(str::to_string)).collect()
    };
    let (inits, mains, ephemerals) = (names("initContainers"), names("containers"), names("ephemeralContainers"));
    let every: Vec<String> = inits.iter().chain(&mains).chain(&ephemerals).cloned().collect();
    if all {
        return Ok(every);
    }
    if let Some(wanted) = wanted {
        if !every.iter().any(|name| name == wanted) {
            return fail(format!("container {wanted} is not valid for pod {}", name_of(pod)));
        }
        return Ok(vec![wanted.to_string()]);
    }
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(name) = annotated.filter(|name| every.iter().any(|known| known == name)) {
        return Ok(vec![name.to_string()]);
    }
    let Some(first) = mains.first() else { return fail(format!("no containers in pod {}", name_of(pod))) };
    if every.len() > 1 {
        let mut shown = mains.clone();
        shown.extend(ephemerals.iter().map(|name| format!("{name} (ephem)")));
        shown.extend(inits.iter().map(|name| format!("{name} (init)")));
        eprintln!("Defaulted container {first:?} out of: {}", shown.join(", "));
    }
    Ok(vec![first.clone()])
}

fn source(session: &Session, args: &LogsArgs, pod: &Value, container: &str, by_label: bool) -> Result<Source> {
    let mut query: Vec<(&str, String)> = vec![("container", container.to_string())];
    let flags = [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)];
    query.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| (*name, "true".to_string())));
    let tail = if args.tail < 0 && by_label { TAIL_LINES_BY_LABEL } else { args.tail };
    if tail >= 0 {
        query.push(("tailLines", tail.to_string()));
    }
    if args.limit_bytes > 0 {
        query.push(("limitBytes", args.limit_bytes.to_string()));
    }
    if let Some(since) = &args.since {
        let since = duration::parse(since)
            .map_err(|error| Failure::Text(format!("invalid argument {since:?} for \"--since\" flag: {error}")))?;
        // A zero means "no limit" to kubectl.
        if !since.is_zero() {
            query.push(("sinceSeconds", since.as_secs_f64().ceil().max(1.0).to_string()));
        }
    }
    if let Some(time) = &args.since_time {
        if time.parse::<jiff::Timestamp>().is_err() {
            return fail(format!("parsing time {time:?} as RFC3339 failed"));
        }
        query.push(("sinceTime", time.clone()));
    }
    let namespace = namespace_of(pod).unwrap_or(&session.namespace);
    let name = name_of(pod);
    let path =
        format!("/api/v1/namespaces/{}/pods/{}/log", super::client::escape(namespace), super::client::escape(name));
    let prefix = if args.prefix { format!("[pod/{name}/{container}] ") } else { String::new() };
    Ok(Source { path: with_query(&path, &query), prefix })
}

async fn read(session: &Session, args: &LogsArgs, source: &Source) -> Result<()> {
    let mut stream = session.client.stream(&source.path, "*/*").await?;
    let broken = |error: std::io::Error| Failure::Text(format!("error reading the log: {error}"));
    let several = args.selector.is_some() || args.all_containers || args.all_pods;
    if source.prefix.is_empty() && !(several && args.follow) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = stream.read(&mut buffer).await.map_err(broken)?;
            if count == 0 {
                return Ok(());
            }
            output::bytes(&buffer[..count]);
        }
    }
    // Lines of several sources must not be torn apart, so they are passed on whole.
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut stream).take(LINE_BYTES_MAX as u64);
        if limited.read_until(b'\n', &mut line).await.map_err(broken)? == 0 {
            return Ok(());
        }
        let mut whole = source.prefix.clone().into_bytes();
        whole.extend_from_slice(&line);
        output::bytes(&whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_containers() {
        let pod = json!({
            "metadata": {"name": "p", "annotations": {}},
            "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]},
        });
        let show = |wanted, all| containers(&pod, wanted, all).map_or_else(|f| f.message(), |names| names.join(" "));
        assert_eq!(show(None, false), "a");
        assert_eq!(show(Some("i"), false), "i");
        assert_eq!(show(None, true), "i a b");
        assert_eq!(show(Some("x"), false), "error: container x is not valid for pod p");
        let mut annotated = pod.clone();
        annotated["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] = "b".into();
        assert_eq!(containers(&annotated, None, false).unwrap(), ["b"]);
    }

    #[test]
    fn selectors() {
        let object = json!({"spec": {"selector": {"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]}}});
        assert_eq!(pod_selector("Deployment", &object).unwrap(), "a=b,c in (d,e),!f");
        assert_eq!(pod_selector("Service", &json!({"spec": {"selector": {"x": "y"}}})).unwrap(), "x=y");
        assert_eq!(pod_selector("Service", &json!({"spec": {}})), None);
    }
}
