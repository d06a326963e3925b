//! Commands: how they end, what they see, what they may use.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Node, TestNetwork, argv, finish, spec};
use expect_test::expect;
use runtime::{ContainerSpec, ExecError, Exit, ExitReason, Mount, Shape};

const EXIT: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (call $exit (i32.const CODE))))"#;

const SPIN: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

async fn run(node: &Node, text: &str) -> (Exit, String) {
    let (spec, log) = spec(node.wat(text).await, &["test"]);
    let exit = node.start(spec).exited().await;
    (exit, log.text())
}

fn short(exit: &Exit) -> String {
    format!("{} {} {}", exit.code, exit.reason, exit.message)
}

#[tokio::test]
async fn a_module_ends_with_its_code() {
    let node = Node::new();
    for (code, want) in [("0", "0 Completed "), ("3", "3 Error "), ("200", "200 Error ")] {
        let (exit, _) = run(&node, &EXIT.replace("CODE", code)).await;
        assert_eq!(short(&exit), want);
        assert!(exit.started_at <= exit.finished_at);
    }
    let (exit, _) = run(&node, r#"(module (func (export "_start")))"#).await;
    assert_eq!(short(&exit), "0 Completed ");
}

#[tokio::test]
async fn a_trap_is_an_abort_with_a_backtrace() {
    let node = Node::new();
    let (exit, log) =
        run(&node, r#"(module (func $bottom unreachable) (func (export "_start") (call $bottom)))"#).await;
    assert_eq!(short(&exit), "134 Error wasm trap: wasm `unreachable` instruction executed");
    assert!(log.contains("bottom"), "{log}");
    let (exit, log) = run(&node, r#"(module (func $deeper (export "_start") (call $deeper)))"#).await;
    assert_eq!(short(&exit), "134 Error wasm trap: call stack exhausted");
    assert!(log.contains("deeper") && log.len() < 10_000, "{log}");
}

#[tokio::test]
async fn growth_beyond_the_limit_is_an_oom_kill() {
    let node = Node::new();
    let eater = r#"(module (memory 1) (func (export "_start") (loop (drop (memory.grow (i32.const 16))) (br 0))))"#;
    let (mut spec, log) = spec(node.wat(eater).await, &[]);
    spec.memory_bytes_max = Some(8 << 20);
    let container = node.start(spec);
    let exit = container.exited().await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled));
    assert_eq!(exit.reason.as_str(), "OOMKilled");
    expect![[r#"
        memory limit exceeded: 8454144 bytes wanted, 8388608 allowed
    "#]]
    .assert_eq(&log.text());
    // Given back.
    assert_eq!(container.usage().memory_bytes, 0);
}

#[tokio::test]
async fn a_real_program_that_eats_memory_is_killed() {
    let node = Node::new();
    let (mut spec, _) = spec(node.guest("tool.wasm").await, &["tool", "eat"]);
    spec.memory_bytes_max = Some(32 << 20);
    let exit = node.start(spec).exited().await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spinning_guests_share_the_threads_and_can_be_killed() {
    let node = Node::new();
    let program = node.wat(SPIN).await;
    let spinning: Vec<_> = (0..4).map(|_| node.start(spec(program.clone(), &[]).0)).collect();
    // With both threads taken another guest still comes to its end.
    let (exit, _) = run(&node, &EXIT.replace("CODE", "0")).await;
    assert_eq!(exit.code, 0);
    for container in &spinning {
        assert_eq!(container.exit(), None);
        container.kill();
        assert_eq!(short(&container.exited().await), "137 Error killed");
        assert!(container.usage().cpu_ns > 0);
        assert_eq!(container.usage().memory_bytes, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cpu_limit_holds() {
    let node = Node::new();
    let (mut spec, _) = spec(node.wat(SPIN).await, &[]);
    spec.cpu_millis_max = Some(100);
    let container = node.start(spec);
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let used = Duration::from_nanos(container.usage().cpu_ns);
    container.kill();
    container.exited().await;
    // A tenth, plus the ticks it may run over; a loaded machine only gives it less.
    assert!(used < began.elapsed() / 3, "{used:?} of {:?}", began.elapsed());
    assert!(used > Duration::from_millis(5), "{used:?}");
}

#[tokio::test]
async fn ten_megabytes_without_a_line_end_arrive() {
    let node = Node::new();
    let text = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 161)
        (func (export "_start")
            (memory.fill (i32.const 1024) (i32.const 120) (i32.const 10485760))
            (i32.store (i32.const 0) (i32.const 1024))
            (i32.store (i32.const 4) (i32.const 10485760))
            (loop
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.load (i32.const 8))))
                (i32.store (i32.const 4) (i32.sub (i32.load (i32.const 4)) (i32.load (i32.const 8))))
                (br_if 0 (i32.load (i32.const 4))))))"#;
    let (exit, log) = run(&node, text).await;
    assert_eq!((exit.code, log.len()), (0, 10 << 20));
}

#[tokio::test]
async fn a_component_sees_what_its_container_was_given() {
    let node = Node::new();
    let program = node.guest("tool.wasm").await;
    assert_eq!(program.shape(), Shape::CommandComponent);
    let (mut spec, log) = spec(program, &["tool", "show", "two words"]);
    spec.env = vec![("A".into(), "old".into()), ("B".into(), "2".into()), ("A".into(), "1".into())];
    spec.working_dir = Some("/srv".into());
    assert_eq!(node.start(spec).exited().await.code, 0);
    expect![[r#"
        args ["show", "two words"]
        env [("B", "2"), ("A", "1")]
        cwd Ok("/")
        to stderr
    "#]]
    .assert_eq(&log.text());
}

#[tokio::test]
async fn exit_codes_of_components() {
    let node = Node::new();
    let program = node.guest("tool.wasm").await;
    for (code, want) in [("0", "0 Completed "), ("1", "1 Error ")] {
        let (spec, _) = spec(program.clone(), &["tool", "exit", code]);
        assert_eq!(short(&node.start(spec).exited().await), want);
    }
    let (spec, log) = spec(program, &["tool", "panic"]);
    assert_eq!(node.start(spec).exited().await.code, 134);
    let log = log.text();
    assert!(log.contains("on purpose") && log.contains("::deep_inside"), "{log}");
}

#[tokio::test]
async fn mounts_are_all_there_is_and_read_only_holds() {
    let node = Node::new();
    let program = node.guest("tool.wasm").await;
    let data = node.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "content").unwrap();
    std::os::unix::fs::symlink("/etc", data.join("out")).unwrap();
    let run = async |read_only: bool, args: &[&str]| {
        let (mut spec, log) = spec(program.clone(), args);
        spec.mounts = vec![Mount::open(&data, "/data", read_only).unwrap()];
        node.start(spec).exited().await;
        log.text()
    };
    assert_eq!(run(true, &["tool", "cat", "/data/file"]).await, r#"Ok("content")"#);
    assert_eq!(run(true, &["tool", "write", "/data/file", "x"]).await, "Err(PermissionDenied)");
    assert_eq!(run(true, &["tool", "cat", "/data/out/passwd"]).await, "Err(PermissionDenied)");
    assert_ne!(run(true, &["tool", "cat", "/etc/passwd"]).await.get(..2), Some("Ok"));
    assert_eq!(run(false, &["tool", "write", "/data/file", "new"]).await, "Ok(())");
    assert_eq!(std::fs::read_to_string(data.join("file")).unwrap(), "new");
}

#[tokio::test]
async fn sockets_live_on_the_pods_address() {
    let node = Node::new();
    let program = node.guest("tool.wasm").await;
    let pod = Ipv4Addr::new(127, 66, 0, 7);
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let start = |args: &[&str], routes: HashMap<SocketAddr, SocketAddr>, names: HashMap<String, std::net::IpAddr>| {
        let (mut spec, log) = spec(program.clone(), args);
        spec.network = Arc::new(TestNetwork { address: pod.into(), names, routes, namespace: None });
        (node.start(spec), log)
    };
    let (server, log) = start(&["tool", "echo", "0.0.0.0:0"], HashMap::new(), HashMap::new());
    let said = log.wait_for("\n").await;
    let address: SocketAddr = said.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
    assert_eq!(address.ip(), pod);

    let names = HashMap::from([("web.default.svc".to_owned(), vip.ip())]);
    let talk = async |to: &str| {
        let (client, log) = start(&["tool", "talk", to], HashMap::from([(vip, address)]), names.clone());
        client.exited().await;
        log.text()
    };
    let port = address.port();
    let pong = "answered \"ping\"\n";
    assert_eq!(talk(&format!("127.0.0.1:{port}")).await, pong);
    assert_eq!(talk(&format!("localhost:{port}")).await, pong);
    assert_eq!(talk("10.96.0.1:80").await, pong);
    assert_eq!(talk("web.default.svc:80").await, pong);
    assert!(talk("nobody.default.svc:80").await.starts_with("failed "));
    let (foreign, log) = start(&["tool", "echo", "127.0.0.5:0"], HashMap::new(), HashMap::new());
    foreign.exited().await;
    assert_eq!(log.text(), "refused AddrNotAvailable\n");
    // Blocked in accept, and gone at once.
    server.kill();
    assert_eq!(server.exited().await.code, 137);
}

#[tokio::test]
async fn datagrams_are_routed_too() {
    let node = Node::new();
    let program = node.guest("tool.wasm").await;
    let start = |args: &[&str], routes| {
        let (mut spec, log) = spec(program.clone(), args);
        spec.network = Arc::new(TestNetwork { routes, ..Default::default() });
        (node.start(spec), log)
    };
    let (_server, log) = start(&["tool", "udp", "0.0.0.0:34553"], HashMap::new());
    assert_eq!(log.wait_for("\n").await, "listening on 127.66.0.1:34553\n");
    let (vip, endpoint) = ("10.96.0.2:53".parse().unwrap(), "127.66.0.1:34553".parse().unwrap());
    let (client, log) = start(&["tool", "udp", "0.0.0.0:0", "10.96.0.2:53"], HashMap::from([(vip, endpoint)]));
    client.exited().await;
    assert_eq!(log.text(), "answered \"ping\"\n");
}

#[tokio::test]
async fn exec_runs_the_program_again() {
    let node = Node::new();
    let (mut spec, _) = spec(node.guest("tool.wasm").await, &["tool", "sleep"]);
    spec.env = vec![("A".into(), "1".into())];
    let container = node.start(ContainerSpec { ..spec });
    let (out, err, code) = finish(container.exec(argv(&["tool", "show"])).await.unwrap()).await;
    assert_eq!((code, err.as_str()), (0, "to stderr\n"));
    assert!(out.contains(r#"("A", "1")"#), "{out}");
    assert_eq!(finish(container.exec(argv(&["tool", "exit", "1"])).await.unwrap()).await.2, 1);
    let nothing = container.exec(argv(&[])).await.map(|_| ());
    assert!(matches!(nothing, Err(ExecError::NoCommand { .. })), "{nothing:?}");
    container.kill();
    container.exited().await;
    let after = container.exec(argv(&["tool", "show"])).await.map(|_| ());
    assert!(matches!(after, Err(ExecError::NotRunning { .. })), "{after:?}");
}
