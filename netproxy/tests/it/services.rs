//! Services: TCP, UDP, in-process HTTP; endpoints come and go.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use netproxy::{About, Body, HandlerError, HealthCheck, Protocol, Proxy, ServiceRoute, full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;

use crate::support::{Pod, address, at, client, config, counting, echo, get, named, proxy, routes, service, tcp, text};

#[tokio::test]
async fn requests_of_one_connection_are_balanced_over_pods() {
    let proxy = proxy();
    let (one, ones) = counting("one");
    let (two, twos) = counting("two");
    let one = proxy.serve_pod(at(0), one);
    let two = proxy.serve_pod(at(0), two);
    let vip = at(8000);
    proxy.set_routes(routes(vec![tcp("web", vip, &[one.addr(), two.addr()])]));
    let client = client();
    for _ in 0..20 {
        assert_eq!(get(&client, &format!("http://{vip}/")).await.0, StatusCode::OK);
    }
    assert_eq!((ones.load(Ordering::SeqCst), twos.load(Ordering::SeqCst)), (10, 10));
    assert_eq!(get(&client, &format!("http://{}/", one.addr())).await.1, "one");
}

#[tokio::test]
async fn without_endpoints_a_service_refuses() {
    let proxy = proxy();
    let pod = proxy.serve_pod(at(0), named("pod"));
    let vip = at(8000);
    let refused = async || TcpStream::connect(vip).await.unwrap_err().kind() == ErrorKind::ConnectionRefused;
    proxy.set_routes(routes(vec![tcp("web", vip, &[])]));
    assert!(refused().await);
    assert!(proxy.is_service(vip) && proxy.pick(vip.ip(), vip).is_none());
    proxy.set_routes(routes(vec![tcp("web", vip, &[pod.addr()])]));
    assert_eq!(get(&client(), &format!("http://{vip}/")).await.1, "pod");
    assert_eq!(proxy.pick(vip.ip(), vip), Some(pod.addr()));
    proxy.set_routes(routes(vec![]));
    // The listener's task ends a moment later.
    while !refused().await {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_under_load_drops_no_request() {
    const ROUNDS: usize = 30;
    const CLIENTS: usize = 8;
    let proxy = proxy();
    let slow = || {
        Arc::new(Pod(|request: Request<Body>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok(Response::new(full(body)))
        }))
    };
    let vip = at(8000);
    let mut pods = vec![proxy.serve_pod(at(0), slow()), proxy.serve_pod(at(0), slow())];
    let route = |pods: &[netproxy::PodGuard]| {
        routes(vec![tcp("web", vip, &pods.iter().map(netproxy::PodGuard::addr).collect::<Vec<_>>())])
    };
    proxy.set_routes(route(&pods));
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (done, answered) = (done.clone(), answered.clone());
        clients.spawn(async move {
            let client = client();
            while !done.load(Ordering::SeqCst) {
                let request = Request::post(format!("http://{vip}/")).body(full("payload")).unwrap();
                assert_eq!(text(client.request(request).await.unwrap()).await, (StatusCode::OK, "payload".into()));
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for round in 0..ROUNDS {
        // Each round meets every client in the middle of something.
        let until = answered.load(Ordering::SeqCst) + 2 * CLIENTS;
        while answered.load(Ordering::SeqCst) < until {
            assert!(clients.try_join_next().is_none(), "a client failed");
            tokio::task::yield_now().await;
        }
        let new = proxy.serve_pod(at(0), slow());
        let old = std::mem::replace(&mut pods[round % 2], new);
        if round % 3 == 0 {
            // Even if the pod goes before the routes know.
            old.drain().await;
            proxy.set_routes(route(&pods));
        } else {
            proxy.set_routes(route(&pods));
            old.drain().await;
        }
    }
    done.store(true, Ordering::SeqCst);
    // Panics if any client did.
    clients.join_all().await;
}

#[tokio::test]
async fn a_request_handed_back_reaches_another_pod_whole() {
    let proxy = proxy();
    let stopping = Arc::new(Pod(|request| async { Err(HandlerError::Stopping(Some(Box::new(request)))) }));
    let stopping = proxy.serve_pod(at(0), stopping);
    let good = proxy.serve_pod(at(0), echo());
    let vip = at(8000);
    proxy.set_routes(routes(vec![tcp("web", vip, &[stopping.addr(), good.addr()])]));
    let client = client();
    for _ in 0..4 {
        let request = Request::post(format!("http://{vip}/")).body(full("whole")).unwrap();
        assert_eq!(text(client.request(request).await.unwrap()).await, (StatusCode::OK, "whole".into()));
    }
    proxy.set_routes(routes(vec![tcp("web", vip, &[stopping.addr()])]));
    assert_eq!(get(&client, &format!("http://{vip}/")).await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn errors_of_pods_become_statuses() {
    let proxy = proxy();
    let pod = proxy.serve_pod(
        at(0),
        Arc::new(Pod(|request: Request<Body>| async move {
            Err(match request.uri().path() {
                "/busy" => HandlerError::Busy(None),
                "/late" => HandlerError::Timeout,
                _ => HandlerError::Failed("trapped".into()),
            })
        })),
    );
    let client = client();
    for (path, status) in [("busy", 503), ("late", 504), ("trap", 502)] {
        assert_eq!(get(&client, &format!("http://{}/{path}", pod.addr())).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn draining_waits_for_what_is_in_flight() {
    let proxy = proxy();
    let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, wait) = (entered.clone(), leave.clone());
    let pod = proxy.serve_pod(
        at(0),
        Arc::new(Pod(move |_| {
            let (inside, wait) = (inside.clone(), wait.clone());
            async move {
                inside.notify_one();
                wait.notified().await;
                Ok(Response::new(full("done")))
            }
        })),
    );
    let addr = pod.addr();
    let asking = tokio::spawn(async move { get(&client(), &format!("http://{addr}/")).await });
    entered.notified().await;
    let mut drained = std::pin::pin!(pod.drain());
    assert!(futures::poll!(drained.as_mut()).is_pending());
    while TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    leave.notify_one();
    drained.await;
    assert_eq!(asking.await.unwrap(), (StatusCode::OK, "done".into()));
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served() {
    let proxy = proxy();
    let pod = proxy.serve_pod(at(0), echo());
    let vip = at(8000);
    proxy.set_routes(routes(vec![tcp("web", vip, &[pod.addr()])]));
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = Request::post(format!("http://{vip}/")).body(full("two")).unwrap();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    assert_eq!(text(response).await.1, "two");
}

/// Says everything back in capitals until the client has nothing more to say, then signs off: that needs a half-close.
async fn upper_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind(at(0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 100];
                loop {
                    match stream.read(&mut bytes).await.unwrap() {
                        0 => break stream.write_all(b".").await.unwrap(),
                        length => stream.write_all(&bytes[..length].to_ascii_uppercase()).await.unwrap(),
                    }
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn tcp_goes_to_a_living_endpoint_and_outlives_its_route() {
    let proxy = proxy();
    let dead = at(9);
    let living = upper_server().await;
    let vip = at(8000);
    proxy.set_routes(routes(vec![tcp("raw", vip, &[dead, living])]));
    for _ in 0..6 {
        let mut stream = TcpStream::connect(vip).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "HELLO.");
    }
    let mut stream = TcpStream::connect(vip).await.unwrap();
    stream.write_all(b"a").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'A');
    proxy.set_routes(routes(vec![]));
    stream.write_all(b"b").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "B.");
}

#[tokio::test]
async fn only_dead_endpoints_reset_the_connection() {
    let proxy = proxy();
    let vip = at(8000);
    proxy.set_routes(routes(vec![tcp("raw", vip, &[at(9), at(9)])]));
    let mut stream = TcpStream::connect(vip).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn udp_sessions_stay_with_their_endpoint() {
    let proxy = proxy();
    let mut endpoints = Vec::new();
    for name in [b'a', b'b'] {
        let socket = UdpSocket::bind(at(0)).await.unwrap();
        endpoints.push(socket.local_addr().unwrap());
        tokio::spawn(async move {
            let mut packet = [0; 100];
            while let Ok((length, from)) = socket.recv_from(&mut packet[1..]).await {
                packet[0] = name;
                socket.send_to(&packet[..=length], from).await.unwrap();
            }
        });
    }
    let vip = at(5353);
    proxy.set_routes(routes(vec![service("dgram", Protocol::Udp, vip, &endpoints)]));
    let ask = async |socket: &UdpSocket| {
        socket.send(b"x").await.unwrap();
        let mut answer = [0; 100];
        let length = socket.recv(&mut answer).await.unwrap();
        assert_eq!(&answer[1..length], b"x");
        answer[0]
    };
    let mut seen = HashSet::new();
    for _ in 0..4 {
        let socket = UdpSocket::bind(at(0)).await.unwrap();
        socket.connect(vip).await.unwrap();
        let first = ask(&socket).await;
        assert_eq!(ask(&socket).await, first);
        seen.insert(first);
        // The endpoint goes: the session moves on.
        if seen.len() == 2 {
            proxy.set_routes(routes(vec![service("dgram", Protocol::Udp, vip, &endpoints[..1])]));
            assert_eq!(ask(&socket).await, b'a');
            return;
        }
    }
    panic!("all sessions went to one endpoint");
}

#[tokio::test]
async fn affinity_keeps_a_client_at_its_pod() {
    let proxy = proxy();
    let one = proxy.serve_pod(at(0), named("one"));
    let two = proxy.serve_pod(at(0), named("two"));
    let vip = at(8000);
    let mut route = tcp("web", vip, &[one.addr(), two.addr()]);
    route.affinity = Some(Duration::from_secs(10800));
    proxy.set_routes(routes(vec![route]));
    let first = get(&client(), &format!("http://{vip}/")).await.1;
    for _ in 0..6 {
        assert_eq!(get(&client(), &format!("http://{vip}/")).await.1, first);
    }
}

#[tokio::test]
async fn a_taken_port_is_told_once_and_tried_again() {
    let proxy = proxy();
    let pod = proxy.serve_pod(at(0), named("pod"));
    let vip = at(8000);
    let taken = std::net::TcpListener::bind(vip).unwrap();
    let web = || routes(vec![tcp("web", vip, &[pod.addr()])]);
    proxy.set_routes(web());
    let about = About::Service { namespace: "default".into(), name: "web".into(), at: vip };
    let problems = proxy.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].about, about);
    proxy.set_routes(web());
    assert_eq!(proxy.problems(), []);
    drop(taken);
    proxy.set_routes(web());
    assert_eq!(get(&client(), &format!("http://{vip}/")).await.1, "pod");
}

#[tokio::test]
async fn node_ports_listen_on_the_nodes_addresses() {
    let config = crate::support::config();
    let node = config.node_addresses[0];
    let proxy = netproxy::Proxy::new(config);
    let pod = proxy.serve_pod(at(0), named("pod"));
    let mut route = tcp("web", at(8000), &[pod.addr()]);
    route.ports[0].node_port = Some(30080);
    proxy.set_routes(routes(vec![route]));
    assert_eq!(get(&client(), &format!("http://{node}:30080/")).await.1, "pod");
    proxy.shutdown().await;
    assert!(TcpStream::connect((node, 30080)).await.is_err());
}

#[tokio::test]
async fn an_address_passes_from_one_service_to_another_at_once() {
    let proxy = proxy();
    let (one, other) = (proxy.serve_pod(at(0), named("one")), proxy.serve_pod(at(0), named("other")));
    let vip = at(8000);
    for turn in 0..4 {
        let (name, pod) = if turn % 2 == 0 { ("one", &one) } else { ("other", &other) };
        proxy.set_routes(routes(vec![tcp(name, vip, &[pod.addr()])]));
        // A connection of its own: one that is open stays with whom it reached.
        let answer = get(&client(), &format!("http://{vip}/")).await;
        assert_eq!(answer.1, name);
        assert!(proxy.problems().is_empty());
    }
}

#[tokio::test]
async fn a_node_says_whether_it_has_endpoints() {
    let mut config = config();
    let node = address();
    config.node_addresses = vec![node];
    let proxy = Proxy::new(config);
    let port = 30081;
    for (count, status) in [(2, StatusCode::OK), (0, StatusCode::SERVICE_UNAVAILABLE)] {
        let health_check = Some(HealthCheck { port, local_endpoints: count });
        proxy.set_routes(routes(vec![ServiceRoute { health_check, ..tcp("web", at(80), &[]) }]));
        let answer = get(&client(), &format!("http://{node}:{port}/healthz")).await;
        let text = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t}},\n\t\
             \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
        );
        assert_eq!(answer, (status, text));
    }
}
