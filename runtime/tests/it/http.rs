//! HTTP components: answers, streams, failures, bounds.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::common::{Node, argv, body, get, spec, text};
use bytes::Bytes;
use expect_test::expect;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use runtime::{Body, BoxError, Container, ExecError, HandleError, Mount, Shape};

async fn ask(container: &Container, path: &str) -> Result<Response<Body>, HandleError> {
    container.handle(get(path)).await
}

#[tokio::test]
async fn a_fresh_instance_answers_each_request() {
    let node = Node::new();
    let program = node.guest("web.wasm").await;
    assert_eq!(program.shape(), Shape::Http);
    let (mut spec, log) = spec(program, &["web"]);
    spec.env = vec![("A".into(), "1".into())];
    let dir = node.dir.path().join("data");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "content").unwrap();
    spec.mounts = vec![Mount::open(&dir, "/data", true).unwrap()];
    let container = node.start(spec);
    let response = ask(&container, "/").await.unwrap();
    assert_eq!((response.status(), response.body().size_hint().exact()), (StatusCode::OK, Some(6)));
    assert_eq!(text(response).await, "hello\n");
    for _ in 0..3 {
        assert_eq!(text(ask(&container, "/count").await.unwrap()).await, "0");
    }
    assert_eq!(text(ask(&container, "/env").await.unwrap()).await, r#"[("A", "1")] ["web"]"#);
    assert_eq!(text(ask(&container, "/file").await.unwrap()).await, r#"Ok("content")"#);
    assert_eq!(text(ask(&container, "/log").await.unwrap()).await, "");
    assert_eq!(log.text(), "logged\n");
    let usage = container.usage();
    assert!(usage.cpu_ns > 0);
    assert_eq!(usage.memory_bytes, 0, "no request, no memory");
}

#[tokio::test]
async fn an_instance_is_reused_where_allowed() {
    let node = Node::new();
    let (mut spec, _) = spec(node.guest("web.wasm").await, &["web"]);
    spec.reuse_requests_max = 3;
    let container = node.start(spec);
    let mut counts = Vec::new();
    for _ in 0..5 {
        counts.push(text(ask(&container, "/count").await.unwrap()).await);
    }
    assert_eq!(counts, ["0", "1", "2", "0", "1"]);
    // One that trapped is not used again.
    ask(&container, "/trap").await.unwrap_err();
    assert_eq!(text(ask(&container, "/count").await.unwrap()).await, "0");
    container.stop();
    assert_eq!(container.exited().await.code, 0);
    assert_eq!(container.usage().memory_bytes, 0);
}

#[tokio::test]
async fn a_guest_sees_no_headers_of_the_connection() {
    let node = Node::new();
    let (spec, _) = spec(node.guest("web.wasm").await, &["web"]);
    let container = node.start(spec);
    let request = Request::builder()
        .method("PUT")
        .uri("/request")
        .header("host", "example.com:8080")
        .header("connection", "upgrade")
        .header("transfer-encoding", "chunked")
        .header("x-two", "1")
        .header("x-two", "2");
    let response = container.handle(request.body(body("")).unwrap()).await.unwrap();
    expect![[r#"
        Method::Put Some(Scheme::Http) Some("example.com:8080")
        x-two: 1
        x-two: 2"#]]
    .assert_eq(&text(response).await);
    // HTTP/1.0
    let response = container.handle(Request::get("/request").body(body("")).unwrap()).await.unwrap();
    assert_eq!(text(response).await, r#"Method::Get Some(Scheme::Http) Some("127.66.0.1")"#);
}

#[tokio::test]
async fn bodies_stream_both_ways_with_trailers() {
    let node = Node::new();
    let (spec, _) = spec(node.guest("web.wasm").await, &["web"]);
    let container = node.start(spec);
    let (send, receive) = futures::channel::mpsc::unbounded();
    let request_body = StreamBody::new(receive).map_err(|never: Infallible| match never {}).boxed_unsync();
    let request = Request::post("/echo").header("host", "x").body(request_body).unwrap();
    let mut response = container.handle(request).await.unwrap();
    for piece in ["one", "two"] {
        send.unbounded_send(Ok(Frame::data(Bytes::from(piece)))).unwrap();
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece, "sent back before the request has ended");
    }
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "6".parse().unwrap())]);
    send.unbounded_send(Ok(Frame::trailers(trailers.clone()))).unwrap();
    drop(send);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
}

#[tokio::test]
async fn a_slow_reader_slows_the_guest_and_one_that_leaves_ends_it() {
    let node = Node::with(|config| config.requests_max = 1);
    let (spec, log) = spec(node.guest("web.wasm").await, &["web"]);
    let container = node.start(spec);
    let mut response = ask(&container, "/stream").await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    assert!(container.usage().memory_bytes > 0, "waits for its reader");
    drop(response);
    assert_eq!(container.usage().memory_bytes, 0, "gone with its reader");
    let response = ask(&container, "/stream").await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 4 << 20);

    let response = ask(&container, "/late").await.unwrap();
    assert_eq!(text(response).await, "soon");
    log.wait_for("done after the response").await;
}

#[tokio::test]
async fn a_bad_request_harms_no_other() {
    let node = Node::with(|config| config.request_ms_max = 300);
    let (mut spec, log) = spec(node.guest("web.wasm").await, &["web"]);
    spec.memory_bytes_max = Some(32 << 20);
    let container = node.start(spec);
    let mut answers = Vec::new();
    for path in ["/trap", "/eat", "/silent", "/exit", "/spin", "/nowhere"] {
        answers.push(match ask(&container, path).await {
            Ok(response) => format!("{path}: {}", response.status().as_u16()),
            Err(error) => format!("{path}: {} {error}", error.status().as_u16()),
        });
    }
    expect![[r#"
        /trap: 500 the guest failed: wasm trap: wasm `unreachable` instruction executed
        /eat: 500 the guest exceeded its memory limit
        /silent: 502 the guest gave no response: it returned without setting a response
        /exit: 502 the guest gave no response: exited with code 1
        /spin: 504 the guest took longer than 300 ms
        /nowhere: 404"#]]
    .assert_eq(&answers.join("\n"));
    let log = log.text();
    assert!(log.contains("on purpose") && log.contains("memory limit exceeded"), "{log}");
    assert_eq!(container.exit(), None);

    let late = ask(&container, "/trap-late").await.unwrap();
    assert_eq!(late.status(), StatusCode::OK);
    late.into_body().collect().await.unwrap_err();
    assert_eq!(text(ask(&container, "/").await.unwrap()).await, "hello\n");
    assert_eq!(container.usage().memory_bytes, 0);
}

#[tokio::test]
async fn requests_are_bounded() {
    let node = Node::with(|config| {
        config.requests_max = 1;
        config.requests_waiting_max = 1;
    });
    let (spec, _) = spec(node.guest("web.wasm").await, &["web"]);
    let container = node.start(spec);
    let running = ask(&container, "/stream").await.unwrap();
    let mut waiting = Box::pin(ask(&container, "/"));
    assert!(futures::poll!(&mut waiting).is_pending());
    assert!(matches!(ask(&container, "/").await, Err(HandleError::Busy)));
    drop(running);
    assert_eq!(text(waiting.await.unwrap()).await, "hello\n");
}

#[tokio::test]
async fn stopping_lets_running_requests_end_and_killing_does_not() {
    let node = Node::new();
    let program = node.guest("web.wasm").await;
    let (stopped, _) = spec(program.clone(), &["web"]);
    let stopped = node.start(stopped);
    let running = ask(&stopped, "/stream").await.unwrap();
    stopped.stop();
    assert!(matches!(ask(&stopped, "/").await, Err(HandleError::Stopping)));
    assert_eq!(stopped.exit(), None);
    running.into_body().collect().await.unwrap();
    assert_eq!(stopped.exited().await.code, 0);

    let (killed, _) = spec(program, &["web"]);
    let killed = node.start(killed);
    let running = ask(&killed, "/stream").await.unwrap();
    killed.kill();
    assert_eq!(killed.exited().await.code, 137);
    running.into_body().collect().await.unwrap_err();
    assert_eq!(killed.usage().memory_bytes, 0);
}

#[tokio::test]
async fn outgoing_requests_go_to_the_pods_network() {
    let node = Node::new();
    let (spec, _) = spec(node.guest("web.wasm").await, &["web"]);
    let container = node.start(spec);
    expect![[r#"202 GET http://backend.default.svc/from/web Some("backend.default.svc")"#]]
        .assert_eq(&text(ask(&container, "/fetch").await.unwrap()).await);
}

#[tokio::test]
async fn a_broken_request_body_reaches_the_guest_as_an_error() {
    struct Broken;
    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Ready(Some(Err("connection reset".into())))
        }
    }
    let node = Node::new();
    let (spec, log) = spec(node.guest("web.wasm").await, &["web"]);
    let container = node.start(spec);
    let request = Request::post("/echo").header("host", "x").body(Broken.boxed_unsync()).unwrap();
    container.handle(request).await.unwrap().into_body().collect().await.unwrap_err();
    assert!(log.text().contains("panicked"));
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let node = Node::new();
    let (web, _) = spec(node.guest("web.wasm").await, &["web"]);
    let web = node.start(web);
    let error = web.exec(argv(&["web"])).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ExecError::NotACommand { .. }));
    expect!["cannot exec in default/test/main: it is an HTTP component, which has no command to run (no wasi:cli/run); export one beside the handler, or send it a request (kubectl port-forward)"]
        .assert_eq(&error.to_string());
    let (tool, _) = spec(node.guest("tool.wasm").await, &["tool", "sleep"]);
    let tool = node.start(tool);
    assert!(matches!(ask(&tool, "/").await, Err(HandleError::NotHttp)));
    tool.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once() {
    let node = Node::new();
    let (spec, _) = spec(node.guest("web.wasm").await, &["web"]);
    let container = Arc::new(node.start(spec));
    let tasks = (0..64).map(|_| {
        let container = container.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                assert_eq!(text(ask(&container, "/").await.unwrap()).await, "hello\n");
            }
        })
    });
    futures::future::try_join_all(tasks).await.unwrap();
}
