//! From words to a pod and one of its containers: `web-1`, `pod/web-1`, `deploy/web`, `svc/web`.

use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;

use super::super::client::{escape, with_query};
use super::super::failure::{Result, fail, usage};
use super::super::files::FileArgs;
use super::super::logs::{pod_selector, rank};
use super::super::session::{Selection, Session, Target, items_of, name_of, namespace_of};

/// Reads `--pod-running-timeout`, which must be a time at all.
pub fn running_timeout(verb: &str, timeout: Duration) -> Result<Duration> {
    if timeout.is_zero() {
        return usage(verb, "--pod-running-timeout must be higher than zero");
    }
    Ok(timeout)
}

/// What was named, and the pod it leads to.
pub struct Chosen {
    /// The kind that was named: `Pod`, `Deployment`, `Service`, ...
    pub kind: String,
    /// The object that was named.
    pub object: Value,
    /// The pod.
    pub pod: Value,
}

/// The pod that words or files name. Of a workload's pods the one that is most likely to answer is taken; while it has none,
/// one is waited for.
pub async fn choose(session: &Session, words: &[String], files: &FileArgs, timeout: Duration) -> Result<Chosen> {
    let target = match words {
        [] => {
            let (targets, failures) = session.file_targets(files).await?;
            super::super::failure::all_of(failures)?;
            targets.into_iter().next()
        }
        [word] if !word.contains('/') => Some(Target {
            resource: session.resource("pods").await?,
            namespace: Some(session.namespace.clone()),
            name: Some(word.clone()),
            manifest: None,
        }),
        words => session.targets(words, &Selection::default()).await?.into_iter().next(),
    };
    let Some(target) = target.filter(|target| target.name.is_some()) else {
        return fail("you must specify a resource by name");
    };
    let object = session.client.get(&target.path()).await?;
    let kind = target.resource.kind.clone();
    let pod = match kind.as_str() {
        "Pod" => object.clone(),
        kind => match pod_selector(kind, &object) {
            Some(selector) => of_selector(session, target.namespace.as_deref(), selector, timeout).await?,
            None => {
                let named = format!("*{}.{kind}", target.resource.version);
                return fail(format!("cannot attach to {named}: selector for {named} not implemented"));
            }
        },
    };
    Ok(Chosen { kind, object, pod })
}

async fn of_selector(session: &Session, namespace: Option<&str>, selector: String, limit: Duration) -> Result<Value> {
    let resource = session.resource("pods").await?;
    let namespace = namespace.unwrap_or(&session.namespace).to_string();
    let collection = Target { resource: resource.clone(), namespace: Some(namespace), name: None, manifest: None };
    let selection = Selection { selector: Some(selector.clone()), ..Default::default() };
    let list = session.list(&collection, &selection, super::super::session::CHUNK_OBJECTS).await?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string();
    let mut pods = items_of(list, &resource);
    pods.sort_by_key(rank);
    if let Some(pod) = pods.into_iter().next() {
        return Ok(pod);
    }
    let query = [("watch", "true".into()), ("resourceVersion", version), ("labelSelector", selector)];
    let path = with_query(&collection.path(), &query);
    let first = async {
        let mut events = session.client.watch(&path, "application/json").await?;
        while let Some(event) = events.next().await {
            let mut event = event?;
            if event["type"] == "ADDED" || event["type"] == "MODIFIED" {
                return Ok(event["object"].take());
            }
        }
        fail("the server ended the watch before there was a pod")
    };
    match tokio::time::timeout(limit, first).await {
        Ok(pod) => pod,
        Err(_) => fail("timed out waiting for the condition"),
    }
}

/// The path of a pod, or of one of its subresources.
pub fn path(session: &Session, pod: &Value, subresource: &str) -> String {
    let namespace = namespace_of(pod).unwrap_or(&session.namespace);
    let base = format!("/api/v1/namespaces/{}/pods/{}", escape(namespace), escape(name_of(pod)));
    if subresource.is_empty() { base } else { format!("{base}/{subresource}") }
}

/// Whether the pod will never run anything again.
pub fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The containers of one of a pod's lists.
pub fn containers<'a>(pod: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    pod["spec"][field].as_array().into_iter().flatten()
}

/// A container of any kind, by its name.
pub fn container_of<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let fields = ["containers", "initContainers", "ephemeralContainers"];
    fields.into_iter().flat_map(|field| containers(pod, field)).find(|container| container["name"] == name)
}

/// The names of all containers, as kubectl lists them: `a, b, c (ephem), d (init)`.
pub fn all_names(pod: &Value) -> String {
    let names = |field: &str, suffix: &'static str| {
        containers(pod, field)
            .map(move |container| format!("{}{suffix}", name_of_container(container)))
            .collect::<Vec<_>>()
    };
    let mut shown = names("containers", "");
    shown.extend(names("ephemeralContainers", " (ephem)"));
    shown.extend(names("initContainers", " (init)"));
    shown.join(", ")
}

fn name_of_container(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

/// The container that is meant: the one named, the one the pod's annotation names, or the first; and what is to be said about
/// the choice on stderr.
pub fn default_container(pod: &Value, wanted: Option<&str>) -> Result<(String, Option<String>)> {
    if let Some(wanted) = wanted.filter(|name| !name.is_empty()) {
        return match container_of(pod, wanted) {
            Some(_) => Ok((wanted.to_string(), None)),
            None => fail(format!("container {wanted} not found in pod {}", name_of(pod))),
        };
    }
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let mut said = Vec::new();
    if let Some(name) = annotated.filter(|name| !name.is_empty()) {
        if container_of(pod, name).is_some() {
            return Ok((name.to_string(), None));
        }
        said.push(format!("Default container name {name:?} not found in pod {}", name_of(pod)));
    }
    let Some(first) = containers(pod, "containers").next().map(name_of_container) else {
        return fail(format!("no containers in pod {}", name_of(pod)));
    };
    let names = all_names(pod);
    if names.contains(',') {
        said.push(format!("Defaulted container {first:?} out of: {names}"));
    }
    Ok((first.to_string(), (!said.is_empty()).then(|| said.join("\n"))))
}

/// As `default_container`, and says it.
pub fn container(pod: &Value, wanted: Option<&str>, quiet: bool) -> Result<String> {
    let (name, said) = default_container(pod, wanted)?;
    if let Some(said) = said.filter(|_| !quiet) {
        eprintln!("{said}");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_container() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}],
            "ephemeralContainers": [{"name": "e"}],
        }});
        let show = |pod: &Value, wanted| match default_container(pod, wanted) {
            Ok((name, said)) => format!("{name}|{}", said.unwrap_or_default()),
            Err(failure) => failure.message(),
        };
        assert_eq!(show(&pod, None), "a|Defaulted container \"a\" out of: a, b, e (ephem), i (init)");
        assert_eq!(show(&pod, Some("i")), "i|");
        assert_eq!(show(&pod, Some("e")), "e|");
        assert_eq!(show(&pod, Some("x")), "error: container x not found in pod p");
        let mut annotated = pod.clone();
        annotated["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(show(&annotated, None), "b|");
        annotated["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "z"});
        assert!(show(&annotated, None).starts_with("a|Default container name \"z\" not found in pod p\nDefaulted"));
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(show(&one, None), "a|");
        assert_eq!(show(&json!({"metadata": {"name": "p"}}), None), "error: no containers in pod p");
    }
}
