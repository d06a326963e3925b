//! Nodes that join, come again, and meet another of their name. A request's text stands for what it asks.

use super::*;
use crate::harness::Sandbox;
use crate::node::NodeLeftovers;
use k8s_openapi::ByteString;

/// `CN O KEY`, or nothing that can be read.
fn read(request: &[u8]) -> Result<CertificateRequest, String> {
    let text = String::from_utf8_lossy(request);
    let mut words = text.split(' ').map(str::to_owned);
    let (Some(common_name), Some(organization), Some(public_key_sha256)) = (words.next(), words.next(), words.next())
    else {
        return Err("not a request".into());
    };
    let has_alternative_names = words.next().is_some();
    Ok(CertificateRequest { common_name, organizations: vec![organization], has_alternative_names, public_key_sha256 })
}

fn sandbox() -> Sandbox {
    Sandbox::new(vec![Box::new(Approver { read_request: read }), Box::new(Cleaner), Box::new(NodeLeftovers)])
}

const TOKEN: &str = "username: 'system:bootstrap:abcdef', groups: ['system:bootstrappers', 'system:authenticated']";

fn ask(sandbox: &mut Sandbox, name: &str, request: &str, who: &str, more: &str) -> String {
    let request = serde_json::to_value(ByteString(request.as_bytes().to_vec())).unwrap();
    let usages = if more.is_empty() { "usages: ['digital signature', 'client auth']" } else { more };
    sandbox.apply(&format!(
        "{{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, metadata: {{name: {name}}},
          spec: {{signerName: 'kubernetes.io/kube-apiserver-client-kubelet', request: {request}, {usages}, {who}}}}}"
    ));
    sandbox.settle();
    answer(sandbox, name)
}

fn answer(sandbox: &Sandbox, name: &str) -> String {
    let value = sandbox.world.get(&Key::of::<CertificateSigningRequest>("", name)).unwrap().value();
    let condition = &value["status"]["conditions"][0];
    match condition["type"].as_str() {
        None => "pending".into(),
        Some("Approved") => format!("Approved {}", condition["reason"].as_str().unwrap()),
        Some(type_) => {
            format!("{type_} {}: {}", condition["reason"].as_str().unwrap(), condition["message"].as_str().unwrap())
        }
    }
}

#[test]
fn who_is_approved() {
    let usages = "usages: ['digital signature', 'key encipherment', 'client auth']";
    let server = "usages: ['digital signature', 'server auth', 'client auth']";
    let node = "username: 'system:node:a', groups: ['system:nodes']";
    let cases = [
        ("system:node:a system:nodes k1", TOKEN, "", "Approved AutoApproved"),
        ("system:node:a system:nodes k1", TOKEN, usages, "Approved AutoApproved"),
        ("system:node:a system:nodes k1", TOKEN, server, "pending"),
        ("system:node:a system:nodes k1 san", TOKEN, "", "pending"),
        ("system:node:a system:masters k1", TOKEN, "", "pending"),
        ("system:admin system:nodes k1", TOKEN, "", "pending"),
        ("system:node: system:nodes k1", TOKEN, "", "pending"),
        ("system:node:A_b system:nodes k1", TOKEN, "", "pending"),
        ("junk", TOKEN, "", "pending"),
        ("system:node:b system:nodes k1", node, "", "pending"),
        ("system:node:a system:nodes k1", "username: admin, groups: ['system:masters']", "", "pending"),
        (
            "system:node:a system:nodes k1",
            node,
            "",
            "Denied NodeDeleted: node \"a\" was deleted; it must join again with a token",
        ),
    ];
    for (request, who, usages, expected) in cases {
        assert_eq!(ask(&mut sandbox(), "csr-x", request, who, usages), expected, "{request} {who} {usages}");
    }
}

#[test]
fn a_name_is_its_first_machines_until_the_node_is_deleted() {
    let mut sandbox = sandbox();
    assert_eq!(ask(&mut sandbox, "csr-1", "system:node:a system:nodes k1", TOKEN, ""), "Approved AutoApproved");
    assert_eq!(identity::of(&sandbox.world, "a"), Some("k1"));
    sandbox.apply("{apiVersion: v1, kind: Node, metadata: {name: a}}");
    sandbox.pass(7200);
    assert_eq!(
        ask(&mut sandbox, "csr-2", "system:node:a system:nodes k2", TOKEN, ""),
        "Denied NodeNameTaken: node \"a\" has joined from another machine; delete it (kubectl delete node a) or choose \
         another --node-name"
    );
    let node = "username: 'system:node:a', groups: ['system:nodes']";
    assert_eq!(ask(&mut sandbox, "csr-3", "system:node:a system:nodes k1", node, ""), "Approved AutoApproved");
    assert_eq!(ask(&mut sandbox, "csr-4", "system:node:a system:nodes k1", TOKEN, ""), "Approved AutoApproved");
    sandbox.delete(&Key::of::<Node>("", "a"), state::Deletion::default()).settle();
    assert_eq!(identity::of(&sandbox.world, "a"), None);
    assert_eq!(ask(&mut sandbox, "csr-5", "system:node:a system:nodes k2", TOKEN, ""), "Approved AutoApproved");
    // nobody came under that name: an hour later another may have it
    assert!(ask(&mut sandbox, "csr-6", "system:node:a system:nodes k3", TOKEN, "").starts_with("Denied NodeNameTaken"));
    sandbox.pass(3600);
    assert_eq!(ask(&mut sandbox, "csr-7", "system:node:a system:nodes k3", TOKEN, ""), "Approved AutoApproved");
    assert_eq!(identity::of(&sandbox.world, "a"), Some("k3"));
}

#[test]
fn what_people_approve_reserves_the_name_too() {
    let mut sandbox = sandbox();
    let who = "username: admin, groups: ['system:masters']";
    assert_eq!(ask(&mut sandbox, "csr-1", "system:node:a system:nodes k1", who, ""), "pending");
    sandbox.edit(&Key::of::<CertificateSigningRequest>("", "csr-1"), |csr| {
        csr["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T00:00:00Z"}]});
    });
    sandbox.settle();
    assert_eq!(identity::of(&sandbox.world, "a"), Some("k1"));
}

#[test]
fn requests_are_cleared_away() {
    let mut sandbox = sandbox();
    ask(&mut sandbox, "done", "system:node:a system:nodes k1", TOKEN, "");
    ask(&mut sandbox, "waits", "junk", TOKEN, "");
    let count = |sandbox: &Sandbox| sandbox.world.all::<CertificateSigningRequest>(None).count();
    sandbox.pass(3599);
    assert_eq!(count(&sandbox), 2);
    sandbox.pass(1);
    assert_eq!(count(&sandbox), 1);
    sandbox.pass(23 * 3600);
    assert_eq!(count(&sandbox), 0);
}
