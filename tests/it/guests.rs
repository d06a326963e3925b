//! Guests that misbehave: each is stopped or slowed for what it does, in Kubernetes' words, and nobody else notices.

use crate::harness::{Cluster, guest, until};

fn pod(name: &str, image: &str, args: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: main\n    image: {image}\n    args: {args}\n    {more}\n"
    )
}

#[test]
fn a_pod_whose_image_is_not_there_says_so_and_one_that_is_no_wasm_too() {
    let cluster = Cluster::start();
    let junk = cluster.file("junk.wasm", "not wasm");
    cluster.apply(&format!(
        "{}---\n{}",
        pod("missing", "file:///nowhere/app.wasm", "[]", ""),
        pod("junk", &format!("file://{junk}"), "[]", "")
    ));
    for name in ["missing", "junk"] {
        until("the pull fails", || {
            let reason = cluster.try_kubectl(&[
                "get",
                "pod",
                name,
                "-o",
                "jsonpath={.status.containerStatuses[0].state.waiting.reason}",
            ]);
            ["ErrImagePull", "ImagePullBackOff"].contains(&&*reason).then_some(())
        });
        until("an event tells why", || {
            let events = cluster.try_kubectl(&["events", "--for", &format!("pod/{name}")]);
            events.contains("Failed").then_some(())
        });
    }
}

#[test]
fn exit_codes_and_arguments_are_those_of_the_program() {
    let cluster = Cluster::start();
    cluster.apply(&pod("pi", "file://examples/job/pi.wasm", "[\"20\"]", ""));
    cluster.wait("pod/pi", "jsonpath={.status.phase}=Succeeded");
    let state = cluster.get("pod/pi")["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((state["exitCode"].as_i64(), state["reason"].as_str()), (Some(0), Some("Completed")));
}

#[test]
fn a_guest_of_the_runtimes_tests_is_reached_by_file_image() {
    let cluster = Cluster::start();
    cluster.apply(&pod("web", &guest("web.wasm"), "[]", "ports: [{containerPort: 8080}]"));
    cluster.wait("pod/web", "condition=Ready");
}

#[test]
fn a_memory_eater_is_killed_and_a_trap_leaves_its_backtrace() {
    let cluster = Cluster::start();
    let limits = "resources: {limits: {memory: 32Mi}}";
    cluster.apply(&format!(
        "{}---\n{}",
        pod("eater", &guest("tool.wasm"), "[eat]", limits),
        pod("faller", &guest("tool.wasm"), "[panic]", "")
    ));
    for name in ["eater", "faller"] {
        cluster.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Failed");
    }
    let state = |name: &str| cluster.get(name)["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    let eater = state("pod/eater");
    assert_eq!((eater["exitCode"].as_i64(), eater["reason"].as_str()), (Some(137), Some("OOMKilled")));
    assert_eq!(state("pod/faller")["reason"], "Error");
    let log = cluster.kubectl(&["logs", "faller"]);
    assert!(log.contains("on purpose") && log.contains("deep_inside"), "{log}");
}

#[test]
fn pods_that_spin_do_not_starve_the_others() {
    let cluster = Cluster::start();
    let spinners: Vec<String> = (0..4).map(|n| pod(&format!("spin{n}"), &guest("tool.wasm"), "[spin]", "")).collect();
    cluster.apply(&spinners.join("---\n"));
    for n in 0..4 {
        cluster.wait(&format!("pod/spin{n}"), "jsonpath={.status.phase}=Running");
    }
    cluster.apply(&pod("pi", "file://examples/job/pi.wasm", "[\"20\"]", ""));
    cluster.wait("pod/pi", "jsonpath={.status.phase}=Succeeded");
    cluster.kubectl(&["delete", "pods", "--all", "--grace-period=1"]);
    assert_eq!(cluster.kubectl(&["get", "pods", "-o", "name"]), "");
}
