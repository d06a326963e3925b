//! Evictions and the budgets that refuse them, over HTTP and by the kubectl of this machine.
#![allow(clippy::unwrap_used)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{Answer, Client, Server, TOKEN, Who};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

/// Makes a pod that runs on node `n`.
async fn pod(client: &mut Client, name: &str, ready: bool) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"name": "a", "image": "x"}]},
    });
    assert_eq!(client.send("POST", PODS, &pod).await.code, 201);
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
    assert_eq!(client.patch(&format!("{PODS}/{name}/status"), "merge-patch", &status).await.code, 200);
}

async fn budget(client: &mut Client, name: &str, spec: Value) {
    let mut budget =
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": spec});
    budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
    let made = client.send("POST", BUDGETS, &budget).await;
    assert_eq!(made.code, 201, "{made:?}");
}

/// What the disruption controller would say.
async fn count(client: &mut Client, name: &str, allowed: i32, healthy: i32, desired: i32) {
    let condition = json!({
        "type": "DisruptionAllowed", "status": if allowed > 0 { "True" } else { "False" }, "reason": "x", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = json!({"status": {
        "disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": 3,
        "observedGeneration": 1, "conditions": [condition],
    }});
    let told = client.patch(&format!("{BUDGETS}/{name}/status"), "merge-patch", &status).await;
    assert_eq!(told.code, 200, "{told:?}");
}

async fn evict(client: &mut Client, name: &str, options: Value) -> Answer {
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options});
    client.send("POST", &format!("{PODS}/{name}/eviction"), &eviction).await
}

fn cause(answer: &Answer) -> String {
    assert_eq!(answer.message(), "Cannot evict pod as it would violate the pod's disruption budget.", "{answer:?}");
    let cause = &answer.json()["details"]["causes"][0];
    assert_eq!((answer.code, &cause["reason"]), (429, &json!("DisruptionBudget")));
    cause["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_budget_is_asked_and_charged() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    for (name, ready) in [("a", true), ("b", true), ("sick", false), ("free", true)] {
        pod(&mut client, name, ready).await;
    }
    assert_eq!(evict(&mut client, "free", json!({"gracePeriodSeconds": 0})).await.code, 201);
    assert_eq!(client.get(&format!("{PODS}/free")).await.code, 404);
    assert_eq!(evict(&mut client, "none", json!({})).await.code, 404);

    budget(&mut client, "web", json!({"minAvailable": 1})).await;
    let uncounted = evict(&mut client, "a", json!({})).await;
    assert_eq!(cause(&uncounted), "The disruption budget web is still being processed by the server.");
    assert_eq!(uncounted.json()["details"]["retryAfterSeconds"], 10);
    count(&mut client, "web", 1, 2, 1).await;
    let path = format!("{PODS}/a");
    assert_eq!(evict(&mut client, "a", json!({"dryRun": ["All"]})).await.code, 201);
    let status = client.get(&format!("{BUDGETS}/web")).await.json()["status"].clone();
    assert_eq!((&status["disruptionsAllowed"], &status["disruptedPods"]), (&json!(1), &Value::Null));
    let wrong = evict(&mut client, "a", json!({"preconditions": {"uid": "x"}})).await;
    assert_eq!(wrong.code, 409);
    let done = evict(&mut client, "a", json!({})).await;
    assert_eq!((done.code, &done.json()["status"]), (201, &json!("Success")));
    let going = client.get(&path).await.json();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(going["status"]["conditions"][1]["reason"], "EvictionByEvictionAPI");
    let status = client.get(&format!("{BUDGETS}/web")).await.json()["status"].clone();
    assert_eq!((&status["disruptionsAllowed"], status["disruptedPods"]["a"].is_string()), (&json!(0), true));
    assert_eq!(status["conditions"][0]["reason"], "InsufficientPods");
    // one that is on its way needs no allowance
    assert_eq!(evict(&mut client, "a", json!({})).await.code, 201);
    count(&mut client, "web", 0, 1, 1).await;
    let refused = evict(&mut client, "b", json!({})).await;
    assert_eq!(cause(&refused), "The disruption budget web needs 1 healthy pods and has 1 currently");
    // one that is not healthy costs nothing while the others are
    assert_eq!(evict(&mut client, "sick", json!({})).await.code, 201);

    let other = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "other"}});
    let other = client.send("POST", &format!("{PODS}/b/eviction"), &other).await;
    assert_eq!(other.message(), "name in URL does not match name in Eviction object");
    budget(&mut client, "second", json!({"maxUnavailable": "50%"})).await;
    let two = evict(&mut client, "b", json!({})).await;
    assert_eq!(two.code, 500);
    assert!(two.message().starts_with("This pod has more than one PodDisruptionBudget"));
    server.stop().await;
}

#[tokio::test]
async fn a_budget_makes_sense() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    for (spec, fault) in [
        (json!({"minAvailable": 1, "maxUnavailable": 1}), "minAvailable and maxUnavailable cannot be both set"),
        (json!({"minAvailable": -1}), "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0"),
        (
            json!({"maxUnavailable": "101%"}),
            "spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
        ),
        (json!({"maxUnavailable": "many"}), "a valid percent string must be a numeric string"),
        (json!({"unhealthyPodEvictionPolicy": "x"}), "supported values: \"AlwaysAllow\", \"IfHealthyBudget\""),
    ] {
        let budget =
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": spec});
        let made = client.send("POST", BUDGETS, &budget).await;
        assert_eq!(made.code, 422);
        assert!(made.message().contains(fault), "{}", made.message());
    }
    budget(&mut client, "b", json!({"maxUnavailable": "25%"})).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = client.raw("GET", BUDGETS, &[("accept", table)], Default::default()).await.json();
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[..4], [json!("b"), json!("N/A"), json!("25%"), json!(0)]);
    server.stop().await;
}

/// Runs the machine's kubectl: exit code, what it says, what it complains of. `None` where there is no kubectl.
async fn kubectl(server: &Server, dir: &std::path::Path, args: &[&str]) -> Option<(i32, String, String)> {
    let config = dir.join("config");
    let authority =
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(server.authority()));
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://127.0.0.1:{}", server.address().port()), "tls-server-name": "localhost",
            "certificate-authority-data": STANDARD.encode(authority),
        }}],
    });
    std::fs::write(&config, kubeconfig.to_string()).unwrap();
    let mut command = std::process::Command::new("kubectl");
    command.arg("--kubeconfig").arg(config).args(args).env_remove("KUBECONFIG").env("HOME", dir);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().ok()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_drains_a_node() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut client = server.client(Who::Certificate).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    assert_eq!(client.send("POST", "/api/v1/nodes", &node).await.code, 201);
    pod(&mut client, "p", true).await;
    pod(&mut client, "q", true).await;
    let Some((code, said, complained)) = kubectl(&server, dir.path(), &["drain", "n"]).await else {
        println!("not run: no kubectl on the PATH");
        return;
    };
    assert_eq!((code, said.as_str()), (1, "node/n cordoned\n"), "{complained}");
    let alone = "cannot delete Pods that declare no controller (use --force to override): default/p, default/q";
    assert!(complained.contains(alone), "{complained}");
    budget(&mut client, "web", json!({"minAvailable": 2})).await;
    count(&mut client, "web", 0, 2, 2).await;
    let args = ["drain", "n", "--force", "--grace-period=0", "--timeout=1s", "--pod-selector=app=web"];
    let (code, said, complained) = kubectl(&server, dir.path(), &args).await.unwrap();
    assert_eq!(code, 1, "{said}{complained}");
    assert!(complained.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{complained}");
    count(&mut client, "web", 2, 2, 0).await;
    let (code, said, complained) = kubectl(&server, dir.path(), &args[..4]).await.unwrap();
    assert_eq!(code, 0, "{said}{complained}");
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    let expected = [
        "evicting pod default/p",
        "evicting pod default/q",
        "node/n already cordoned",
        "node/n drained",
        "pod/p evicted",
        "pod/q evicted",
    ];
    assert_eq!(lines, expected, "{complained}");
    let (code, said, _) = kubectl(&server, dir.path(), &["get", "pdb"]).await.unwrap();
    assert!(
        code == 0 && said.starts_with("NAME   MIN AVAILABLE   MAX UNAVAILABLE   ALLOWED DISRUPTIONS   AGE\n"),
        "{said}"
    );
    server.stop().await;
}
