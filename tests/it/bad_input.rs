//! Whatever is wrong is refused in Kubernetes' words and harms nothing else.

use crate::harness::Cluster;
use std::fmt::Write;

/// What is sent, and what the refusal must say.
const REFUSED: [(&str, &str, &[&str]); 9] = [
    ("an unknown kind", "apiVersion: v1\nkind: Pud\nmetadata: {name: a}\n", &["no matches for kind \"Pud\""]),
    (
        "an unknown field",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndate: {}\n",
        &["unknown field \"date\""],
    ),
    (
        "a wrong type",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: eighty}]}\n",
        &["BadRequest", "port"],
    ),
    (
        "a bad name",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A_B}\n",
        &["metadata.name: Invalid value: \"A_B\""],
    ),
    (
        "a selector of something else",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {app: a}}\n  \
         template:\n    metadata: {labels: {app: b}}\n    spec: {containers: [{name: c, image: i}]}\n",
        &["spec.template.metadata.labels", "`selector` does not match template `labels`"],
    ),
    (
        "a port twice",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{name: x, port: 80}, {name: x, port: 81}]}\n",
        &["spec.ports[1].name: Duplicate value: \"x\""],
    ),
    (
        "a pod without containers",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n",
        &["spec.containers: Required value"],
    ),
    ("no object at all", "just a word\n", &["error"]),
    ("broken YAML", "apiVersion: v1\nkind: [Pod\n", &["error parsing"]),
];

#[test]
fn bad_manifests_are_refused_in_kubernetes_words() {
    let cluster = Cluster::start();
    for (what, manifest, words) in REFUSED {
        let file = cluster.file("bad.yaml", manifest);
        for output in [cluster.kubectl_output(&["apply", "-f", &file]), cluster.coracle_output(&["apply", "-f", &file])]
        {
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{what}: {said}");
            for word in words {
                assert!(said.contains(word), "{what}: {said}");
            }
        }
    }
    assert_eq!(cluster.kubectl(&["get", "pods,deployments", "-o", "name"]), "");
}

#[test]
fn what_is_immutable_stays() {
    let cluster = Cluster::start();
    cluster.kubectl(&["apply", "-f", "examples/hello"]);
    let patch =
        r#"{"spec":{"selector":{"matchLabels":{"app":"other"}},"template":{"metadata":{"labels":{"app":"other"}}}}}"#;
    let output = cluster.kubectl_output(&["patch", "deployment", "hello", "-p", patch]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("field is immutable"), "{said}");
}

#[test]
fn bombs_and_giants_are_refused_and_the_server_goes_on() {
    let cluster = Cluster::start();
    let mut bomb = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for level in 1..12 {
        let alias = format!("*a{}", level - 1);
        writeln!(bomb, "a{level}: &a{level} [{}]", vec![alias; 9].join(", ")).unwrap();
    }
    let file = cluster.file("bomb.yaml", &bomb);
    assert!(!cluster.coracle_output(&["apply", "-f", &file]).status.success());
    let giant = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: giant}}\ndata: {{word: {}}}\n",
        "x".repeat(10 << 20)
    );
    let file = cluster.file("giant.yaml", &giant);
    let output = cluster.kubectl_output(&["create", "-f", &file]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("too large"), "{said}");
    cluster.kubectl(&["create", "configmap", "small", "--from-literal=a=b"]);
}
