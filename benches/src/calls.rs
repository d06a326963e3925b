//! What a call from one Wasm pod to another saves by being a function call: the guestbook's frontend asks its store by
//! the store's Service, once directly and once through a Service whose endpoint is that Service's own address, which
//! takes the way through a socket.

use crate::cluster::{Cluster, root};
use crate::http::{ROUNDS, Target, answered, report};
use crate::workload::{DEPLOYMENTS, SERVICE_PORT, SERVICES, create, service};
use anyhow::{Context, Result};
use serde_json::{Value, json};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const STORE: &str = "store";
/// A Service without pods: its only endpoint is the store's Service.
const DETOUR: &str = "store-by-socket";

/// Rates and processor time of both ways.
pub async fn measure() -> Result<()> {
    let (cluster, mut client) = Cluster::start().await?;
    let pid = cluster.pid()?;
    client.create(DEPLOYMENTS, &deployment(STORE, "store.wasm", STORE)?).await?;
    let store = client.create(SERVICES, &service(STORE)).await?;
    let address = store["spec"]["clusterIP"].as_str().context("no clusterIP")?;
    client
        .create(
            SERVICES,
            &json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": DETOUR}, "spec": {"ports": [{"port": SERVICE_PORT}]},
            }),
        )
        .await?;
    client
        .create(
            SLICES,
            &json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": DETOUR, "labels": {"kubernetes.io/service-name": DETOUR}},
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
                "ports": [{"port": SERVICE_PORT, "protocol": "TCP"}],
            }),
        )
        .await?;
    cluster.available(&mut client, STORE).await?;
    let mut targets = Vec::new();
    for (name, what, store) in
        [("by-call", "frontend asks by function call", STORE), ("by-socket", "frontend asks by socket", DETOUR)]
    {
        let address = create(&mut client, &deployment(name, "frontend.wasm", store)?, name).await?;
        cluster.available(&mut client, name).await?;
        targets.push(Target::new(what, address, name, pid));
    }
    for target in &targets {
        answered(target).await?;
    }
    for _ in 0..ROUNDS {
        for target in &mut targets {
            target.round().await?;
        }
    }
    report(&mut targets, "a call");
    Ok(())
}

/// One replica of a program of the guestbook that finds its store at `store`.
fn deployment(name: &str, program: &str, store: &str) -> Result<Value> {
    let image = root().join("examples/guestbook").join(program).canonicalize()?;
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "containers": [{
                        "name": "main",
                        "image": format!("file://{}", image.display()),
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "env": [{"name": "STORE", "value": format!("{store}:{SERVICE_PORT}")}],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                },
            },
        },
    }))
}
