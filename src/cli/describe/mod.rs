//! `describe`: an object told in prose, with what belongs to it and its events.
//!
//! Each kind is a function that writes lines with tabs into a `Page`; the page lines them up at the end, as Go's tabwriter
//! does for kubectl. Kinds without a function of their own are told field by field. Pages need no server: what else they
//! tell about is fetched here first.

mod containers;
mod generic;
mod network;
mod node;
mod page;
mod pod;
mod resources;
mod stored;
mod workloads;

use serde_json::Value;

use super::failure::{Failure, Result, all_of};
use super::files::FileArgs;
use super::output;
use super::session::{Found, Selection, Session, Target, items_of, name_of, namespace_of};
use page::Page;

/// Flags of `describe`.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// TYPE [NAME_PREFIX...] or TYPE/NAME ...
    pub words: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Selector (label query) to filter on
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Display events related to the described object
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    show_events: bool,
    /// Return large lists in chunks; 0 disables it
    #[arg(long, default_value_t = super::session::CHUNK_OBJECTS)]
    chunk_size: u64,
}

/// What a page tells about beside the object itself.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Objects that belong to it: ReplicaSets of a Deployment, pods of a ReplicaSet or Node, EndpointSlices of a Service, a Node's Lease.
    related: Vec<Value>,
}

/// Carries it out.
pub async fn run(session: &Session, args: DescribeArgs) -> Result<()> {
    if args.words.is_empty() && args.files.is_empty() {
        return Err(Failure::Bare(
            "You must specify the type of resource to describe. Use \"coracle api-resources\" for a complete list of supported resources.".into(),
        ));
    }
    let selection =
        Selection { selector: args.selector.clone(), all_namespaces: args.all_namespaces, ..Default::default() };
    let (targets, mut failures) = session.all_targets("describe", &args.words, &args.files, &selection).await?;
    let by_prefix = targets.len() == 1 && targets[0].name.is_some() && args.files.is_empty();
    let lone = by_prefix.then(|| targets[0].clone());
    let mut is_prefix = false;
    let (mut found, more) = session.fetch(targets, &selection).await?;
    match lone {
        Some(target) if found.is_empty() && more.iter().all(Failure::is_not_found) && !more.is_empty() => {
            found = with_prefix(session, &target).await?;
            is_prefix = true;
            if found.is_empty() {
                failures.extend(more);
            }
        }
        _ => failures.extend(more),
    }
    if found.is_empty() && failures.is_empty() {
        match args.all_namespaces {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {} namespace.", session.namespace),
        }
    }
    for (at, found) in found.iter().enumerate() {
        let surroundings = surroundings(session, found).await?;
        let mut page = page_of(&found.target.resource.kind, &found.object, &surroundings);
        if args.show_events && page.wants_events {
            page.events(&events_of(session, &found.object).await?);
        }
        // kubectl parts pages by two empty lines, but ends each with one when a name stood for several.
        if at > 0 && !is_prefix {
            output::out("\n\n");
        }
        output::out(&page.finish());
        if is_prefix {
            output::out("\n");
        }
    }
    all_of(failures)
}

/// kubectl lets a name stand for all names that begin with it.
async fn with_prefix(session: &Session, target: &Target) -> Result<Vec<Found>> {
    let prefix = target.name.clone().unwrap_or_default();
    let collection = Target { name: None, ..target.clone() };
    let (found, _) = session.fetch(vec![collection], &Selection::default()).await?;
    Ok(found.into_iter().filter(|found| name_of(&found.object).starts_with(&prefix)).collect())
}

async fn list(session: &Session, word: &str, namespace: Option<&str>, selection: Selection) -> Vec<Value> {
    let Ok(resource) = session.resource(word).await else { return Vec::new() };
    let target =
        Target { namespace: namespace.map(str::to_string), resource: resource.clone(), name: None, manifest: None };
    match session.list(&target, &selection, super::session::CHUNK_OBJECTS).await {
        Ok(list) => items_of(list, &resource),
        Err(_) => Vec::new(),
    }
}

fn labelled(selector: &str) -> Selection {
    Selection { selector: Some(selector.to_string()), ..Default::default() }
}

fn fielded(selector: &str) -> Selection {
    Selection { field_selector: Some(selector.to_string()), ..Default::default() }
}

/// Fetches what a page of this kind tells about; what cannot be had is left out.
async fn surroundings(session: &Session, found: &Found) -> Result<Surroundings> {
    let object = &found.object;
    let (name, namespace) = (name_of(object), namespace_of(object));
    let uid = &object["metadata"]["uid"];
    let related = match found.target.resource.kind.as_str() {
        "Deployment" => {
            let sets = list(session, "replicasets.apps", namespace, Selection::default()).await;
            let is_owned = |set: &Value| {
                set["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|owner| owner["uid"] == *uid)
            };
            sets.into_iter().filter(is_owned).collect()
        }
        "ReplicaSet" => {
            let selector = super::logs::pod_selector("ReplicaSet", object).unwrap_or_default();
            list(session, "pods", namespace, labelled(&selector)).await
        }
        "Service" => slices(session, namespace, name).await,
        "Ingress" => {
            let mut all = Vec::new();
            for service in network::services_of(object) {
                match session.resource("services").await {
                    Ok(resource) => all.extend(session.client.get(&resource.path(namespace, &service)).await.ok()),
                    Err(_) => break,
                }
                all.extend(slices(session, namespace, &service).await);
            }
            all
        }
        "Node" => {
            let mut all = list(session, "pods", None, fielded(&format!("spec.nodeName={name}"))).await;
            if let Ok(lease) = session.resource("leases.coordination.k8s.io").await {
                all.extend(session.client.get(&lease.path(Some("kube-node-lease"), name)).await.ok());
            }
            all
        }
        _ => Vec::new(),
    };
    Ok(Surroundings { related })
}

async fn slices(session: &Session, namespace: Option<&str>, service: &str) -> Vec<Value> {
    let selector = format!("kubernetes.io/service-name={service}");
    list(session, "endpointslices.discovery.k8s.io", namespace, labelled(&selector)).await
}

async fn events_of(session: &Session, object: &Value) -> Result<Vec<Value>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let mut selector = format!("involvedObject.name={}", name_of(object));
    selector += &format!(",involvedObject.kind={}", text(&object["kind"]));
    if let Some(namespace) = namespace_of(object) {
        selector += &format!(",involvedObject.namespace={namespace}");
    }
    let uid = text(&object["metadata"]["uid"]);
    // A node's events carry its name as uid, as the kubelet writes them.
    if !uid.is_empty() && object["kind"] != "Node" {
        selector += &format!(",involvedObject.uid={uid}");
    }
    let mut events = list(session, "events", namespace_of(object), fielded(&selector)).await;
    events.sort_by_key(|event| super::events::last_seen(event).unwrap_or_default().to_string());
    Ok(events)
}

fn page_of(kind: &str, object: &Value, around: &Surroundings) -> Page {
    let mut page = Page::default();
    match kind {
        "Pod" => pod::describe(&mut page, object),
        "Deployment" => workloads::deployment(&mut page, object, &around.related),
        "ReplicaSet" => workloads::replica_set(&mut page, object, &around.related),
        "Job" => workloads::job(&mut page, object),
        "CronJob" => workloads::cron_job(&mut page, object),
        "Service" => network::service(&mut page, object, &around.related),
        "Ingress" => network::ingress(&mut page, object, &around.related),
        "Endpoints" => network::endpoints(&mut page, object),
        "EndpointSlice" => network::endpoint_slice(&mut page, object),
        "Node" => node::describe(&mut page, object, &around.related),
        "Namespace" => stored::namespace(&mut page, object),
        "ConfigMap" => stored::config_map(&mut page, object),
        "Secret" => stored::secret(&mut page, object),
        "ServiceAccount" => stored::service_account(&mut page, object),
        _ => generic::describe(&mut page, object),
    }
    page
}

/// The pod template of a workload as `rollout history --revision` shows it: kubectl leaves the tabs to the terminal there.
pub fn pod_template_text(template: &Value) -> String {
    let mut page = Page::default();
    workloads::pod_template(&mut page, template);
    page.finish_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn show(kind: &str, object: Value, related: Vec<Value>) -> String {
        let mut page = page_of(kind, &object, &Surroundings { related });
        if page.wants_events {
            page.events(&[]);
        }
        page.finish()
    }

    fn template() -> Value {
        json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "containers": [{
                    "name": "web", "image": "x:1", "args": ["a", "b"], "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}],
                }],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}],
            },
        })
    }

    #[test]
    fn pages() {
        let mut pod = template();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = "web-1".into();
        pod["metadata"]["namespace"] = "default".into();
        pod["spec"]["nodeName"] = "n".into();
        pod["spec"]["tolerations"] =
            json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        pod["status"] = json!({
            "phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.42.0.2", "podIPs": [{"ip": "10.42.0.2"}], "qosClass": "Burstable",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "web", "containerID": "wasm://1", "imageID": "", "ready": true, "restartCount": 1,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"reason": "Error", "exitCode": 1}}}],
        });
        let deployment = json!({
            "metadata": {"name": "web", "namespace": "default", "annotations": {"deployment.kubernetes.io/revision": "2"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template(),
                     "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}},
            "status": {"replicas": 3, "updatedReplicas": 3, "availableReplicas": 2, "unavailableReplicas": 1,
                       "conditions": [{"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}]},
        });
        let set = |revision: &str, replicas: i64| {
            json!({
                "metadata": {"name": format!("web-{revision}"), "annotations": {"deployment.kubernetes.io/revision": revision}},
                "spec": {"replicas": replicas}, "status": {"replicas": replicas},
            })
        };
        let service = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
                     "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}],
                     "sessionAffinity": "None", "externalTrafficPolicy": "Cluster"},
        });
        let slice = json!({
            "kind": "EndpointSlice", "metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.42.0.2"], "conditions": {"ready": true}}, {"addresses": ["10.42.0.3"], "conditions": {"ready": false}}],
        });
        let ingress = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"ingressClassName": "coracle", "tls": [{"secretName": "s", "hosts": ["a.b"]}],
                     "rules": [{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]},
        });
        let config =
            json!({"metadata": {"name": "c", "namespace": "default", "labels": {"a": "b"}}, "data": {"k": "v\nw"}});
        let custom = json!({"apiVersion": "x.y/v1", "kind": "Boat", "metadata": {"name": "b", "uid": "1"}, "spec": {"sailColor": "red", "crew": ["ann", {"role": "cook"}]}});
        let text = [
            show("Pod", pod, vec![]),
            show("Deployment", deployment, vec![set("1", 0), set("2", 3)]),
            show("Service", service, vec![slice]),
            show("Ingress", ingress, vec![]),
            show("ConfigMap", config, vec![]),
            show("Boat", custom, vec![]),
        ]
        .join("=====\n");
        expect_test::expect_file!["pages.txt"].assert_eq(&text);
    }
}
