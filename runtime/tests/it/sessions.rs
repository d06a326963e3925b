//! Clients of running containers: executions with streams, terminals, attached clients.

use std::time::{Duration, Instant};

use crate::common::{Log, Node, argv, finish, spec};
use runtime::{Container, ExecError, ExecOptions, Input, Output, Session};
use std::sync::Arc;

fn data(text: &str) -> Input {
    Input::Data(text.to_owned().into())
}

fn options(args: &[&str], tty: bool) -> ExecOptions {
    ExecOptions { stdin: true, tty, ..argv(args) }
}

/// Reads until `what` was printed; answers everything so far.
async fn until(session: &mut Session, what: &str) -> String {
    let mut text = String::new();
    while !text.contains(what) {
        match session.output.recv().await {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => text += &String::from_utf8_lossy(&bytes),
            None => panic!("ended before {what:?}: {text:?}"),
        }
    }
    text
}

async fn sleeper(node: &Node, change: impl FnOnce(&mut runtime::ContainerSpec)) -> (Container, Arc<Log>) {
    started(node, &["tool", "sleep"], change).await
}

async fn started(
    node: &Node,
    args: &[&str],
    change: impl FnOnce(&mut runtime::ContainerSpec),
) -> (Container, Arc<Log>) {
    let (mut spec, log) = spec(node.guest("tool.wasm").await, args);
    change(&mut spec);
    (node.start(spec), log)
}

#[tokio::test]
async fn input_goes_in_and_its_end_ends() {
    let node = Node::new();
    let (container, _) = sleeper(&node, |_| {}).await;
    let mut session = container.exec(options(&["tool", "lines"], false)).await.unwrap();
    session.input.send(data("one\ntw")).await.unwrap();
    assert_eq!(until(&mut session, "\n").await, "got \"one\"\n");
    session.input.send(Input::Resize { columns: 80, rows: 24 }).await.unwrap();
    session.input.send(data("o\nlast")).await.unwrap();
    session.input.send(Input::End).await.unwrap();
    let (out, err, code) = finish(session).await;
    assert_eq!((out.as_str(), err.as_str(), code), ("got \"two\"\ngot \"last\"\nend\n", "", 0));
    // Without input there is an end at once.
    let (out, _, code) = finish(container.exec(argv(&["tool", "lines"])).await.unwrap()).await;
    assert_eq!((out.as_str(), code), ("end\n", 0));
    container.kill();
}

#[tokio::test]
async fn a_terminal_edits_shows_and_interrupts() {
    let node = Node::new();
    let (container, _) = sleeper(&node, |_| {}).await;
    let (out, err, _) = finish(container.exec(options(&["tool", "terminal"], true)).await.unwrap()).await;
    assert_eq!((out.as_str(), err.as_str()), ("terminal (true, true, true)\r\nto stderr\r\n", ""));
    let (out, _, _) = finish(container.exec(options(&["tool", "terminal"], false)).await.unwrap()).await;
    assert_eq!(out, "terminal (false, false, false)\n");

    let mut session = container.exec(options(&["tool", "lines"], true)).await.unwrap();
    session.input.send(data("hex\x7fy\r")).await.unwrap();
    assert_eq!(until(&mut session, "\"\r\n").await, "hex\x08 \x08y\r\ngot \"hey\"\r\n");
    session.input.send(data("\x04")).await.unwrap();
    let (out, _, code) = finish(session).await;
    assert_eq!((out.as_str(), code), ("end\r\n", 0));

    let session = container.exec(options(&["tool", "spin"], true)).await.unwrap();
    session.input.send(data("\x03")).await.unwrap();
    let (out, _, code) = finish(session).await;
    assert_eq!((out.as_str(), code), ("^C", 130));
    container.kill();
}

#[tokio::test]
async fn preview_1_sees_a_terminal_too() {
    let node = Node::new();
    // Exits with the file type of the descriptors: 2 is a character device.
    let program = node
        .wat(
            r#"(module
        (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func $type (param i32) (result i32)
            (drop (call $stat (local.get 0) (i32.const 64)))
            (i32.load8_u (i32.const 64)))
        (func (export "_start") (call $exit (i32.add
            (i32.mul (call $type (i32.const 0)) (i32.const 16))
            (call $type (i32.const 1))))))"#,
        )
        .await;
    let (mut terminal, _) = spec(program.clone(), &["x"]);
    (terminal.stdin, terminal.tty) = (true, true);
    assert_eq!(node.start(terminal).exited().await.code, 0x22);
    let (plain, _) = spec(program, &["x"]);
    assert_ne!(node.start(plain).exited().await.code, 0x22);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_its_guest_up() {
    let node = Node::new();
    let (container, _) = sleeper(&node, |_| {}).await;
    let mut session = container.exec(argv(&["tool", "flood", "32"])).await.unwrap();
    // As much as may wait, and then nothing: what the guest is given time for shows in the CPU it uses.
    let full = Instant::now() + Duration::from_secs(20);
    while session.output.len() < runtime::PIECES_MAX && Instant::now() < full {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(session.output.len(), runtime::PIECES_MAX);
    let mut bytes = 0;
    while let Some(piece) = session.output.recv().await {
        match piece {
            Output::Stdout(piece) => bytes += piece.len(),
            Output::Stderr(piece) => assert_eq!(&piece[..], b"flooded\n"),
        }
    }
    assert_eq!(bytes, 32 << 20);
    assert_eq!(session.exit.await.unwrap(), 0);
    container.kill();
}

#[tokio::test]
async fn a_client_that_is_gone_ends_its_guest() {
    let node = Node::new();
    let (container, _) = sleeper(&node, |_| {}).await;
    // Either half will do.
    let Session { input, output, exit } = container.exec(argv(&["tool", "spin"])).await.unwrap();
    drop(input);
    assert_eq!(exit.await.unwrap(), 137);
    drop(output);
    let Session { input, output, exit } = container.exec(argv(&["tool", "flood", "1000"])).await.unwrap();
    drop(output);
    assert_eq!(exit.await.unwrap(), 137);
    drop(input);
    // One that waits for room for input which the guest never takes.
    let Session { input, output, exit } = container.exec(options(&["tool", "sleep"], false)).await.unwrap();
    for _ in 0..4 {
        input.send(data(&"x".repeat(64 << 10))).await.unwrap();
    }
    drop(input);
    assert_eq!(exit.await.unwrap(), 137);
    drop(output);
    container.kill();
}

#[tokio::test]
async fn executions_are_bounded_and_end_with_their_container() {
    let node = Node::new();
    let (container, _) = sleeper(&node, |_| {}).await;
    let mut sessions = Vec::new();
    let refused = loop {
        match container.exec(argv(&["tool", "sleep"])).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ExecError::Busy { .. }));
    assert_eq!(sessions.len(), 8);
    container.kill();
    for session in sessions {
        assert_eq!(finish(session).await.2, 137);
    }
    assert_eq!(container.exited().await.code, 137);
}

#[tokio::test]
async fn an_attached_client_sees_what_comes_and_types() {
    let node = Node::new();
    let (container, log) = started(&node, &["tool", "lines"], |spec| spec.stdin = true).await;
    let mut first = container.attach(true).await.unwrap();
    let mut second = container.attach(false).await.unwrap();
    first.input.send(data("one\n")).await.unwrap();
    assert_eq!(until(&mut first, "\n").await, "got \"one\"\n");
    assert_eq!(until(&mut second, "\n").await, "got \"one\"\n");
    assert_eq!(log.text(), "got \"one\"\n");
    // The input stays open for the next, also after an end.
    first.input.send(Input::End).await.unwrap();
    drop(first);
    let mut third = container.attach(true).await.unwrap();
    third.input.send(data("two\n")).await.unwrap();
    assert_eq!(until(&mut third, "\n").await, "got \"two\"\n");
    assert_eq!(until(&mut second, "\n").await, "got \"two\"\n");
    container.kill();
    assert_eq!(finish(second).await, (String::new(), String::new(), 137));
    assert!(matches!(container.attach(false).await.map(|_| ()), Err(ExecError::NotRunning { .. })));
}

#[tokio::test]
async fn stdin_once_ends_with_the_first_client() {
    let node = Node::new();
    for by_end in [true, false] {
        let (container, log) = started(&node, &["tool", "lines"], |spec| {
            (spec.stdin, spec.stdin_once) = (true, true);
        })
        .await;
        let mut session = container.attach(true).await.unwrap();
        session.input.send(data("one\n")).await.unwrap();
        until(&mut session, "one").await;
        if by_end {
            session.input.send(Input::End).await.unwrap();
            assert_eq!(finish(session).await.2, 0);
        } else {
            drop(session);
        }
        assert_eq!(container.exited().await.code, 0);
        assert_eq!(log.text(), "got \"one\"\nend\n");
    }
}

#[tokio::test]
async fn a_containers_own_terminal() {
    let node = Node::new();
    let (container, log) = started(&node, &["tool", "lines"], |spec| (spec.stdin, spec.tty) = (true, true)).await;
    let mut session = container.attach(true).await.unwrap();
    session.input.send(data("one\r")).await.unwrap();
    assert_eq!(until(&mut session, "\"\r\n").await, "one\r\ngot \"one\"\r\n");
    session.input.send(data("\x03")).await.unwrap();
    let exit = container.exited().await;
    assert_eq!((exit.code, exit.message.as_str()), (130, "interrupted"));
    assert_eq!(finish(session).await.2, 130);
    assert_eq!(log.text(), "one\r\ngot \"one\"\r\n^C");
}

#[tokio::test]
async fn an_attached_client_never_holds_the_container_up() {
    let node = Node::new();
    let (container, log) = started(&node, &["tool", "flood", "16", "wait"], |spec| spec.stdin = true).await;
    let idle = container.attach(false).await.unwrap();
    let typist = container.attach(true).await.unwrap();
    typist.input.send(data("go\n")).await.unwrap();
    assert_eq!(container.exited().await.code, 0);
    assert_eq!(log.len(), (16 << 20) + "flooded\n".len());
    let (out, note, code) = finish(idle).await;
    assert!(out.len() >= 4 << 20 && out.len() < 8 << 20, "{}", out.len());
    assert!(note.contains("bytes left out"), "{note}");
    assert_eq!(code, 0);
}
