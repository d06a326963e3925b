//! `drain`, `cordon` and `uncordon`: takes nodes out of service, and back.
//!
//! A drain cordons the nodes, looks at each one's pods, refuses what it was not told to remove, and evicts the rest; evictions
//! that a disruption budget refuses are tried again until the time is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::{Media, with_query};
use super::dry_run::DryRun;
use super::duration;
use super::failure::{Failure, Result, all_of, fail, usage};
use super::mutate::merge_difference;
use super::output;
use super::session::{CHUNK_OBJECTS, Found, Selection, Session, Target, name_of, namespace_of};

/// Evictions under way at once.
const EVICTIONS_MAX: usize = 1000;
/// Until an eviction that was refused for now is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether a pod is gone.
const POLL: Duration = Duration::from_secs(1);

/// Flags of `cordon` and `uncordon`.
#[derive(Debug, clap::Args)]
pub struct CordonArgs {
    /// The nodes
    pub nodes: Vec<String>,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// "none", "server" or "client"
    #[arg(long, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "unchanged")]
    dry_run: DryRun,
}

/// Flags of `drain`.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    #[command(flatten)]
    cordon: CordonArgs,
    /// Return large lists in chunks rather than all at once; 0 disables
    #[arg(long, default_value_t = CHUNK_OBJECTS)]
    chunk_size: u64,
    /// Continue even if there are pods using emptyDir (local data that will be deleted when the node is drained)
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Force drain to use delete, even if eviction is supported; this bypasses PodDisruptionBudgets
    #[arg(long)]
    disable_eviction: bool,
    /// Continue even if there are pods that do not declare a controller
    #[arg(long)]
    force: bool,
    /// Seconds given to each pod to terminate gracefully; if negative, the pod's own value is used
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    grace_period: i64,
    /// Ignore DaemonSet-managed pods
    #[arg(long)]
    ignore_daemonsets: bool,
    /// Label selector to filter pods on the node
    #[arg(long)]
    pod_selector: Option<String>,
    /// If a pod's DeletionTimestamp is older than so many seconds, do not wait for it; must be greater than 0 to skip
    #[arg(long, default_value_t = 0)]
    skip_wait_for_delete_timeout: i64,
    /// How long to wait before giving up; zero means infinite
    #[arg(long, default_value = "0s", value_parser = super::duration::flag)]
    timeout: Duration,
}

/// Carries out `cordon` (`unschedulable` true) and `uncordon`.
pub async fn cordon(session: &Session, args: CordonArgs, unschedulable: bool) -> Result<()> {
    let verb = if unschedulable { "cordon" } else { "uncordon" };
    let nodes = nodes(session, &args, verb).await?;
    mark(session, &nodes, unschedulable, args.dry_run).await
}

/// Carries out `drain`.
pub async fn drain(session: &Session, args: DrainArgs) -> Result<()> {
    let nodes = nodes(session, &args.cordon, "drain").await?;
    mark(session, &nodes, true, args.cordon.dry_run).await?;
    let drain = Drain { session, args: &args };
    let (mut pending, mut failures) = (Vec::new(), Vec::new());
    for node in &nodes {
        let name = name_of(&node.object);
        match drain.node(name).await {
            Ok(()) => output::line(&format!("{} drained{}", node.target.full_name(), args.cordon.dry_run.suffix())),
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => {
                let why = aggregate(&failure);
                eprintln!("error: unable to drain node {name:?} due to error: {why}, continuing command...");
                pending.push(name);
                failures.push(failure);
            }
        }
    }
    if !pending.is_empty() {
        eprintln!("There are pending nodes to be drained:");
        pending.iter().for_each(|name| eprintln!(" {name}"));
    }
    all_of(failures)
}

/// The nodes that are meant; none of them missing.
async fn nodes(session: &Session, args: &CordonArgs, verb: &str) -> Result<Vec<Found>> {
    let selector = args.selector.clone().filter(|selector| !selector.is_empty());
    if args.nodes.is_empty() && args.selector.is_none() {
        return usage(verb, format!("USAGE: {verb} NODE [flags]"));
    }
    if !args.nodes.is_empty() && selector.is_some() {
        return usage(verb, "error: cannot specify both a node name and a --selector option");
    }
    let resource = session.resource("nodes").await?;
    let mut targets = Vec::new();
    for word in &args.nodes {
        let (type_, name) = word.split_once('/').unwrap_or(("nodes", word));
        let named = session.resource(type_).await?;
        if named.kind != resource.kind || named.group != resource.group {
            return fail(format!("expected resource of type node, got {:?}", named.qualified()));
        }
        targets.push(Target {
            resource: resource.clone(),
            namespace: None,
            name: Some(name.to_string()),
            manifest: None,
        });
    }
    if targets.is_empty() {
        targets.push(Target { resource, namespace: None, name: None, manifest: None });
    }
    let selection = Selection { selector, ..Selection::default() };
    let (found, failures) = session.fetch(targets, &selection).await?;
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(found),
    }
}

/// Cordons or uncordons nodes; one that fails is told and the others go on.
async fn mark(session: &Session, nodes: &[Found], unschedulable: bool, dry_run: DryRun) -> Result<()> {
    let (verb, done) = if unschedulable { ("cordon", "cordoned") } else { ("uncordon", "uncordoned") };
    for node in nodes {
        let mut wanted = node.object.clone();
        if (wanted["spec"]["unschedulable"] == true) != unschedulable {
            match wanted["spec"].as_object_mut() {
                Some(spec) if !unschedulable => drop(spec.remove("unschedulable")),
                _ => wanted["spec"]["unschedulable"] = true.into(),
            }
        }
        let name = node.target.full_name();
        let Some(patch) = merge_difference(&node.object, &wanted) else {
            output::line(&format!("{name} already {done}{}", dry_run.suffix()));
            continue;
        };
        if dry_run != DryRun::Client {
            let query: Vec<_> = dry_run.parameter().into_iter().collect();
            let path = with_query(&node.target.path(), &query);
            match session.client.send(Method::PATCH, &path, Media::MergePatch, &patch).await {
                Ok(_) => {}
                Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
                Err(failure) => {
                    eprintln!("error: unable to {verb} node {:?}: {failure}", name_of(&node.object));
                    continue;
                }
            }
        }
        output::line(&format!("{name} {done}{}", dry_run.suffix()));
    }
    Ok(())
}

/// What is to be done with a pod of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// It goes.
    Goes,
    /// It goes, and people should know.
    GoesWarned(String),
    /// It stays, and nothing is said.
    Stays,
    /// It stays, and people should know.
    StaysWarned(String),
    /// It may not go, and so nothing does.
    Refused(String),
}

/// One run of `drain`.
struct Drain<'a> {
    session: &'a Session,
    args: &'a DrainArgs,
}

impl Drain<'_> {
    async fn node(&self, node: &str) -> Result<()> {
        let (pods, warnings) = self.pods(node).await?;
        if !warnings.is_empty() {
            eprintln!("Warning: {warnings}");
        }
        if self.args.cordon.dry_run == DryRun::Client {
            for pod in &pods {
                output::line(&format!("evicting pod {}/{} (dry run)", namespace(pod), name_of(pod)));
            }
            return Ok(());
        }
        let done = match self.args.disable_eviction {
            true => self.delete_all(&pods).await,
            false => self.evict_all(&pods).await,
        };
        let Err(failure) = done else { return Ok(()) };
        match self.pods(node).await {
            Ok((left, _)) if !left.is_empty() => {
                eprintln!("There are pending pods in node {node:?} when an error occurred: {}", aggregate(&failure));
                left.iter().for_each(|pod| eprintln!("pod/{}", name_of(pod)));
            }
            Ok(_) => {}
            Err(more) => {
                eprint!("Following errors occurred while getting the list of pods to delete:\n{}", aggregate(&more));
            }
        }
        Err(failure)
    }

    /// The pods of a node that are to go, and what people should know.
    async fn pods(&self, node: &str) -> Result<(Vec<Value>, String)> {
        let resource = self.session.resource("pods").await?;
        let all = Target { resource: resource.clone(), namespace: None, name: None, manifest: None };
        let selection = Selection {
            selector: self.args.pod_selector.clone(),
            field_selector: Some(format!("spec.nodeName={node}")),
            all_namespaces: true,
        };
        let list = self.session.list(&all, &selection, self.args.chunk_size).await?;
        let (mut going, mut warnings, mut refusals) = (Vec::new(), Told::default(), Told::default());
        for pod in super::session::items_of(list, &resource) {
            let set = match daemon_set(&pod) {
                Some(set) => Some(self.has_daemon_set(&namespace(&pod), set).await),
                None => None,
            };
            match verdict(&pod, self.args, set, Timestamp::now()) {
                Verdict::Goes => going.push(pod),
                Verdict::GoesWarned(why) => {
                    warnings.add(why, &pod);
                    going.push(pod);
                }
                Verdict::Stays => {}
                Verdict::StaysWarned(why) => warnings.add(why, &pod),
                Verdict::Refused(why) => refusals.add(why, &pod),
            }
        }
        let refusals = refusals.lines().into_iter().map(|line| Failure::Bare(format!("cannot delete {line}")));
        all_of(refusals.collect())?;
        Ok((going, warnings.lines().join("; ")))
    }

    /// Whether a pod's DaemonSet is there; else why it cannot be told.
    async fn has_daemon_set(&self, namespace: &str, name: &str) -> Result<()> {
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{}", super::client::escape(name));
        self.session.client.get(&path).await.map(drop)
    }

    async fn evict_all(&self, pods: &[Value]) -> Result<()> {
        let end = self.end();
        // gathered first: a stream that holds the closure is not known to be `Send`
        let evictions: Vec<_> = pods.iter().map(|pod| self.evict(pod, end)).collect();
        let done: Vec<Result<()>> = futures::stream::iter(evictions).buffer_unordered(EVICTIONS_MAX).collect().await;
        all_of(done.into_iter().filter_map(Result::err).collect())
    }

    fn end(&self) -> Option<Instant> {
        (!self.args.timeout.is_zero()).then(|| Instant::now() + self.args.timeout)
    }

    fn over(&self) -> String {
        format!("global timeout reached: {}", duration::go(self.args.timeout))
    }

    /// Evicts a pod and waits until it is gone.
    async fn evict(&self, pod: &Value, end: Option<Instant>) -> Result<()> {
        let (name, namespace) = (name_of(pod), namespace(pod));
        let dry_run = self.args.cordon.dry_run;
        loop {
            output::line(&format!("evicting pod {namespace}/{name}{}", dry_run.suffix()));
            if is_over(end) {
                return bare(format!("error when evicting pods/{name:?} -n {namespace:?}: {}", self.over()));
            }
            let failure = match self.post_eviction(&namespace, name).await {
                Ok(()) => break,
                Err(failure) => failure,
            };
            if failure.is_not_found() {
                return Ok(());
            }
            if is_terminating(&failure) {
                let now = self.session.client.get(&path_of(&namespace, name)).await.unwrap_or_else(|_| pod.clone());
                if now["metadata"]["deletionTimestamp"].is_string() {
                    break;
                }
                eprintln!(
                    "error when evicting pod {name:?} from terminating namespace {namespace:?} (will retry after 5s): {failure}"
                );
            } else if failure.has_reason("TooManyRequests") {
                eprintln!("error when evicting pods/{name:?} -n {namespace:?} (will retry after 5s): {failure}");
            } else {
                return bare(format!("error when evicting pods/{name:?} -n {namespace:?}: {failure}"));
            }
            tokio::time::sleep(RETRY).await;
        }
        if dry_run == DryRun::Server {
            return Ok(());
        }
        self.until_gone(pod, end, "evicted").await.or_else(|failure| {
            bare(format!("error when waiting for pod {name:?} in namespace {namespace:?} to terminate: {failure}"))
        })
    }

    async fn post_eviction(&self, namespace: &str, name: &str) -> Result<()> {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": self.delete_options(),
        });
        let path = format!("{}/eviction", path_of(namespace, name));
        self.session.client.send(Method::POST, &path, Media::Json, &eviction).await.map(drop)
    }

    fn delete_options(&self) -> Value {
        let mut options = json!({});
        if self.args.grace_period >= 0 {
            options["gracePeriodSeconds"] = self.args.grace_period.into();
        }
        if self.args.cordon.dry_run == DryRun::Server {
            options["dryRun"] = json!(["All"]);
        }
        options
    }

    /// Deletes pods without asking their budgets, and waits until they are gone.
    async fn delete_all(&self, pods: &[Value]) -> Result<()> {
        let end = self.end();
        let mut options = self.delete_options();
        options["kind"] = "DeleteOptions".into();
        options["apiVersion"] = "v1".into();
        for pod in pods {
            let path = path_of(&namespace(pod), name_of(pod));
            match self.session.client.send(Method::DELETE, &path, Media::Json, &options).await {
                Err(failure) if !failure.is_not_found() => return Err(failure),
                _ => {}
            }
        }
        if self.args.cordon.dry_run == DryRun::Server {
            return Ok(());
        }
        for pod in pods {
            self.until_gone(pod, end, "deleted").await?;
        }
        Ok(())
    }

    /// Waits until a pod is gone, or another has its name, and says so.
    async fn until_gone(&self, pod: &Value, end: Option<Instant>, done: &str) -> Result<()> {
        let path = path_of(&namespace(pod), name_of(pod));
        loop {
            match self.session.client.get(&path).await {
                Err(failure) if failure.is_not_found() => break,
                Err(failure) => return Err(failure),
                Ok(now) if now["metadata"]["uid"] != pod["metadata"]["uid"] => break,
                Ok(now) => {
                    let skipped = self.args.skip_wait_for_delete_timeout;
                    if is_overdue(&now, skipped, Timestamp::now()) {
                        let name = name_of(pod);
                        output::line(&format!(
                            "pod {name:?} has DeletionTimestamp older than {skipped} seconds, skipping"
                        ));
                        return Ok(());
                    }
                }
            }
            if is_over(end) {
                return bare(self.over());
            }
            tokio::time::sleep(POLL).await;
        }
        output::line(&format!("pod/{} {done}", name_of(pod)));
        Ok(())
    }
}

fn is_over(end: Option<Instant>) -> bool {
    end.is_some_and(|end| Instant::now() >= end)
}

fn bare<T>(text: String) -> Result<T> {
    Err(Failure::Bare(text))
}

/// Pods by what is to be said about them.
#[derive(Default)]
struct Told(BTreeMap<String, Vec<String>>);

impl Told {
    fn add(&mut self, why: String, pod: &Value) {
        self.0.entry(why).or_default().push(format!("{}/{}", namespace(pod), name_of(pod)));
    }

    fn lines(&self) -> Vec<String> {
        self.0.iter().map(|(why, pods)| format!("{why}: {}", pods.join(", "))).collect()
    }
}

/// What is to be done with a pod; `set` is whether its DaemonSet is there, for pods that name one. The last check that it
/// passes says what people should know.
fn verdict(pod: &Value, args: &DrainArgs, set: Option<Result<()>>, now: Timestamp) -> Verdict {
    if is_overdue(pod, args.skip_wait_for_delete_timeout, now) {
        return Verdict::Stays;
    }
    let is_finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    match set.filter(|_| !is_finished) {
        None => {}
        Some(Err(failure)) if failure.is_not_found() && args.force => {}
        Some(Err(failure)) => return Verdict::Refused(failure.to_string()),
        Some(Ok(())) if !args.ignore_daemonsets => {
            return Verdict::Refused("DaemonSet-managed Pods (use --ignore-daemonsets to ignore)".into());
        }
        Some(Ok(())) => return Verdict::StaysWarned("ignoring DaemonSet-managed Pods".into()),
    }
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Verdict::Stays;
    }
    let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    if !is_finished && volumes.any(|volume| !volume["emptyDir"].is_null()) && !args.delete_emptydir_data {
        return Verdict::Refused("Pods with local storage (use --delete-emptydir-data to override)".into());
    }
    if is_finished || controller(pod).is_some() {
        return Verdict::Goes;
    }
    match args.force {
        true => Verdict::GoesWarned("deleting Pods that declare no controller".into()),
        false => Verdict::Refused("cannot delete Pods that declare no controller (use --force to override)".into()),
    }
}

fn controller(pod: &Value) -> Option<&Value> {
    pod["metadata"]["ownerReferences"].as_array()?.iter().find(|owner| owner["controller"] == true)
}

/// The DaemonSet that a pod says it is of.
fn daemon_set(pod: &Value) -> Option<&str> {
    controller(pod).filter(|owner| owner["kind"] == "DaemonSet")?["name"].as_str()
}

/// Whether a pod should have been gone for so many seconds; never for 0.
fn is_overdue(pod: &Value, seconds: i64, now: Timestamp) -> bool {
    let since = pod["metadata"]["deletionTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    seconds > 0 && since.is_some_and(|since| now.as_second() - since.as_second() > seconds)
}

/// Whether an eviction was refused because the pod's namespace is on its way out.
fn is_terminating(failure: &Failure) -> bool {
    let Failure::Refused(status) = failure else { return false };
    let causes = status.details["causes"].as_array();
    status.reason == "Forbidden"
        && causes.is_some_and(|causes| causes.iter().any(|cause| cause["reason"] == "NamespaceTerminating"))
}

fn namespace(pod: &Value) -> String {
    namespace_of(pod).unwrap_or_default().to_string()
}

fn path_of(namespace: &str, pod: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{}", super::client::escape(pod))
}

/// Several failures as Go prints them in one line.
fn aggregate(failure: &Failure) -> String {
    match failure {
        Failure::Several(all) => {
            format!("[{}]", all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        one => one.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failure::Status;

    fn args(flags: &str) -> DrainArgs {
        use clap::{Args, FromArgMatches};
        let command = crate::cli::as_kubectl(DrainArgs::augment_args(clap::Command::new("drain")));
        let matches = command.get_matches_from(std::iter::once("drain").chain(flags.split_whitespace()));
        DrainArgs::from_arg_matches(&matches).unwrap()
    }

    fn pod(owner: &str, more: Value) -> Value {
        let mut pod =
            json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {}, "status": {"phase": "Running"}});
        if !owner.is_empty() {
            pod["metadata"]["ownerReferences"] = json!([{"kind": owner, "name": "o", "controller": true}]);
        }
        for (field, part) in more.as_object().unwrap() {
            for (name, value) in part.as_object().unwrap() {
                pod[field][name] = value.clone();
            }
        }
        pod
    }

    fn check(pod: &Value, flags: &str, set: Option<bool>) -> String {
        let refused = Status {
            reason: "NotFound".into(),
            message: "daemonsets.apps \"o\" not found".into(),
            details: Value::Null,
        };
        let set = set.map(|there| if there { Ok(()) } else { Err(Failure::Refused(Box::new(refused))) });
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        format!("{:?}", verdict(pod, &args(flags), set, now))
    }

    #[test]
    fn who_goes() {
        let local = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let ended = json!({"status": {"phase": "Succeeded"}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
        let none = json!({});
        let alone = "Refused(\"cannot delete Pods that declare no controller (use --force to override)\")";
        let daemon = "Refused(\"DaemonSet-managed Pods (use --ignore-daemonsets to ignore)\")";
        for (owner, more, flags, set, expected) in [
            ("ReplicaSet", &none, "", None, "Goes"),
            ("", &none, "", None, alone),
            ("", &none, "--force", None, "GoesWarned(\"deleting Pods that declare no controller\")"),
            ("", &ended, "", None, "Goes"),
            (
                "ReplicaSet",
                &local,
                "",
                None,
                "Refused(\"Pods with local storage (use --delete-emptydir-data to override)\")",
            ),
            ("ReplicaSet", &local, "--delete-emptydir-data", None, "Goes"),
            ("DaemonSet", &none, "", Some(true), daemon),
            ("DaemonSet", &none, "--force", Some(true), daemon),
            ("DaemonSet", &none, "--ignore-daemonsets", Some(true), "StaysWarned(\"ignoring DaemonSet-managed Pods\")"),
            (
                "DaemonSet",
                &none,
                "--ignore-daemonsets",
                Some(false),
                "Refused(\"daemonsets.apps \\\"o\\\" not found\")",
            ),
            ("DaemonSet", &none, "--force", Some(false), "Goes"),
            ("DaemonSet", &ended, "", Some(true), "Goes"),
            ("", &mirror, "", None, "Stays"),
            ("ReplicaSet", &going, "", None, "Goes"),
            ("ReplicaSet", &going, "--skip-wait-for-delete-timeout=59", None, "Stays"),
            ("ReplicaSet", &going, "--skip-wait-for-delete-timeout=60", None, "Goes"),
        ] {
            assert_eq!(check(&pod(owner, more.clone()), flags, set), expected, "{owner} {more} {flags:?}");
        }
    }
}
