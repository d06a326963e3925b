//! The main job: a Deployment, a Service and an Ingress applied with kubectl, answering, updated without a lost request.

use crate::harness::{Cluster, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const HOST: &str = "hello.localhost";

#[test]
fn the_tutorial_app_answers_and_is_updated_under_load_without_losing_a_request() {
    let cluster = Arc::new(Cluster::start());
    let said = cluster.kubectl(&["apply", "-f", "examples/hello"]);
    assert!(said.contains("deployment.apps/hello created"), "{said}");
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"]);
    until("the ingress answers", || cluster.ingress(HOST, "/").ok().filter(|reply| reply.status == 200));
    let again = cluster.kubectl(&["apply", "-f", "examples/hello"]);
    assert!(again.contains("deployment.apps/hello unchanged"), "{again}");

    let stop = Arc::new(AtomicBool::new(false));
    let (answered, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (cluster, stop) = (cluster.clone(), stop.clone());
            let (answered, lost) = (answered.clone(), lost.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match cluster.ingress(HOST, "/") {
                        Ok(reply) if reply.status == 200 => answered.fetch_add(1, Ordering::Relaxed),
                        other => {
                            eprintln!("lost: {other:?}");
                            lost.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            })
        })
        .collect();
    cluster.kubectl(&["rollout", "restart", "deployment/hello"]);
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"]);
    until("requests after the update", || (answered.load(Ordering::Relaxed) > 200).then_some(()));
    stop.store(true, Ordering::Relaxed);
    load.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(lost.load(Ordering::Relaxed), 0);

    let history = cluster.kubectl(&["rollout", "history", "deployment/hello"]);
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/hello"]);
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"]);
    let history = cluster.kubectl(&["rollout", "history", "deployment/hello"]);
    assert!(history.contains("3 ") && !history.contains("\n1 "), "{history}");
}

#[test]
fn a_deployment_scales_heals_and_goes() {
    let cluster = Cluster::start();
    cluster.kubectl(&["apply", "-f", "examples/hello"]);
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=5"]);
    cluster.wait("deployment/hello", "jsonpath={.status.readyReplicas}=5");
    let pods = || cluster.kubectl(&["get", "pods", "-l", "app=hello", "-o", "name"]);
    let before = pods();
    let victim = before.lines().next().unwrap().to_owned();
    cluster.kubectl(&["delete", &victim, "--wait=true"]);
    until("another pod in its place", || {
        let now = pods();
        (now.lines().count() == 5 && !now.contains(&victim)).then_some(())
    });
    cluster.wait("deployment/hello", "jsonpath={.status.readyReplicas}=5");
    let slices = cluster.kubectl(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=hello",
        "-o",
        "jsonpath={.items[*].endpoints[*].addresses[0]}",
    ]);
    assert_eq!(slices.split_whitespace().count(), 5, "{slices}");
    let described = cluster.kubectl(&["describe", "deployment", "hello"]);
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    cluster.kubectl(&["delete", "-f", "examples/hello"]);
    until("all is gone", || pods().is_empty().then_some(()));
}

#[test]
fn a_job_runs_to_its_end_and_its_log_is_read() {
    let cluster = Cluster::start();
    cluster.kubectl(&["apply", "-f", "examples/job"]);
    cluster.wait("job/pi", "condition=Complete");
    let log = cluster.kubectl(&["logs", "job/pi"]);
    assert!(log.contains("31415926535"), "{log}");
    let stamped = cluster.kubectl(&["logs", "job/pi", "--timestamps", "--tail=1"]);
    assert!(stamped.starts_with("20") && stamped.lines().count() == 1, "{stamped}");
}

#[test]
fn the_guestbook_keeps_what_is_written_into_it() {
    let cluster = Cluster::start();
    cluster.kubectl(&["apply", "-f", "examples/guestbook"]);
    for deployment in cluster.kubectl(&["get", "deployments", "-o", "name"]).lines() {
        cluster.kubectl(&["rollout", "status", deployment, "--timeout=120s"]);
    }
    until("the guestbook answers", || {
        cluster.ingress("guestbook.localhost", "/").ok().filter(|reply| reply.status == 200)
    });
}
