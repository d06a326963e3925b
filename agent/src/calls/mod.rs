//! What the master asks of the node: logs, exec, attach, forwarded ports, figures of use. One file each.
//!
//! Both kinds of container answer the same way. Errors are in the kubelet's words, because people search for them. Deliberately
//! absent: HTTP, upgrades and users, which are the master's.

mod attach;
mod exec;
mod logs;
mod port_forward;
mod session;
mod usage;

pub use usage::Samples;

use crate::body::{Body, LiveGuest};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use state::{Key, Object};
use std::sync::Arc;
use sync::{Call, CallError, IncomingCall};

/// Answers one call. The answer's stream goes on by itself.
pub async fn answer(body: Arc<Body>, incoming: IncomingCall) {
    let (call, input, mut reply) = incoming.split();
    let answering = async {
        match call {
            Call::Logs(wanted) => logs::open(&body, wanted).await,
            Call::Exec(wanted) => exec::open(&body, wanted, input).await,
            Call::Attach(wanted) => attach::open(&body, wanted, input).await,
            Call::PortForward(wanted) => port_forward::open(&body, wanted, input).await,
            Call::Usage => usage::open(&body).await,
        }
    };
    let answer = tokio::select! {
        answer = answering => answer,
        // nobody waits any more
        () = reply.closed() => return,
    };
    reply.answer(answer);
}

/// The pod that is meant; an empty `uid` takes any of that name.
fn find_pod(body: &Body, namespace: &str, name: &str, uid: &str) -> Result<Arc<Object>, CallError> {
    let world = body.world();
    let found = world.get(&Key::of::<Pod>(namespace, name)).filter(|o| uid.is_empty() || o.meta().uid == uid);
    found.cloned().ok_or_else(|| CallError::NotFound(format!("pods {name:?} not found")))
}

/// A running container of a pod; without a name the only main one.
fn live(body: &Body, pod: &Object, container: &str) -> Option<LiveGuest> {
    let key = |name: &str| (pod.meta().uid.clone(), name.to_owned());
    let guests = body.guests.lock();
    if !container.is_empty() {
        return guests.get(&key(container)).cloned();
    }
    match pod.view::<Pod>()?.spec.as_ref()?.containers.as_slice() {
        [only] => guests.get(&key(&only.name)).cloned(),
        _ => None,
    }
}

/// `pod_namespace`, as the kubelet names pods.
fn full_name(pod: &Object) -> String {
    format!("{}_{}", pod.meta().name, pod.meta().namespace.as_deref().unwrap_or_default())
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten().find(|status| status.name == container)
}
