//! What a pod stands on: its address and, where Docker has containers of it, its sandbox.
//!
//! A pod of Wasm containers alone has an address of user space and nothing else. As soon as one container may be Docker's, the
//! pod gets a sandbox: a container that only holds the network namespace which all the others join. Deliberately absent:
//! volumes, which come after.

use crate::addresses::Side;
use crate::body::Body;
use crate::container::files;
use crate::container::image::{self, Kind};
use crate::pod::blueprint::Blueprint;
use crate::policy;
use runtime::NetworkNamespace;
use runtime::docker::{Docker, DockerContainer, PodId, SandboxSpec};
use state::Object;
use std::net::IpAddr;
use std::sync::Arc;

/// A pod's address and sandbox.
#[derive(Clone)]
pub struct Footing {
    /// The pod's address.
    pub address: IpAddr,
    /// The address is the pod's own and is to be given back.
    pub owned: bool,
    /// There if Docker may have containers of the pod.
    pub sandbox: Option<Sandbox>,
}

/// A sandbox that runs.
#[derive(Clone)]
pub struct Sandbox {
    /// Docker's id of the container that holds it.
    pub id: String,
    /// That container.
    pub guard: DockerContainer,
    /// The pod's network namespace; `None` with the node's own network.
    pub namespace: Option<NetworkNamespace>,
}

/// Gives a pod its address and, if it needs one, its sandbox. `address` is the one it has already, `uses_docker` says that Docker
/// had containers of it before.
///
/// # Errors
/// For the event: no address is left, or what Docker says.
pub async fn lay(
    body: &Body,
    object: &Arc<Object>,
    spec: &Blueprint,
    address: Option<IpAddr>,
    uses_docker: bool,
) -> Result<Footing, String> {
    let is_host = spec.host_network == Some(true);
    let docker = match &body.docker {
        Some(docker) if uses_docker || may_use_docker(body, object, spec).await => docker,
        _ if is_host => return Ok(Footing { address: body.config.node_ip, owned: false, sandbox: None }),
        _ => {
            let address = own_address(body, address, Side::UserSpace)?;
            policy::admit(body, object, address, None).await?;
            return Ok(Footing { address, owned: true, sandbox: None });
        }
    };
    let own = if is_host { None } else { Some(own_address(body, address, Side::Bridge)?) };
    let made = make(body, docker, object, spec, own).await;
    match made {
        Ok(sandbox) => {
            let address = own.unwrap_or(body.config.node_ip);
            Ok(Footing { address, owned: own.is_some(), sandbox: Some(sandbox) })
        }
        Err(message) => {
            if let Some(own) = own
                && address != Some(own)
            {
                body.pools.lock().release(own);
            }
            Err(message)
        }
    }
}

/// The pod's address if it is of that side, else a new one.
fn own_address(body: &Body, address: Option<IpAddr>, side: Side) -> Result<IpAddr, String> {
    let mut pools = body.pools.lock();
    match address {
        Some(address) if pools.side(address) == Some(side) => Ok(address),
        _ => pools.take(side).ok_or_else(|| "no address left in the node's pod network".to_owned()),
    }
}

async fn make(
    body: &Body,
    docker: &Docker,
    object: &Arc<Object>,
    spec: &Blueprint,
    address: Option<IpAddr>,
) -> Result<Sandbox, String> {
    let meta = object.meta();
    let namespace = meta.namespace.clone().unwrap_or_default();
    let security = spec.security_context.as_ref();
    let sysctls = security.iter().flat_map(|security| security.sysctls.iter().flatten());
    let wanted = SandboxSpec {
        pod: PodId { namespace, name: meta.name.clone(), uid: meta.uid.clone() },
        address,
        hostname: files::hostname_of(body, object, spec, address)?,
        share_processes: spec.share_process_namespace == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        host_pid: spec.host_pid == Some(true),
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
    };
    let made = docker.sandbox(wanted).await.map_err(|error| super::chain(&error))?;
    let guard = docker.adopt(&made.id).await.map_err(|error| super::chain(&error))?;
    files::write(body, object, spec, address).await.map_err(|error| format!("write the pod's hosts file: {error}"))?;
    if let (Some(address), Some(namespace)) = (address, &made.namespace) {
        policy::admit(body, object, address, Some(namespace)).await?;
    }
    Ok(Sandbox { id: made.id, guard, namespace: made.namespace })
}

/// Whether Docker may have to run one of the pod's containers. What cannot be told yet (a registry that does not answer) may.
async fn may_use_docker(body: &Body, object: &Arc<Object>, spec: &Blueprint) -> bool {
    for (_, container) in spec.slots() {
        if image::kind(body, object, spec, container).await != Kind::Wasm {
            return true;
        }
    }
    false
}
