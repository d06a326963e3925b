//! Whatever was acknowledged is there after SIGKILL, and so are the pods.

use crate::harness::{Cluster, until};
use serde_json::Value;

#[test]
fn objects_and_pods_survive_a_kill() {
    let mut cluster = Cluster::start();
    cluster.kubectl(&["apply", "-f", "examples/hello"]);
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"]);
    cluster.kubectl(&["create", "configmap", "last", "--from-literal=word=acknowledged"]);
    let before = identities(&cluster);
    cluster.kill();
    cluster.run();
    assert_eq!(cluster.get("configmap/last")["data"]["word"], "acknowledged");
    assert_eq!(identities(&cluster), before);
    until("the pods answer again", || cluster.ingress("hello.localhost", "/").ok().filter(|reply| reply.status == 200));
    cluster.wait("deployment/hello", "jsonpath={.status.readyReplicas}=3");
    assert_eq!(identities(&cluster), before);
}

/// Name, uid and address of every pod.
fn identities(cluster: &Cluster) -> Vec<Vec<Value>> {
    let pods = cluster.get("pods");
    let of = |pod: &Value| {
        vec![pod["metadata"]["name"].clone(), pod["metadata"]["uid"].clone(), pod["status"]["podIP"].clone()]
    };
    pods["items"].as_array().unwrap().iter().map(of).collect()
}
