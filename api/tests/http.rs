//! The API over real TLS: what clients rely on, and what bad input gets.

mod support;

use api::Limits;
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;
use support::{Client, Server, TOKEN, Who, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_object_lives_and_goes() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    let made = client.send("POST", MAPS, &config_map("a", json!({}))).await;
    assert_eq!(made.code, 201, "{made:?}");
    let again = client.send("POST", MAPS, &config_map("a", json!({}))).await;
    assert_eq!((again.code, again.message().as_str()), (409, r#"configmaps "a" already exists"#));

    let path = format!("{MAPS}/a");
    let mut value = client.get(&path).await.json();
    assert_eq!(value, made.json());
    value["data"]["k"] = "2".into();
    let put = client.send("PUT", &path, &value).await;
    assert_eq!(put.code, 200, "{put:?}");
    let stale = client.send("PUT", &path, &value).await;
    assert_eq!(
        (stale.code, stale.message().as_str()),
        (
            409,
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; \
             please apply your changes to the latest version and try again"
        )
    );
    let same = client.send("PUT", &path, &put.json()).await.json();
    assert_eq!(same, put.json(), "an update that changes nothing makes no revision");

    for (kind, patch) in [
        ("merge-patch", json!({"data": {"merge": "1"}})),
        ("strategic-merge-patch", json!({"data": {"strategic": "1", "k": null}})),
        ("json-patch", json!([{"op": "add", "path": "/data/json", "value": "1"}])),
    ] {
        let patched = client.patch(&path, kind, &patch).await;
        assert_eq!(patched.code, 200, "{kind}: {patched:?}");
    }
    let data = client.get(&path).await.json()["data"].clone();
    assert_eq!(data, json!({"merge": "1", "strategic": "1", "json": "1"}));
    let apply = client.raw("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], "{}".into()).await;
    assert_eq!(apply.code, 415);

    let dry = client.send("DELETE", &format!("{path}?dryRun=All"), &json!({})).await;
    assert_eq!((dry.code, client.get(&path).await.code), (200, 200));
    let gone = client.send("DELETE", &path, &json!({})).await.json();
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("a")));
    let missing = client.get(&path).await;
    assert_eq!((missing.code, missing.message().as_str()), (404, r#"configmaps "a" not found"#));
    server.stop().await;
}

#[tokio::test]
async fn only_who_is_known_comes_in() {
    let server = Server::start().await;
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let pods = "/api/v1/namespaces/default/pods";
    let mut nobody = server.client(Who::Anonymous).await;
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(nobody.get(path).await.code, 200, "{path}");
    }
    let refused = nobody.get(pods).await;
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (
            403,
            r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "default""#
        )
    );
    assert_eq!(nobody.get("/apis").await.message(), r#"forbidden: User "system:anonymous" cannot get path "/apis""#);

    let wrong = server.client(Who::Token("wrong")).await.get(pods).await;
    assert_eq!((wrong.code, wrong.message().as_str()), (401, "Unauthorized"));

    let mut cases = Vec::new();
    for who in [Who::Token(TOKEN), Who::Certificate] {
        let review = server.client(who).await.send("POST", whoami, &json!({})).await.json();
        cases.push(review["status"]["userInfo"].clone());
    }
    assert_eq!(
        cases,
        [
            json!({"username": "alice", "groups": ["dev", "system:authenticated"]}),
            json!({"username": "admin", "groups": ["system:masters", "system:authenticated"]}),
        ]
    );
    server.stop().await;
}

async fn make_maps(client: &mut Client, names: &[&str]) {
    for name in names {
        let made = client.send("POST", MAPS, &config_map(name, json!({"app": "x"}))).await;
        assert_eq!(made.code, 201, "{made:?}");
    }
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn pages_of_a_list_are_of_one_revision() {
    let limits = Limits { fresh_time_max: Duration::from_millis(20), ..Limits::default() };
    let server = Server::start_with(limits).await;
    let mut client = server.client(Who::Certificate).await;
    make_maps(&mut client, &["a", "b", "c", "d", "e"]).await;
    let first = client.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
    client.send("DELETE", &format!("{MAPS}/c"), &json!({})).await;
    make_maps(&mut client, &["f"]).await;
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let rest = client.get(&format!("{MAPS}?limit=10&continue={token}")).await.json();
    assert_eq!(names(&rest), ["c", "d", "e"]);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let selected = client.get(&format!("{MAPS}?labelSelector=app%3Dx&fieldSelector=metadata.name%3Df")).await.json();
    assert_eq!(names(&selected), ["f"]);
    let late = client.get(&format!("{MAPS}?resourceVersion=999999")).await;
    assert_eq!(late.code, 504, "{late:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_watch_tells_what_comes_into_its_selection_and_what_leaves() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    make_maps(&mut client, &["old"]).await;
    let path = format!(
        "{MAPS}?watch=true&labelSelector=app%3Dx&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
         &allowWatchBookmarks=true"
    );
    let mut watch = server.client(Who::Certificate).await.watch(&path).await;
    assert_eq!(watch.next_short().await, ("ADDED".into(), "old".into()));
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(bookmark["object"]["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));

    let other = format!("{MAPS}/new");
    client.send("POST", MAPS, &config_map("new", json!({}))).await;
    client.patch(&other, "merge-patch", &json!({"metadata": {"labels": {"app": "x"}}})).await;
    assert_eq!(watch.next_short().await, ("ADDED".into(), "new".into()));
    client.patch(&other, "merge-patch", &json!({"data": {"k": "2"}})).await;
    assert_eq!(watch.next_short().await, ("MODIFIED".into(), "new".into()));
    client.patch(&other, "merge-patch", &json!({"metadata": {"labels": {"app": "y"}}})).await;
    assert_eq!(watch.next_short().await, ("DELETED".into(), "new".into()));
    client.send("DELETE", &format!("{MAPS}/old"), &json!({})).await;
    assert_eq!(watch.next_short().await, ("DELETED".into(), "old".into()));

    server.stop().await;
    while watch.next().await.is_some() {}
}

#[tokio::test]
async fn a_service_gets_addresses_and_ports() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let port = json!([{"port": 80}]);
    let made = client.send("POST", services, &service("a", json!({"type": "NodePort", "ports": port}))).await;
    assert_eq!(made.code, 201, "{made:?}");
    let spec = made.json()["spec"].clone();
    let address = spec["clusterIP"].as_str().expect("an address").to_owned();
    assert!(address.starts_with("10.43."), "{address}");
    assert!(spec["ports"][0]["nodePort"].as_i64().is_some_and(|port| (30000..=32767).contains(&port)), "{spec}");

    let taken = client.send("POST", services, &service("b", json!({"clusterIP": address, "ports": port}))).await;
    assert_eq!(
        (taken.code, taken.message()),
        (
            422,
            format!(
                "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [{address:?}]: \
                 failed to allocate IP {address}: provided IP is already allocated"
            )
        )
    );
    let headless = client
        .send("POST", services, &service("c", json!({"clusterIP": "None", "selector": {"a": "b"}, "ports": port})))
        .await;
    assert_eq!(headless.json()["spec"]["clusterIPs"], json!(["None"]), "{headless:?}");
    let patch = json!({"spec": {"type": "ClusterIP"}});
    let plain = client.patch(&format!("{services}/a"), "merge-patch", &patch).await.json();
    assert_eq!((&plain["spec"]["clusterIP"], plain["spec"]["ports"][0].get("nodePort")), (&json!(address), None));

    // a load balancer that keeps to its nodes has a port at which they say so, for as long as it is one
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": port});
    let made = client.send("POST", services, &service("d", spec)).await.json();
    let check = made["spec"]["healthCheckNodePort"].as_i64().unwrap_or_default();
    assert!((30000..=32767).contains(&check) && check != made["spec"]["ports"][0]["nodePort"], "{made}");
    let at = format!("{services}/d");
    let kept = client.patch(&at, "merge-patch", &json!({"spec": {"healthCheckNodePort": null}})).await.json();
    assert_eq!(kept["spec"]["healthCheckNodePort"], check, "{kept}");
    let other = client.patch(&at, "merge-patch", &json!({"spec": {"healthCheckNodePort": 30001}})).await;
    assert!(other.code == 422 && other.message().contains("cannot change healthCheckNodePort"), "{other:?}");
    let patch = json!({"spec": {"externalTrafficPolicy": "Cluster"}});
    let open = client.patch(&at, "merge-patch", &patch).await.json();
    assert_eq!(open["spec"].get("healthCheckNodePort"), None, "{open}");
    let plain = client.patch(&at, "merge-patch", &json!({"spec": {"type": "ClusterIP"}})).await.json();
    for field in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
        assert_eq!(plain["spec"].get(field), None, "{plain}");
    }
    server.stop().await;
}

#[tokio::test]
async fn bad_input_is_named_and_harms_nothing() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    let json_type = [("content-type", "application/json")];
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut unknown = config_map("a", json!({}));
    unknown["dta"] = json!({});
    let mut wrong = config_map("a", json!({}));
    wrong["data"] = json!("text");
    let cases: Vec<(&str, String, Bytes, u16, &str)> = vec![
        ("POST", MAPS.into(), deep.into(), 400, "recursion limit"),
        ("POST", MAPS.into(), "{".into(), 400, "json parse error"),
        ("POST", MAPS.into(), "[]".into(), 400, "not an object"),
        (
            "POST",
            MAPS.into(),
            json!({"kind": "Secret", "metadata": {"name": "a"}}).to_string().into(),
            400,
            "cannot be handled as a ConfigMap",
        ),
        (
            "POST",
            format!("{MAPS}?fieldValidation=Strict"),
            unknown.to_string().into(),
            400,
            r#"strict decoding error: unknown field "dta""#,
        ),
        ("POST", MAPS.into(), wrong.to_string().into(), 400, "cannot unmarshal string into Go struct field"),
        (
            "POST",
            "/api/v1/namespaces/none/configmaps".into(),
            config_map("a", json!({})).to_string().into(),
            404,
            r#"namespaces "none" not found"#,
        ),
        ("POST", MAPS.into(), json!({"metadata": {}}).to_string().into(), 422, "name or generateName is required"),
        ("POST", MAPS.into(), vec![b' '; 4 << 20].into(), 413, "Request entity too large: limit is 3145728"),
        ("GET", format!("{MAPS}?labelSelector=%21%21"), Bytes::new(), 400, "unable to parse"),
        ("GET", format!("{MAPS}?fieldSelector=spec.x%3D1"), Bytes::new(), 400, "field label not supported"),
        ("GET", format!("{MAPS}?continue=garbage"), Bytes::new(), 400, "continue key is not valid"),
        (
            "POST",
            format!("{MAPS}?dryRun=Some"),
            config_map("a", json!({})).to_string().into(),
            422,
            "Unsupported value",
        ),
        ("DELETE", "/api/v1/namespaces/default".into(), Bytes::new(), 403, "this namespace may not be deleted"),
    ];
    for (method, path, body, code, message) in cases {
        // a refused body closes its connection
        let mut client = server.client(Who::Certificate).await;
        let answer = client.raw(method, &path, &json_type, body).await;
        assert_eq!((answer.code, answer.message().contains(message)), (code, true), "{method} {path}: {answer:?}");
        assert_eq!(answer.json()["kind"], "Status");
    }
    let typed = client.raw("POST", MAPS, &[("content-type", "text/html")], "x".into()).await;
    assert_eq!(typed.code, 415);
    let warned = client.send("POST", MAPS, &unknown).await;
    assert_eq!((warned.code, warned.warnings.as_slice()), (201, &[r#"299 - "unknown field \"dta\"""#.to_owned()][..]));
    let nowhere = client.get("/apis/none/v1/things").await;
    assert_eq!((nowhere.code, &nowhere.body[..]), (404, &b"404 page not found\n"[..]));
    assert_eq!(client.get("/healthz").await.code, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_pod_is_bound_read_and_asked_to_go() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    let pods = "/api/v1/namespaces/default/pods";
    let containers = json!([{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}});
    let made = client.send("POST", pods, &pod).await;
    assert_eq!(made.code, 201, "{made:?}");
    assert_eq!(made.json()["status"]["phase"], "Pending");
    let path = format!("{pods}/p");
    let which = client.get(&format!("{path}/log")).await;
    assert_eq!(which.message(), "a container name must be specified for pod p, choose one of: [a b]");
    assert_eq!(client.get(&format!("{path}/log?container=z")).await.message(), "container z is not valid for pod p");

    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(client.send("POST", &format!("{path}/binding"), &binding).await.code, 201);
    assert_eq!(client.send("POST", &format!("{path}/binding"), &binding).await.code, 409);
    let waits = client.get(&format!("{path}/log?container=b")).await;
    assert_eq!(waits.message(), r#"container "b" in pod "p" is waiting to start: ContainerCreating"#);
    let status = json!({"status": {"containerStatuses": [
        {"name": "b", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "ready": true, "restartCount": 0, "image": "x", "imageID": ""}]}});
    let told = client.patch(&format!("{path}/status"), "strategic-merge-patch", &status).await;
    assert_eq!(told.code, 200, "{told:?}");
    let log = client.get(&format!("{path}/log?container=b&tailLines=3")).await;
    assert_eq!(log.body, "p b tail=Some(3)\n");

    let going = client.send("DELETE", &path, &json!({"gracePeriodSeconds": 5})).await.json();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 5, "a bound pod gets its time");
    let gone = client.send("DELETE", &path, &json!({"gracePeriodSeconds": 0})).await;
    assert_eq!((gone.code, client.get(&path).await.code), (200, 404));
    server.stop().await;
}

#[tokio::test]
async fn discovery_and_tables_are_what_kubectl_reads() {
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let core = client.raw("GET", "/api", &[("accept", aggregated)], Bytes::new()).await.json();
    let resources = core["items"][0]["versions"][0]["resources"].as_array().expect("resources").clone();
    assert!(resources.iter().any(|row| row["resource"] == "pods" && row["scope"] == "Namespaced"), "{core}");
    let old = client.get("/api/v1").await.json();
    assert_eq!(old["kind"], "APIResourceList");
    let index = client.get("/openapi/v3").await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a url").to_owned();
    let schema = client.get(&url).await.json();
    assert!(schema["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());

    make_maps(&mut client, &["a"]).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = client.raw("GET", MAPS, &[("accept", table)], Bytes::new()).await.json();
    assert_eq!(
        (&table["kind"], &table["rows"][0]["object"]["kind"]),
        (&json!("Table"), &json!("PartialObjectMetadata"))
    );
    let protobuf = client.raw("GET", MAPS, &[("accept", "application/vnd.kubernetes.protobuf")], Bytes::new()).await;
    assert_eq!(protobuf.code, 406);
    let yaml = client.raw("GET", &format!("{MAPS}/a"), &[("accept", "application/yaml")], Bytes::new()).await;
    assert!(yaml.body.starts_with(b"apiVersion: v1\n"), "{yaml:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_watch_that_nobody_reads_is_given_up() {
    let limits = Limits { stall_time_max: Duration::from_millis(50), ..Limits::default() };
    let server = Server::start_with(limits).await;
    let mut client = server.client(Who::Certificate).await;
    let mut watch = server.client(Who::Certificate).await.watch(&format!("{MAPS}?watch=true")).await;
    let mut value = client.send("POST", MAPS, &config_map("big", json!({}))).await.json();
    let changes = 40;
    for change in 0..changes {
        // more than sockets and queues hold
        value["data"]["k"] = format!("{change}{}", "x".repeat(900_000)).into();
        value["metadata"]["resourceVersion"] = Value::Null;
        let put = client.send("PUT", &format!("{MAPS}/big"), &value).await;
        assert_eq!(put.code, 200);
    }
    let mut seen = 0;
    while watch.try_next().await.is_some() {
        seen += 1;
    }
    assert!(seen < changes, "the watch got all {seen} changes late");
    server.stop().await;
}

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn request(name: &str) -> Value {
    use base64::Engine;
    let pem = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": base64::engine::general_purpose::STANDARD.encode(pem), "usages": ["client auth"],
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "username": "root", "groups": ["system:masters"],
        },
    })
}

#[tokio::test]
async fn who_holds_a_bootstrap_token_may_ask_for_a_certificate_and_nothing_else() {
    let server = Server::start().await;
    let mut admin = server.client(Who::Certificate).await;
    let authority = server.client(Who::Anonymous).await.get("/cacerts").await;
    assert_eq!((authority.code, &authority.body[..]), (200, support::CA_PEM.as_bytes()));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}});
    admin.send("POST", "/api/v1/namespaces", &namespace).await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token", "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        },
    });
    let mut joining = server.client(Who::Token("abcdef.0123456789abcdef")).await;
    assert_eq!(joining.send("POST", REQUESTS, &request("mine")).await.code, 401, "nobody made that token yet");
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    assert_eq!(admin.send("POST", secrets, &secret).await.code, 201);
    let made = joining.send("POST", REQUESTS, &request("mine")).await;
    assert_eq!(made.code, 201, "{made:?}");
    let spec = made.json()["spec"].clone();
    assert_eq!(spec["username"], "system:bootstrap:abcdef", "who asks is not the client's to say");
    assert_eq!(spec["groups"], json!(["system:bootstrappers", "system:authenticated"]));
    assert_eq!(joining.get(&format!("{REQUESTS}/mine")).await.code, 200);
    assert_eq!(admin.send("POST", REQUESTS, &request("theirs")).await.code, 201);
    let others = joining.get(&format!("{REQUESTS}/theirs")).await;
    assert_eq!(
        (others.code, others.message().as_str()),
        (
            403,
            "certificatesigningrequests.certificates.k8s.io \"theirs\" is forbidden: User \"system:bootstrap:abcdef\" cannot \
         get resource \"certificatesigningrequests\" in API group \"certificates.k8s.io\" at the cluster scope",
        )
    );
    for path in [REQUESTS, secrets, "/api/v1/nodes", MAPS] {
        assert_eq!(joining.get(path).await.code, 403, "{path}");
    }
    let approval = format!("{REQUESTS}/mine/approval");
    let mut approved = made.json();
    approved["status"]["conditions"] = json!([{"type": "Approved", "status": "True"}]);
    assert_eq!(joining.send("PUT", &approval, &approved).await.code, 403);
    assert_eq!(admin.send("PUT", &format!("{REQUESTS}/mine/status"), &approved).await.code, 422);
    let answer = admin.send("PUT", &approval, &approved).await;
    assert_eq!((answer.code, &answer.json()["status"]["conditions"][0]["type"]), (200, &json!("Approved")));
    assert_eq!(admin.send("DELETE", &format!("{secrets}/bootstrap-token-abcdef"), &json!({})).await.code, 200);
    assert_eq!(joining.get(&format!("{REQUESTS}/mine")).await.code, 401, "a token that is taken back");
    server.stop().await;
}

#[tokio::test]
async fn others_decide_about_their_users() {
    let server = Server::start().await;
    let mut carol = server.client(Who::Token(support::QUARANTINED_TOKEN)).await;
    assert_eq!(carol.get("/api/v1/nodes").await.code, 200);
    assert_eq!(carol.get("/api/v1/namespaces/default/secrets").await.code, 403);
    let mut admin = server.client(Who::Certificate).await;
    let mut asked = async |verb: &str, resource: &str| {
        let attributes = json!({"verb": verb, "resource": resource, "namespace": "default"});
        let review =
            json!({"spec": {"user": "carol", "groups": [support::QUARANTINED], "resourceAttributes": attributes}});
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        admin.send("POST", path, &review).await.json()["status"]["allowed"].clone()
    };
    assert_eq!((asked("get", "nodes").await, asked("delete", "nodes").await), (json!(true), json!(false)));
    server.stop().await;
}
