//! The objects that are measured: the HTTP component of `examples/hello`, as Deployment, Service and Ingress.

use crate::client::Client;
use crate::cluster::root;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The Deployments of a namespace that all measurements use.
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
/// Its Services.
pub const SERVICES: &str = "/api/v1/namespaces/default/services";
/// Its Ingresses.
pub const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";

/// Not 80, which a server without privileges may not open.
pub const SERVICE_PORT: u16 = 8080;

/// The component.
pub fn image() -> Result<PathBuf> {
    Ok(root().join("examples/hello/hello.wasm").canonicalize()?)
}

/// A Deployment without requests, limits and probes, so that only pods are counted. `reuse` lets one instance serve
/// that many requests.
pub fn deployment(name: &str, replicas: u32, reuse: Option<u32>) -> Result<Value> {
    let mut annotations = json!({});
    if let Some(requests) = reuse {
        annotations["coracle.dev/instance-reuse"] = requests.to_string().into();
    }
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": [{
                    "name": "hello",
                    "image": format!("file://{}", image()?.display()),
                    "ports": [{"name": "http", "containerPort": 8080}],
                }]},
            },
        },
    }))
}

/// The Service before a Deployment of the same name.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": SERVICE_PORT, "targetPort": "http"}]},
    })
}

/// The Ingress before a Service of the same name, for [`host`].
pub fn ingress(name: &str) -> Value {
    let backend = json!({"service": {"name": name, "port": {"number": SERVICE_PORT}}});
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name},
        "spec": {"rules": [{
            "host": host(name),
            "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
        }]},
    })
}

/// The host name under which the Ingress answers.
pub fn host(name: &str) -> String {
    format!("{name}.localhost")
}

/// Creates Deployment and Service; where the Service listens.
pub async fn create(client: &mut Client, deployment: &Value, name: &str) -> Result<SocketAddr> {
    client.create(DEPLOYMENTS, deployment).await?;
    let service = client.create(SERVICES, &service(name)).await?;
    let ip: Ipv4Addr = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.parse()?;
    Ok((ip, SERVICE_PORT).into())
}
