//! Executions, attached clients, logs, usage.

use bytes::Bytes;
use jiff::Timestamp;
use runtime::logs::ReadOptions;
use runtime::{DockerContainer, ExecError, ExecOptions, Input, Output, Session};

use super::bench::*;

async fn exec(container: &DockerContainer, script: &str, stdin: bool, tty: bool) -> Session {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    container.exec(ExecOptions { argv, stdin, tty }).await.unwrap()
}

/// Both outputs and the exit code.
async fn ended(mut session: Session) -> (String, String, i32) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let reading = async {
        while let Some(piece) = session.output.recv().await {
            match piece {
                Output::Stdout(bytes) => out.extend_from_slice(&bytes),
                Output::Stderr(bytes) => err.extend_from_slice(&bytes),
            }
        }
        session.exit.await.unwrap()
    };
    let code = tokio::time::timeout(LONG, reading).await.unwrap();
    (text(out), text(err), code)
}

#[tokio::test(flavor = "multi_thread")]
async fn executions() {
    let Some(bench) = bench().await else { return };
    let container = bench.run("exec", 10, "sleep 600").await;

    let said = ended(exec(&container, "echo out; echo err >&2; exit 5", false, false).await).await;
    assert_eq!(said, ("out\n".into(), "err\n".into(), 5));

    let session = exec(&container, "cat; echo end", true, false).await;
    session.input.send(Input::Data(Bytes::from_static(b"one\n"))).await.unwrap();
    session.input.send(Input::Data(Bytes::from_static(b"two\n"))).await.unwrap();
    session.input.send(Input::End).await.unwrap();
    assert_eq!(ended(session).await, ("one\ntwo\nend\n".into(), String::new(), 0));

    // A terminal has the size the client says, whenever it says it, and may print anything.
    let session = exec(
        &container,
        "until stty size 2>/dev/null | grep -q '40 100'; do sleep 0.05; done; stty size; printf '\\001\\002x'",
        true,
        true,
    )
    .await;
    session.input.send(Input::Resize { columns: 80, rows: 24 }).await.unwrap();
    session.input.send(Input::Resize { columns: 100, rows: 40 }).await.unwrap();
    assert_eq!(ended(session).await, ("40 100\r\n\u{1}\u{2}x".into(), String::new(), 0));

    // More than fits into any buffer on the way, both ways at once.
    let session = exec(&container, "cat", true, false).await;
    let input = session.input.clone();
    let writing = tokio::spawn(async move {
        for _ in 0..64 {
            input.send(Input::Data(Bytes::from(vec![b'x'; 64 << 10]))).await.unwrap();
        }
        input.send(Input::End).await.unwrap();
        input
    });
    let (out, _, code) = ended(session).await;
    assert_eq!((out.len(), code), (4 << 20, 0));
    writing.await.unwrap();

    let session = container.exec(ExecOptions { argv: vec!["/no/such".into()], ..Default::default() }).await.unwrap();
    let (out, err, code) = ended(session).await;
    assert!(code == 126 || code == 127, "{code}");
    assert!(format!("{out}{err}").contains("/no/such"), "{out}{err}");

    // A program that closes its outputs and goes on.
    let session = exec(&container, "exec >/dev/null 2>&1; sleep 0.3; exit 9", false, false).await;
    assert_eq!(ended(session).await.2, 9);

    // A client that leaves does not end the program.
    let session = exec(&container, "sleep 0.2; echo done > /left", false, false).await;
    drop(session);
    until("the program goes on", async || ended(exec(&container, "cat /left", false, false).await).await.0 == "done\n")
        .await;

    let mut session = exec(&container, "echo on; sleep 600", false, false).await;
    let piece = tokio::time::timeout(LONG, session.output.recv()).await.unwrap();
    assert_eq!(piece, Some(Output::Stdout(Bytes::from_static(b"on\n"))));
    container.kill();
    exited(&container).await;
    let exit = tokio::time::timeout(LONG, session.exit).await.unwrap();
    assert!(exit.as_ref().map_or(true, |code| *code == 137), "{exit:?}");
    let refused = container.exec(ExecOptions { argv: vec!["true".into()], ..Default::default() }).await;
    assert!(matches!(refused, Err(ExecError::NotRunning { .. })));
    assert!(matches!(container.attach(false).await, Err(ExecError::NotRunning { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_are_bounded() {
    let Some(bench) = bench().await else { return };
    let container = bench.run("many", 10, "sleep 600").await;
    let mut sessions = Vec::new();
    let refused = loop {
        match container.attach(false).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
        assert!(sessions.len() <= 1000);
    };
    assert!(matches!(refused, ExecError::Busy { .. }), "{refused}");
    sessions.clear();
    until("room again", async || container.attach(false).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("attach", 10)).await.unwrap();
    let mut spec =
        bench.spec("attach", &sandbox, "echo early; while read line; do echo got $line; done; echo over; exit 4");
    (spec.stdin, spec.stdin_once) = (true, true);
    let container = bench.docker.start(spec.clone()).await.unwrap();
    let session = container.attach(true).await.unwrap();
    session.input.send(Input::Data(Bytes::from_static(b"one\n"))).await.unwrap();
    session.input.send(Input::End).await.unwrap();
    let (out, _, code) = ended(session).await;
    assert!(out.ends_with("got one\nover\n"), "{out}");
    assert_eq!(code, 4);

    spec.name = "terminal".into();
    spec.tty = true;
    spec.args = vec!["until stty size 2>/dev/null | grep -q '33 77'; do sleep 0.05; done; echo seen; sleep 600".into()];
    let container = bench.docker.start(spec).await.unwrap();
    let mut session = container.attach(true).await.unwrap();
    session.input.send(Input::Resize { columns: 77, rows: 33 }).await.unwrap();
    let piece = tokio::time::timeout(LONG, session.output.recv()).await.unwrap();
    assert_eq!(piece, Some(Output::Stdout(Bytes::from_static(b"seen\r\n"))));
    drop(session);
    assert_eq!(container.exit(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_read_as_the_kubelet_prints_them() {
    let Some(bench) = bench().await else { return };
    // Docker reads the two streams in any order: the last line is last for certain only after a rest
    let script = "echo one; echo two >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; sleep 1; echo last";
    let container = bench.run("logs", 10, script).await;
    exited(&container).await;
    let read = async |options: ReadOptions, stdout, stderr| {
        text(collect(bench.docker.logs(container.id(), options, stdout, stderr).await.unwrap()).await)
    };
    let long = "x".repeat(40000);
    assert_eq!(read(ReadOptions::default(), true, false).await, format!("one\n{long}\nlast\n"));
    assert_eq!(read(ReadOptions::default(), false, true).await, "two\n");
    assert_eq!(read(ReadOptions::default(), false, false).await, "");
    assert_eq!(read(ReadOptions { tail_lines: Some(1), ..Default::default() }, true, false).await, "last\n");
    assert_eq!(read(ReadOptions { limit_bytes: Some(6), ..Default::default() }, true, false).await, "one\nxx");
    let stamped = read(ReadOptions { timestamps: true, ..Default::default() }, true, true).await;
    let mut times = Vec::new();
    let mut since = None;
    for line in stamped.lines() {
        let (time, text) = line.split_once(' ').unwrap();
        assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
        assert!(["one", "two", &long, "last"].contains(&text), "{} bytes", text.len());
        times.push(time.parse::<Timestamp>().unwrap());
        since = if text == "last" { times.last().copied() } else { since };
    }
    assert_eq!(times.len(), 4);
    assert_eq!(read(ReadOptions { since, ..Default::default() }, true, false).await.lines().last(), Some("last"));
    let since = Some(Timestamp::now() + jiff::SignedDuration::from_secs(5));
    assert_eq!(read(ReadOptions { since, ..Default::default() }, true, true).await, "");

    let Err(error) = bench.docker.logs("0123456789ab", ReadOptions::default(), true, true).await else { panic!() };
    assert!(matches!(error, runtime::DockerError::NotFound { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_without_a_line_end_is_streamed() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("tty", 10)).await.unwrap();
    let mut spec = bench.spec("tty", &sandbox, "while :; do head -c 65536 /dev/zero | tr '\\0' '\\001'; done");
    spec.tty = true;
    let container = bench.docker.start(spec).await.unwrap();
    let options = ReadOptions { follow: true, ..Default::default() };
    let mut stream = bench.docker.logs(container.id(), options, true, true).await.unwrap();
    let mut seen = 0;
    while seen < 1 << 20 {
        let piece = tokio::time::timeout(LONG, futures::StreamExt::next(&mut stream)).await.unwrap().unwrap().unwrap();
        assert!(piece.iter().all(|byte| *byte == 1));
        seen += piece.len();
    }
    container.kill();
    exited(&container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_measured() {
    let Some(bench) = bench().await else { return };
    let busy = bench.run("busy", 10, "while :; do :; done").await;
    until("time was used", async || busy.usage().await.is_some_and(|usage| usage.cpu_ns > 50_000_000)).await;
    let usage = busy.usage().await.unwrap();
    assert!(usage.memory_bytes > 0 && usage.memory_bytes < 100 << 20, "{usage:?}");
    busy.kill();
    exited(&busy).await;
    assert_eq!(busy.usage().await, None);
}
