//! Services with pods in every state.

use super::EndpointsOfServices;
use crate::harness::Sandbox;
use expect_test::expect;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use state::{Deletion, Key};

const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, labels: {tier: front}}
spec: {selector: {app: web}, clusterIP: 10.43.0.7, ports: [{name: http, port: 80, targetPort: web, protocol: TCP}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: default}
spec: {clusterIP: 10.43.0.8, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: idle, namespace: default}
spec: {clusterIP: None, selector: {app: idle}, ports: [{port: 80}]}
";

fn pod(name: &str, address: u8, port: u16, ready: bool) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: web}}}}
spec: {{nodeName: n1, containers: [{{name: a, ports: [{{name: web, containerPort: {port}}}]}}]}}
status: {{phase: Running, podIP: 10.42.0.{address}, conditions: [{{type: Ready, status: '{}'}}]}}
",
        if ready { "True" } else { "False" }
    )
}

fn report(sandbox: &Sandbox) -> String {
    let mut lines = Vec::new();
    for slice in sandbox.values::<EndpointSlice>() {
        let name = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap();
        lines.push(format!("slice of {name} {} ports {}", slice["addressType"], slice["ports"]));
        for endpoint in slice["endpoints"].as_array().unwrap() {
            let target = endpoint["targetRef"]["name"].as_str().unwrap();
            lines.push(format!(
                "  {target} {} {} on {}",
                endpoint["addresses"], endpoint["conditions"], endpoint["nodeName"]
            ));
        }
    }
    for endpoints in sandbox.values::<Endpoints>() {
        lines.push(format!("endpoints {}", endpoints["metadata"]["name"]));
        for subset in endpoints["subsets"].as_array().into_iter().flatten() {
            let names = |field: &str| -> Vec<String> {
                let list = subset[field].as_array().into_iter().flatten();
                list.map(|address| address["targetRef"]["name"].as_str().unwrap().to_owned()).collect()
            };
            let (ready, unready) = (names("addresses"), names("notReadyAddresses"));
            lines.push(format!("  ready {ready:?} not {unready:?} ports {}", subset["ports"]));
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn pods_become_endpoints_in_their_states() {
    let mut sandbox = Sandbox::new(vec![Box::new(EndpointsOfServices)]);
    sandbox
        .apply(WORLD)
        .apply(&pod("a", 1, 8080, true))
        .apply(&pod("b", 2, 8080, false))
        .apply(&pod("c", 3, 9090, true));
    sandbox.settle();
    expect![[r#"
        slice of idle "IPv4" ports []
        slice of web "IPv4" ports [{"name":"http","port":9090,"protocol":"TCP"}]
          c ["10.42.0.3"] {"ready":true,"serving":true,"terminating":false} on "n1"
        slice of web "IPv4" ports [{"name":"http","port":8080,"protocol":"TCP"}]
          b ["10.42.0.2"] {"ready":false,"serving":false,"terminating":false} on "n1"
          a ["10.42.0.1"] {"ready":true,"serving":true,"terminating":false} on "n1"
        endpoints "idle"
        endpoints "web"
          ready ["a"] not ["b"] ports [{"name":"http","port":8080,"protocol":"TCP"}]
          ready ["c"] not [] ports [{"name":"http","port":9090,"protocol":"TCP"}]
    "#]]
    .assert_eq(&report(&sandbox));
    sandbox.delete(&Key::of::<Pod>("default", "a"), Deletion::default());
    sandbox.edit(&Key::of::<Pod>("default", "b"), |pod| pod["status"]["conditions"][0]["status"] = "True".into());
    sandbox.edit(&Key::of::<Pod>("default", "c"), |pod| pod["status"]["phase"] = "Failed".into());
    sandbox.settle();
    expect![[r#"
        slice of idle "IPv4" ports []
        slice of web "IPv4" ports [{"name":"http","port":8080,"protocol":"TCP"}]
          b ["10.42.0.2"] {"ready":true,"serving":true,"terminating":false} on "n1"
          a ["10.42.0.1"] {"ready":false,"serving":true,"terminating":true} on "n1"
        endpoints "idle"
        endpoints "web"
          ready ["b"] not [] ports [{"name":"http","port":8080,"protocol":"TCP"}]
    "#]]
    .assert_eq(&report(&sandbox));
    sandbox.delete(&Key::of::<Service>("default", "idle"), Deletion::default()).settle();
    assert!(sandbox.world.get(&Key::of::<Endpoints>("default", "idle")).is_none());
}

#[test]
fn a_slice_holds_a_hundred_and_changes_alone() {
    let mut sandbox = Sandbox::new(vec![Box::new(EndpointsOfServices)]);
    sandbox.apply(WORLD);
    for number in 0..=150 {
        sandbox.apply(&pod(&format!("p{number:03}"), number, 80, true));
    }
    sandbox.settle();
    let mut sizes: Vec<usize> =
        sandbox.values::<EndpointSlice>().iter().map(|slice| slice["endpoints"].as_array().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 51, 100]);
    sandbox.told();
    sandbox.edit(&Key::of::<Pod>("default", "p007"), |pod| pod["status"]["phase"] = "Succeeded".into()).settle();
    let changed = sandbox.log.iter().filter(|line| line.contains("endpointslices")).count();
    assert_eq!(changed, 1);
}

#[test]
fn an_endpoint_says_where_it_is_and_whether_it_is_published_early() {
    let mut sandbox = Sandbox::new(vec![Box::new(EndpointsOfServices)]);
    sandbox
        .apply("{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: east}}}")
        .apply(WORLD)
        .apply(
            "{apiVersion: v1, kind: Service, metadata: {name: early, namespace: default},
              spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80}]}}",
        )
        .apply(&pod("b", 2, 8080, false))
        .settle();
    let endpoint = |sandbox: &Sandbox, service: &str| {
        let slices = sandbox.values::<EndpointSlice>().into_iter();
        let mut ours = slices.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
        let endpoint = ours.next().unwrap()["endpoints"][0].clone();
        format!("{} {} {}", endpoint["nodeName"], endpoint["zone"], endpoint["conditions"])
    };
    assert_eq!(endpoint(&sandbox, "web"), r#""n1" "east" {"ready":false,"serving":false,"terminating":false}"#);
    assert_eq!(endpoint(&sandbox, "early"), r#""n1" "east" {"ready":true,"serving":false,"terminating":false}"#);
    let node = Key::of::<k8s_openapi::api::core::v1::Node>("", "n1");
    sandbox.edit(&node, |node| node["metadata"]["labels"] = serde_json::json!({"topology.kubernetes.io/zone": "west"}));
    sandbox.settle();
    assert!(endpoint(&sandbox, "web").starts_with(r#""n1" "west""#));
}
