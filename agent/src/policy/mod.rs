//! NetworkPolicies on this node: [`compile`] makes a table of the world, netproxy and the sockets of Wasm pods ask it, and pods
//! with a network namespace get it as rules of the kernel.
//!
//! A pod is entered before its first container starts ([`admit`]); one whose rules cannot be set does not start. For pods that run
//! already it is told and tried again. Deliberately absent: judging (netproxy's).

mod compile;

use crate::body::{Body, Shared};
use crate::container::chain;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netproxy::network::{Cidr, Fence};
use netproxy::policy::Table;
use runtime::NetworkNamespace;
use state::{Key, Object, World};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sync::peers::PodPeer;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

/// Pods whose rules are set at once.
const FENCES_AT_ONCE: usize = 4;
/// Between two tables, so that a burst of changes makes few.
const GATHER: Duration = Duration::from_millis(20);
/// Until rules that were not set are tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What the room keeps.
#[derive(Default)]
pub struct Policies {
    /// Something that the table is made of has changed.
    pub stale: Notify,
    /// This node's pods that have an address of their own, by uid.
    pods: Shared<HashMap<String, Entry>>,
}

/// A pod of this node.
#[derive(Clone)]
struct Entry {
    address: IpAddr,
    fenced: Option<Fenced>,
}

/// A pod with a network namespace of its own.
#[derive(Clone)]
struct Fenced {
    namespace: NetworkNamespace,
    /// The rules that stand there, if that is known. Whoever changes them holds the lock.
    stands: Arc<Mutex<Option<Fence>>>,
}

/// Whether a change of this object may change who may talk to whom.
pub fn concerns(key: &Key) -> bool {
    key.is::<NetworkPolicy>() || key.is::<PodPeer>() || key.is::<Pod>() || key.is::<Namespace>() || key.is::<Node>()
}

/// A pod has an address, and perhaps a network namespace, and no container yet: from now on policies hold for it.
///
/// # Errors
/// For the event, when the rules of its policies cannot be set.
pub async fn admit(
    body: &Body,
    object: &Arc<Object>,
    address: IpAddr,
    namespace: Option<&NetworkNamespace>,
) -> Result<(), String> {
    let fenced = namespace.map(|namespace| {
        let stands = (!mark(body, &object.meta().uid).exists()).then(Fence::default);
        Fenced { namespace: namespace.clone(), stands: Arc::new(Mutex::new(stands)) }
    });
    let entry = Entry { address, fenced };
    body.policies.pods.lock().insert(object.meta().uid.clone(), entry.clone());
    compile_now(body);
    let Some(fenced) = &entry.fenced else { return Ok(()) };
    std::fs::create_dir_all(body.pod_dir(&object.meta().uid)).map_err(|error| error.to_string())?;
    set(body, &object.meta().uid, entry.address, fenced).await.map_err(|message| {
        tell(body, object, &message);
        format!("network policy: {message}")
    })
}

/// Keeps the table and the rules as the world wants them, until shutdown.
pub async fn keep(body: Arc<Body>, shutdown: CancellationToken) {
    let work = async {
        let mut is_behind = false;
        loop {
            let told = body.policies.stale.notified();
            match is_behind {
                true => drop(tokio::time::timeout(RETRY, told).await),
                false => told.await,
            }
            forget_gone(&body);
            compile_now(&body);
            is_behind = !set_all(&body).await;
            tokio::time::sleep(GATHER).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

/// Makes the table that of the world as it is. The lock is held throughout, so that no table is followed by an older one.
pub fn compile_now(body: &Body) {
    let pods = body.policies.pods.lock();
    let given = pods.iter().map(|(uid, entry)| (uid.clone(), entry.address)).collect();
    body.proxy.set_policies(compile::table(&body.world(), &body.config.node_name, &given));
}

/// A pod has ended: no container of it will run again.
pub fn forget(body: &Body, uid: &str) {
    body.policies.pods.lock().remove(uid);
}

fn forget_gone(body: &Body) {
    let world = body.world();
    body.policies.pods.lock().retain(|uid, _| world.by_uid(uid).is_some());
}

/// Sets the rules of all pods; says whether all stand.
async fn set_all(body: &Arc<Body>) -> bool {
    let pods: Vec<(String, Entry)> =
        body.policies.pods.lock().iter().map(|(uid, entry)| (uid.clone(), entry.clone())).collect();
    let all: Vec<_> = pods.into_iter().map(|(uid, entry)| set_one(body.clone(), uid, entry)).collect();
    let outcomes: Vec<bool> = futures::stream::iter(all).buffer_unordered(FENCES_AT_ONCE).collect().await;
    outcomes.into_iter().all(|is_set| is_set)
}

async fn set_one(body: Arc<Body>, uid: String, entry: Entry) -> bool {
    let Some(fenced) = &entry.fenced else { return true };
    let Err(message) = set(&body, &uid, entry.address, fenced).await else { return true };
    // a pod that is just going has no network left
    let still = body.world().by_uid(&uid).cloned();
    if let Some(object) = still.filter(|object| object.meta().deletion_timestamp.is_none()) {
        tell(&body, &object, &message);
    }
    false
}

/// A file that says that rules were set in a pod's network: a later agent cannot know which.
fn mark(body: &Body, uid: &str) -> PathBuf {
    body.pod_dir(uid).join("network-policy")
}

/// Makes the rules in a pod's network those of the table as it is now.
async fn set(body: &Body, uid: &str, address: IpAddr, fenced: &Fenced) -> Result<(), String> {
    let services = body.cluster.service_cidr.parse::<Cidr>();
    let services = services.map_err(|error| format!("the service network: {error}"))?;
    let mut stands = fenced.stands.lock().await;
    let wanted = body.proxy.with_policies(|table: &Table| Fence::of(table, address, services));
    if stands.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let (namespace, fence, mark) = (fenced.namespace.clone(), wanted.clone(), mark(body, uid));
    let work = move || {
        // fails where the pod's directory is gone, with the pod
        std::fs::write(&mark, "")?;
        namespace.run(|| fence.apply())
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    let done = done.map_err(|error| format!("enter the pod's network: {error}"))?;
    done.map_err(|error| chain(&error))?;
    *stands = Some(wanted);
    Ok(())
}

/// Tells the policies of a pod that they are not enforced.
fn tell(body: &Body, pod: &Arc<Object>, message: &str) {
    let world: Arc<World> = body.world();
    let meta = pod.meta();
    let (node, namespace) = (&body.config.node_name, meta.namespace.as_deref().unwrap_or_default());
    let text = format!("node {node} cannot enforce this policy for pod {namespace}/{}: {message}", meta.name);
    tracing::warn!("{text}");
    for policy in compile::policies_of(&world, pod) {
        body.recorder.warning(&policy, "NotEnforced", &text);
    }
}
