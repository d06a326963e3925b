//! `coracle` beside kubectl: the same words on the same cluster.

use crate::harness::Cluster;

/// What both are asked; ages may differ by a second, so nothing here prints one.
const SAME: [&[&str]; 14] = [
    &["get", "deployments", "hello", "-o", "jsonpath={.spec.replicas} {.metadata.labels}"],
    &["get", "pods", "-l", "app=hello", "-o", "name"],
    &["get", "deployment/hello", "service/hello", "-o", "name"],
    &["get", "svc", "hello", "-o", "json"],
    &["get", "svc", "hello", "-o", "yaml"],
    &["get", "pods", "-l", "app=none"],
    &["get", "pods", "-o", "custom-columns=NAME:.metadata.name,IP:.status.podIP"],
    &["get", "pods", "none"],
    &["get", "nonsense"],
    &[
        "get",
        "deploy",
        "hello",
        "-o",
        "jsonpath={range .spec.template.spec.containers[*]}{.name}={.image}{\"\\n\"}{end}",
    ],
    &["rollout", "status", "deployment/hello"],
    &["rollout", "history", "deployment/hello"],
    &["scale", "deployment/none", "--replicas=1"],
    &["explain", "deployment.spec.strategy"],
];

#[test]
fn coracle_says_what_kubectl_says() {
    let cluster = Cluster::start();
    cluster.coracle(&["apply", "-f", "examples/hello"]);
    cluster.coracle(&["rollout", "status", "deployment/hello", "--timeout=120s"]);
    let mut differ = Vec::new();
    for arguments in SAME {
        let (ours, theirs) = (cluster.coracle_output(arguments), cluster.kubectl_output(arguments));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let of = |output: &std::process::Output| {
            (output.status.code(), text(&output.stdout).trim().to_owned(), text(&output.stderr).trim().to_owned())
        };
        if of(&ours) != of(&theirs) {
            differ.push(format!("{arguments:?}\n--- coracle\n{:?}\n--- kubectl\n{:?}", of(&ours), of(&theirs)));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
}
