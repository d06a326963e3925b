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
fn of_many_endpoints_new_ones_wait_a_little_and_lost_ones_do_not() {
    let mut sandbox = Sandbox::new(vec![Box::new(EndpointsOfServices)]);
    sandbox.apply(WORLD);
    for number in 0..40 {
        sandbox.apply(&pod(&format!("p{number:03}"), number, 80, true));
    }
    sandbox.settle();
    let ready = |sandbox: &Sandbox| {
        let slices = sandbox.values::<EndpointSlice>();
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().unwrap().clone());
        endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count()
    };
    assert_eq!(ready(&sandbox), 40);
    sandbox.apply(&pod("new", 99, 80, true)).settle();
    assert_eq!(ready(&sandbox), 40, "it waits");
    sandbox.pass(1);
    assert_eq!(ready(&sandbox), 41);
    sandbox.apply(&pod("newer", 98, 80, true)).settle();
    assert_eq!(ready(&sandbox), 41);
    sandbox.edit(&Key::of::<Pod>("default", "p007"), |pod| pod["status"]["conditions"][0]["status"] = "False".into());
    sandbox.settle();
    assert_eq!(ready(&sandbox), 41, "one is out and one is in at once");
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

/// The pods of the Service's slices with their hints.
fn hints(sandbox: &Sandbox) -> Vec<String> {
    let slices = sandbox.values::<EndpointSlice>().into_iter();
    let ours = slices.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
    let all = ours.flat_map(|slice| slice["endpoints"].as_array().unwrap().clone());
    let mut all: Vec<String> =
        all.map(|e| format!("{} {}", e["targetRef"]["name"].as_str().unwrap(), e["hints"])).collect();
    all.sort();
    all
}

#[test]
fn hints_say_who_is_near() {
    let mut sandbox = Sandbox::new(vec![Box::new(EndpointsOfServices)]);
    let node = |name: &str, zone: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}},
              status: {{allocatable: {{cpu: '4'}}, conditions: [{{type: Ready, status: 'True'}}]}}}}"
        )
    };
    sandbox.apply(&node("n1", "east")).apply(&node("n2", "west")).apply(WORLD);
    for (name, address, ready) in [("a", 1, true), ("b", 2, false), ("c", 3, true)] {
        sandbox.apply(&pod(name, address, 8080, ready));
    }
    let service = Key::of::<Service>("default", "web");
    for (distribution, expected) in [
        ("PreferSameNode", r#"{"forNodes":[{"name":"n1"}],"forZones":[{"name":"east"}]}"#),
        ("PreferClose", r#"{"forZones":[{"name":"east"}]}"#),
        ("PreferSameZone", r#"{"forZones":[{"name":"east"}]}"#),
    ] {
        sandbox.edit(&service, |service| service["spec"]["trafficDistribution"] = distribution.into()).settle();
        assert_eq!(hints(&sandbox), [format!("a {expected}"), "b null".into(), format!("c {expected}")]);
    }
    // shares by CPU, which follow the nodes
    sandbox.edit(&service, |service| {
        service["metadata"]["annotations"] = serde_json::json!({"service.kubernetes.io/topology-mode": "Auto"});
    });
    sandbox.settle();
    let of = |zone: &str| format!(r#"{{"forZones":[{{"name":"{zone}"}}]}}"#);
    let both = [format!("a {}", of("east")), "b null".into(), format!("c {}", of("west"))];
    let mut found = hints(&sandbox);
    if found[0].contains("west") {
        // which of the two it is does not matter
        found = vec![format!("a {}", of("east")), found[1].clone(), found[2].replace("east", "west")];
    }
    assert_eq!(found, both);
    let other = Key::of::<k8s_openapi::api::core::v1::Node>("", "n2");
    sandbox.edit(&other, |node| node["status"]["conditions"][0]["status"] = "Unknown".into()).settle();
    assert_eq!(hints(&sandbox), ["a null", "b null", "c null"]);
}

#[test]
fn endpoints_that_people_write_are_mirrored() {
    let mut sandbox = Sandbox::new(vec![Box::new(EndpointsOfServices)]);
    let written = |more: &str| {
        format!(
            "{{apiVersion: v1, kind: Endpoints, metadata: {{name: bare, namespace: default, labels: {{own: label{more}}}}},
              subsets: [{{addresses: [{{ip: 192.0.2.1, hostname: box}}, {{ip: '2001:db8::1'}}], notReadyAddresses: [{{ip: 192.0.2.2}}],
              ports: [{{port: 5432, name: sql}}]}}]}}"
        )
    };
    sandbox.apply(WORLD).apply(&written("")).settle();
    let mirrors = |sandbox: &Sandbox| -> Vec<String> {
        let slices = sandbox.values::<EndpointSlice>().into_iter();
        let ours = slices.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "bare");
        let mut all: Vec<String> =
            ours.map(|slice| format!("{} {} {}", slice["addressType"], slice["endpoints"], slice["ports"])).collect();
        all.sort();
        all
    };
    let ports = r#"[{"name":"sql","port":5432,"protocol":"TCP"}]"#;
    assert_eq!(
        mirrors(&sandbox),
        [
            format!(
                r#""IPv4" [{{"addresses":["192.0.2.1"],"conditions":{{"ready":true}},"hostname":"box"}},{{"addresses":["192.0.2.2"],"conditions":{{"ready":false}}}}] {ports}"#
            ),
            format!(r#""IPv6" [{{"addresses":["2001:db8::1"],"conditions":{{"ready":true}}}}] {ports}"#),
        ]
    );
    let before = sandbox.values::<EndpointSlice>().len();
    sandbox.told();
    let endpoints = Key::of::<Endpoints>("default", "bare");
    sandbox.edit(&endpoints, |endpoints| endpoints["subsets"][0]["addresses"][0]["ip"] = "192.0.2.9".into()).settle();
    assert!(mirrors(&sandbox)[0].contains("192.0.2.9") && sandbox.values::<EndpointSlice>().len() == before);
    sandbox.apply(&written(", endpointslice.kubernetes.io/skip-mirror: 'true'")).settle();
    assert!(mirrors(&sandbox).is_empty());
    sandbox.apply(&written("")).settle();
    assert_eq!(mirrors(&sandbox).len(), 2);
    sandbox.delete(&Key::of::<Service>("default", "bare"), Deletion::default()).settle();
    assert!(mirrors(&sandbox).is_empty());
}
