//! Exec, attach, portforward, ephemeral containers and metrics over real TLS: by clients of our own, and by kubectl where it is
//! installed.
#![allow(clippy::unwrap_used)]

mod support;

use api::client::{Socket, Tunnel, open, spdy};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use spdy::{Connection, Headers, Side};
use std::time::Duration;
use support::{BREAKING_BYTES, Server, Who};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const POD: &str = "/api/v1/namespaces/default/pods/p";
const LARGE: usize = 10 * 1024 * 1024;

/// A server with a running pod `p` (container `a`) on node `n`, and `waiting` that is nowhere.
async fn start() -> Server {
    start_with(api::Limits { usage_time_max: Duration::from_millis(200), ..api::Limits::default() }).await
}

async fn start_with(limits: api::Limits) -> Server {
    let server = Server::start_with(limits).await;
    let mut client = server.client(Who::Certificate).await;
    for (name, node) in [("p", Some("n")), ("waiting", None), ("done", Some("n")), ("lost", Some("dead"))] {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"of": name}},
            "spec": {"containers": [{"name": "a", "image": "x"}]},
        });
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        let made = client.send("POST", "/api/v1/namespaces/default/pods", &pod).await;
        assert_eq!(made.code, 201, "{made:?}");
        if name == "p" {
            *server.pod_uid.lock().unwrap() = made.json()["metadata"]["uid"].as_str().unwrap().to_owned();
        }
        let (phase, state) = match name {
            "p" => ("Running", json!({"running": {}})),
            "done" => ("Succeeded", json!({"terminated": {"exitCode": 0}})),
            _ => continue,
        };
        let status = json!({"status": {"phase": phase, "containerStatuses": [{
            "name": "a", "image": "x", "imageID": "", "ready": true, "restartCount": 0, "state": state,
        }]}});
        let path = format!("/api/v1/namespaces/default/pods/{name}/status");
        assert_eq!(client.patch(&path, "merge-patch", &status).await.code, 200);
    }
    for node in ["n", "dead"] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"l": node}}});
        assert_eq!(client.send("POST", "/api/v1/nodes", &node).await.code, 201);
    }
    server
}

async fn websocket(server: &Server, path: &str, protocol: &str) -> Socket<TokioIo<Upgraded>> {
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", protocol),
    ];
    let headers = if protocol.is_empty() { &headers[..4] } else { &headers[..] };
    let client = server.client(Who::Certificate).await;
    let (answer, io) = client.upgrade("GET", path, headers).await.unwrap();
    assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(answer.get("sec-websocket-protocol").map_or("", |value| value.to_str().unwrap()), protocol);
    open(io, Role::Client).await
}

async fn spdy_client(server: &Server, path: &str, protocol: &str) -> Connection {
    let headers = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", protocol)];
    let client = server.client(Who::Certificate).await;
    let (answer, io) = client.upgrade("POST", path, &headers).await.unwrap();
    assert_eq!(answer["upgrade"], "SPDY/3.1");
    assert_eq!(answer["x-stream-protocol-version"], protocol);
    Connection::start(io, Side::Client, spdy::Limits::default()).unwrap()
}

/// What came on each channel until the server hung up.
async fn channels(mut socket: Socket<TokioIo<Upgraded>>) -> Vec<Vec<u8>> {
    let mut channels = vec![Vec::new(); 256];
    while let Some(Ok(message)) = socket.next().await {
        if message.is_binary() || message.is_text() {
            let bytes = message.into_data();
            channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    channels
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_websocket_carries_a_program() {
    let server = start().await;
    for (protocol, query, stdout, stderr, last) in [
        ("v4.channel.k8s.io", "command=say&command=hi", "hi", "", r#"{"metadata":{},"status":"Success"}"#),
        ("v4.channel.k8s.io", "command=warn&command=no", "", "no", r#"{"metadata":{},"status":"Success"}"#),
        ("channel.k8s.io", "command=say&command=hi", "hi", "", ""),
        ("", "command=say&command=hi", "hi", "", ""),
        (
            "v3.channel.k8s.io",
            "command=exit&command=7",
            "",
            "",
            "command terminated with non-zero exit code: exit status 7",
        ),
    ] {
        let path = format!("{POD}/exec?{query}&stdout=true&stderr=true");
        let said = channels(websocket(&server, &path, protocol).await).await;
        assert_eq!((text(&said[1]), text(&said[2]), text(&said[3])), (stdout, stderr, last), "{protocol} {query}");
    }
    let path = format!("{POD}/exec?command=exit&command=3&stdout=true");
    let said = channels(websocket(&server, &path, "v5.channel.k8s.io").await).await;
    let status: Value = serde_json::from_slice(&said[3]).unwrap();
    assert_eq!(
        status,
        json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: exit status 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        })
    );
    let path = format!("{POD}/exec?command=break&stdout=true");
    let said = channels(websocket(&server, &path, "v4.channel.k8s.io").await).await;
    let status: Value = serde_json::from_slice(&said[3]).unwrap();
    assert_eq!(status["message"], "Internal error occurred: error executing command in container: it broke");
    server.stop().await;
}

#[tokio::test]
async fn input_goes_both_ways_and_ends() {
    let server = start().await;
    let path = format!("{POD}/exec?command=cat&stdin=true&stdout=true");
    let (mut sink, mut messages) = websocket(&server, &path, "v5.channel.k8s.io").await.split();
    let sending = tokio::spawn(async move {
        for at in 0..LARGE / 32768 {
            let mut message = vec![at as u8; 32769];
            message[0] = 0;
            sink.send(Message::Binary(message.into())).await.unwrap();
        }
        sink.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
        sink
    });
    let (mut read, mut last) = (0, Vec::new());
    while let Some(Ok(message)) = messages.next().await {
        let bytes = message.into_data();
        match bytes.first() {
            Some(1) => {
                for byte in &bytes[1..] {
                    assert_eq!(*byte, (read / 32768) as u8);
                    read += 1;
                }
            }
            Some(3) => last = bytes[1..].to_vec(),
            _ => {}
        }
    }
    assert_eq!((read, text(&last)), (LARGE, r#"{"metadata":{},"status":"Success"}"#));
    drop(sending.await.unwrap());

    // base64, as browsers that cannot do binary once did
    let mut socket = websocket(&server, &path, "base64.channel.k8s.io").await;
    socket.send(Message::text("0aGVsbG8=")).await.unwrap();
    let mut said = String::new();
    while !said.contains("aGVsbG8=") {
        said.push_str(socket.next().await.unwrap().unwrap().to_text().unwrap());
    }
    assert_eq!(said, "11aGVsbG8=");
    drop(socket);

    let path = format!("{POD}/exec?command=sizes&stdin=true&stdout=true&tty=true");
    let mut socket = websocket(&server, &path, "v5.channel.k8s.io").await;
    for message in [&b"\x04{\"Width\":80,\"Height\":24}"[..], b"\x04nonsense", b"\x09?", b"", b"\xff\x00"] {
        socket.send(Message::Binary(message.into())).await.unwrap();
    }
    assert_eq!(text(&channels(socket).await[1]), "80x24 ");

    let path = format!("{POD}/attach?stdin=true&stdout=true");
    let mut socket = websocket(&server, &path, "v5.channel.k8s.io").await;
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(b"\xff\0"))).await.unwrap();
    assert_eq!(text(&channels(socket).await[1]), "hello");
    server.stop().await;
}

#[tokio::test]
async fn spdy_carries_a_program() {
    let server = start().await;
    let path = format!("{POD}/exec?command=cat&stdin=true&stdout=true&stderr=true");
    let connection = spdy_client(&server, &path, "v4.channel.k8s.io").await;
    let opener = connection.opener();
    let mut streams = Vec::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        streams.push(opener.open(Headers::new([("streamType", kind)]), false).await.unwrap().split());
    }
    let (stdin_reading, stdin) = streams.remove(1);
    let sending = tokio::spawn(async move {
        for _ in 0..LARGE / 65536 {
            stdin.write(vec![b'y'; 65536].into()).await.unwrap();
        }
        stdin.finish().await.unwrap();
        (stdin, stdin_reading)
    });
    let mut all = Vec::new();
    for at in [1, 2, 0] {
        let mut bytes = Vec::new();
        while let Some(piece) = streams[at].0.read().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        all.push(bytes);
    }
    assert_eq!((all[0].len(), all[1].len(), text(&all[2])), (LARGE, 0, r#"{"metadata":{},"status":"Success"}"#));
    drop(sending.await.unwrap());
    connection.close().await;
    server.stop().await;
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy_and_through_a_websocket() {
    let server = start().await;
    let path = format!("{POD}/portforward");
    let plain = spdy_client(&server, &path, "portforward.k8s.io").await;
    let socket = websocket(&server, &path, "SPDY/3.1+portforward.k8s.io").await;
    let tunnelled = Connection::start(Tunnel::new(socket), Side::Client, spdy::Limits::default()).unwrap();
    for connection in [plain, tunnelled] {
        let mut forwards = tokio::task::JoinSet::new();
        for at in 0..20 {
            let opener = connection.opener();
            forwards.spawn(async move {
                let headers =
                    |kind: &str| Headers::new([("streamType", kind), ("port", "80"), ("requestID", &at.to_string())]);
                let (mut errors, _) = opener.open(headers("error"), true).await.unwrap().split();
                let (mut data, writing) = opener.open(headers("data"), false).await.unwrap().split();
                let sending = async {
                    for _ in 0..16 {
                        writing.write(vec![at; 32768].into()).await.unwrap();
                    }
                    writing.finish().await.unwrap();
                };
                let reading = async {
                    let mut bytes = Vec::new();
                    while let Some(piece) = data.read().await {
                        bytes.extend_from_slice(&piece.unwrap());
                    }
                    bytes
                };
                let ((), bytes) = tokio::join!(sending, reading);
                // the pod's side spoke after ours had ended
                assert!(bytes.ends_with(b"heard 524288"), "{at}: {} bytes", bytes.len());
                assert!(bytes[..524_288].iter().all(|byte| *byte == at));
                assert_eq!(errors.read().await, None);
            });
        }
        while let Some(done) = forwards.join_next().await {
            done.unwrap();
        }
        let opener = connection.opener();
        let refused = Headers::new([("streamtype", "error"), ("port", "1"), ("requestid", "r")]);
        let (mut errors, _) = opener.open(refused, true).await.unwrap().split();
        let refused = Headers::new([("streamtype", "data"), ("port", "1"), ("requestid", "r")]);
        let _data = opener.open(refused, false).await.unwrap();
        let said = errors.read().await.unwrap().unwrap();
        let uid = server.pod_uid.lock().unwrap().clone();
        assert_eq!(text(&said), format!("error forwarding port 1 to pod p, uid {uid}: connection refused"));
        for bad in [&[("streamtype", "data")][..], &[("streamtype", "data"), ("port", "0")], &[("port", "80")]] {
            assert!(opener.open(Headers::new(bad.to_vec()), false).await.is_err(), "{bad:?}");
        }
        connection.close().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let server = start().await;
    let path = format!("{POD}/portforward?ports=80&ports=1");
    let mut socket = websocket(&server, &path, "v4.channel.k8s.io").await;
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    let mut said = vec![Vec::new(); 4];
    while said[0].len() < 7 || said[3].len() < 3 {
        let bytes = socket.next().await.unwrap().unwrap().into_data();
        if let Some(channel) = bytes.first() {
            said[usize::from(*channel)].extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!((&said[0][..], &said[1][..], &said[2][..]), (&b"\x50\0hello"[..], &b"\x50\0"[..], &b"\x01\0"[..]));
    assert!(text(&said[3][2..]).starts_with("error forwarding port 1 to pod p, uid "));
    drop(socket);

    let mut socket = websocket(&server, &format!("{POD}/portforward?ports=80"), "v5.channel.k8s.io").await;
    for message in [&b"\0hello"[..], b"\xff\0"] {
        socket.send(Message::Binary(message.into())).await.unwrap();
    }
    let said = channels(socket).await;
    assert_eq!((&said[0][..], &said[255][..]), (&b"\x50\0helloheard 5"[..], &b"\0"[..]));
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_the_connection_leaves_http() {
    let server = start().await;
    let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")];
    let none: [(&str, &str); 0] = [];
    let odd = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9")];
    for (path, headers, code, message) in [
        ("p/exec?command=say&stdout=1", &none[..], 400, "Upgrade request required"),
        ("p/exec?command=say", &spdy[..], 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("p/exec?stdout=1", &spdy[..], 400, "you must specify at least one command for the container"),
        ("p/exec?command=say&stdout=1&container=b", &spdy[..], 400, "container b is not valid for pod p"),
        ("x/exec?command=say&stdout=1", &spdy[..], 404, "pods \"x\" not found"),
        ("waiting/exec?command=say&stdout=1", &spdy[..], 400, "pod waiting does not have a host assigned"),
        ("waiting/portforward", &spdy[..], 400, "pod waiting does not have a host assigned"),
        (
            "done/exec?command=say&stdout=1",
            &spdy[..],
            400,
            "cannot exec into a container in a completed pod; current phase is Succeeded",
        ),
        ("p/exec?command=absent&stdout=1", &spdy[..], 500, "unable to upgrade connection: container not found (\"a\")"),
        ("p/portforward", &spdy[1..], 400, "Upgrade request required"),
        ("p/exec/more?command=say&stdout=1", &spdy[..], 404, ""),
        ("p/portforward?ports=0", &spdy[..], 400, "port \"0\" must be > 0"),
    ] {
        let client = server.client(Who::Certificate).await;
        let path = format!("/api/v1/namespaces/default/pods/{path}");
        let answer = client.upgrade("POST", &path, headers).await.expect_err(&path);
        let said = if message.is_empty() { String::new() } else { answer.message() };
        assert_eq!((answer.code, said.as_str()), (code, message), "{path}");
    }
    let path = format!("{POD}/exec?command=say&stdout=1");
    let answer = server.client(Who::Certificate).await.upgrade("POST", &path, &odd).await.unwrap_err();
    assert_eq!(answer.code, 403);
    assert!(text(&answer.body).contains("unable to negotiate protocol: client supports [v9]"), "{answer:?}");
    let answer = server.client(Who::Anonymous).await.upgrade("POST", &path, &spdy).await.unwrap_err();
    assert_eq!(answer.code, 403);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_program() {
    let server = start().await;
    let path = format!("{POD}/exec?command=sleep&stdout=true");
    let socket = websocket(&server, &path, "v5.channel.k8s.io").await;
    let connection = spdy_client(&server, &path, "v4.channel.k8s.io").await;
    drop((socket, connection));
    server.rest().await;
    let held = websocket(&server, &path, "v5.channel.k8s.io").await;
    // a session that goes on does not hold the server's end up
    let stopped = tokio::time::timeout(Duration::from_secs(4), server.stop()).await;
    assert!(stopped.is_ok());
    drop(held);
}

#[tokio::test]
async fn a_pause_ends_no_session_and_sessions_are_counted() {
    let stall_time_max = Duration::from_millis(50);
    let server = start_with(api::Limits { stall_time_max, sessions_max: 1, ..api::Limits::default() }).await;
    let path = format!("{POD}/exec?command=flood&command=67108864&stdout=true");
    let mut socket = websocket(&server, &path, "v5.channel.k8s.io").await;
    // nothing is read meanwhile, and far more waits than sockets hold
    tokio::time::sleep(stall_time_max * 10).await;
    let second = server.client(Who::Certificate).await;
    let headers =
        [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")];
    let refused = second.upgrade("POST", &path, &headers).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (429, "too many open exec, attach and portforward sessions")
    );
    let mut read = 0;
    while let Some(Ok(message)) = socket.next().await {
        let bytes = message.into_data();
        read += if bytes.first() == Some(&1) { bytes.len() - 1 } else { 0 };
    }
    assert_eq!(read, 67_108_864);
    drop(socket);
    server.stop().await;
}

#[tokio::test]
async fn containers_are_added_to_a_pod_that_runs() {
    let server = start().await;
    let mut client = server.client(Who::Certificate).await;
    let path = format!("{POD}/ephemeralcontainers");
    let added = json!({"spec": {"ephemeralContainers": [
        {"name": "debugger", "image": "busybox:1", "targetContainerName": "a", "stdin": true, "tty": true},
    ]}});
    let patched = client.patch(&path, "strategic-merge-patch", &added).await;
    assert_eq!(patched.code, 200, "{patched:?}");
    let pod = client.get(&path).await.json();
    let container = &pod["spec"]["ephemeralContainers"][0];
    assert_eq!(
        (&container["imagePullPolicy"], &container["terminationMessagePolicy"], &pod["spec"]["containers"][0]["name"]),
        (&json!("IfNotPresent"), &json!("File"), &json!("a"))
    );
    let removed = client.patch(&path, "merge-patch", &json!({"spec": {"ephemeralContainers": null}})).await;
    assert_eq!(
        (removed.code, removed.message().as_str()),
        (
            422,
            "Pod \"p\" is invalid: spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debugger\" may not be removed\n"
        )
    );
    // through the pod itself they do not change, and through theirs nothing else does
    let mut whole = pod.clone();
    whole["spec"]["ephemeralContainers"] = json!([]);
    assert_eq!(client.send("PUT", POD, &whole).await.code, 200);
    let mut more = pod.clone();
    let containers = more["spec"]["ephemeralContainers"].as_array_mut().unwrap();
    containers.push(json!({"name": "second", "image": "x"}));
    more["spec"]["containers"][0]["image"] = "other".into();
    more["metadata"]["labels"] = json!({"of": "q"});
    let put = client.send("PUT", &path, &more).await;
    assert_eq!(put.code, 200, "{put:?}");
    let pod = put.json();
    assert_eq!(
        (
            &pod["spec"]["ephemeralContainers"][1]["name"],
            &pod["spec"]["containers"][0]["image"],
            &pod["metadata"]["labels"]["of"]
        ),
        (&json!("second"), &json!("x"), &json!("p"))
    );
    let status = json!({"status": {"ephemeralContainerStatuses": [{
        "name": "debugger", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"running": {}},
    }]}});
    let written = client.patch(&format!("{POD}/status"), "merge-patch", &status).await.json();
    assert_eq!(written["status"]["ephemeralContainerStatuses"][0]["name"], "debugger");
    let log = client.get(&format!("{POD}/log?container=debugger")).await;
    assert_eq!((log.code, text(&log.body)), (200, "p debugger tail=None\n"));
    let broken = client.get(&format!("{POD}/log?container=a&limitBytes={BREAKING_BYTES}")).await;
    assert_eq!((broken.code, text(&broken.body)), (200, "begun\nthe disk is gone\n"), "it says why it ends");
    server.stop().await;
}

#[tokio::test]
async fn metrics_are_asked_of_nodes() {
    let server = start().await;
    let mut client = server.client(Who::Certificate).await;
    let base = "/apis/metrics.k8s.io/v1beta1";
    let group = client.get("/apis/metrics.k8s.io").await.json();
    assert_eq!(group["preferredVersion"]["groupVersion"], "metrics.k8s.io/v1beta1");
    let resources = client.get(base).await.json();
    assert_eq!(
        (&resources["resources"][0]["kind"], &resources["resources"][1]["name"]),
        (&json!("NodeMetrics"), &json!("pods"))
    );
    let node = client.get(&format!("{base}/nodes/n")).await.json();
    assert_eq!(
        node,
        json!({
            "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {"name": "n", "labels": {"l": "n"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
            "timestamp": "2026-01-02T03:04:05Z", "window": "10s", "usage": {"cpu": "123456789n", "memory": "3072Ki"},
        })
    );
    let nodes = client.get(&format!("{base}/nodes")).await.json();
    let names: Vec<&Value> = nodes["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, [&json!("n")], "a node that does not answer is left out");
    let pods = client.get(&format!("{base}/namespaces/default/pods?labelSelector=of%3Dp")).await.json();
    assert_eq!(
        (&pods["kind"], &pods["items"]),
        (
            &json!("PodMetricsList"),
            &json!([{
                "metadata": {
                    "name": "p", "namespace": "default", "labels": {"of": "p"}, "creationTimestamp": "2026-01-02T03:04:05Z",
                },
                "timestamp": "2026-01-02T03:04:05Z", "window": "10s",
                "containers": [{"name": "a", "usage": {"cpu": "1500n", "memory": "2Ki"}}],
            }])
        )
    );
    for (path, code, message) in [
        ("namespaces/default/pods/done", 404, "podmetrics.metrics.k8s.io \"default/done\" not found"),
        ("nodes/x", 404, "nodemetrics.metrics.k8s.io \"x\" not found"),
    ] {
        let answer = client.get(&format!("{base}/{path}")).await;
        assert_eq!((answer.code, answer.message().as_str()), (code, message));
    }
    assert_eq!(client.send("DELETE", &format!("{base}/nodes/n"), &json!({})).await.code, 405);
    server.stop().await;
}
