//! Addresses, namespaces, and what a sandbox shares.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_its_network() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("net", 10)).await.unwrap();
    assert_eq!(sandbox.address, Some(bench.address(10)));
    let mut server = bench.spec("net", &sandbox, "while :; do echo hello | nc -l -p 8080; done");
    server.name = "server".into();
    bench.docker.start(server).await.unwrap();
    let mut client = bench.spec("net", &sandbox, "until nc 127.0.0.1 8080 </dev/null; do sleep 0.05; done; ip addr");
    client.name = "client".into();
    let client = bench.docker.start(client).await.unwrap();
    let output = bench.output(&client).await;
    assert!(output.starts_with("hello\n") && output.contains(&bench.address(10).to_string()), "{output}");

    // From the node: by the pod's address, and as the pod's own localhost.
    let namespace = sandbox.namespace.clone().unwrap();
    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    for inside in [false, true] {
        let mut said = String::new();
        until("the server answers", async || {
            let stream = match inside {
                true => namespace.connect(localhost).await,
                false => tokio::net::TcpStream::connect((bench.address(10), 8080)).await,
            };
            let Ok(mut stream) = stream else { return false };
            said.clear();
            stream.read_to_string(&mut said).await.is_ok() && said == "hello\n"
        })
        .await;
    }

    // A listener of ours inside the pod.
    let listener = namespace.listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9090))).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut asker = bench.spec("net", &sandbox, "nc 127.0.0.1 9090 </dev/null");
    asker.name = "asker".into();
    let asker = bench.docker.start(asker).await.unwrap();
    let (mut stream, _) = tokio::time::timeout(LONG, listener.accept()).await.unwrap().unwrap();
    stream.write_all(b"from outside\n").await.unwrap();
    drop(stream);
    assert_eq!(bench.output(&asker).await, "from outside\n");
    // This thread is where it was.
    assert!(namespace.run(|| std::net::TcpListener::bind(("127.0.0.1", 9090))).unwrap().is_err());
    assert!(std::net::TcpListener::bind((bench.address(10), 9091)).is_err(), "the node has the pod's address");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_inside_comes_home() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("panic", 10)).await.unwrap();
    let namespace = sandbox.namespace.unwrap();
    let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = here();
    let there = namespace.run(here).unwrap();
    assert_ne!(before, there);
    let panicked = std::panic::catch_unwind(|| namespace.run(|| panic!("inside")));
    assert!(panicked.is_err());
    assert_eq!(here(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_processes_are_reaped() {
    let Some(bench) = bench().await else { return };
    let mut spec = bench.sandbox_spec("share", 10);
    spec.share_processes = true;
    let sandbox = bench.docker.sandbox(spec).await.unwrap();
    // Orphans, whose parent ends before they do: process 1 inherits them.
    let script = "for i in 1 2 3 4 5; do sh -c 'sleep 0.2 & exit 0'; done; sleep 1
        ps -o stat,args; echo zombies: $(ps -o stat | grep -c Z)";
    let mut spec = bench.spec("share", &sandbox, script);
    spec.share_processes = true;
    let container = bench.docker.start(spec).await.unwrap();
    let output = bench.output(&container).await;
    assert!(output.contains("/pause share_default("), "{output}");
    assert!(output.ends_with("zombies: 0\n"), "{output}");

    // And process 1 ends when it is asked to.
    cli(&["kill", "--signal", "TERM", &sandbox.id]);
    let uid = bench.pod("share").uid;
    until("the sandbox ends by SIGTERM", async || {
        bench.docker.find(&uid).await.unwrap().sandbox.is_some_and(|sandbox| !sandbox.running)
    })
    .await;
    assert_eq!(cli(&["inspect", "-f", "{{.State.ExitCode}}", &sandbox.id]).trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_sees_its_target() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("target", 10)).await.unwrap();
    bench.docker.start(bench.spec("target", &sandbox, "echo target; sleep 600")).await.unwrap();
    let mut spec = bench.spec("target", &sandbox, "ps -o args");
    spec.name = "debugger".into();
    spec.share_pid_of = Some("main".into());
    let debugger = bench.docker.start(spec.clone()).await.unwrap();
    let output = bench.output(&debugger).await;
    assert!(output.contains("sleep 600"), "{output}");
    spec.name = "lost".into();
    spec.share_pid_of = Some("nobody".into());
    let Err(error) = bench.docker.start(spec).await else { panic!("there is no target") };
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_of_the_node() {
    let Some(bench) = bench().await else { return };
    let mut spec = bench.sandbox_spec("host", 10);
    spec.address = None;
    let sandbox = bench.docker.sandbox(spec).await.unwrap();
    assert!(sandbox.namespace.is_none() && sandbox.address.is_none());
    let container = bench.docker.start(bench.spec("host", &sandbox, "ip addr")).await.unwrap();
    let output = bench.output(&container).await;
    assert!(output.contains(&bench.bridge), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_of_another_subnet_is_replaced_when_it_is_empty() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("first", 10)).await.unwrap();
    let moved = bench.other_subnet();
    let mut spec = bench.sandbox_spec("second", 10);
    let Err(error) = moved.sandbox(spec.clone()).await else { panic!("the network is in use") };
    assert!(error.to_string().contains("has 1 pods"), "{error}");
    bench.docker.remove(&sandbox.id).await.unwrap();
    let std::net::IpAddr::V4(old) = bench.address(10) else { panic!() };
    let [a, b, c, d] = old.octets();
    spec.address = Some(Ipv4Addr::new(a, b + 20, c, d).into());
    assert_eq!(moved.sandbox(spec.clone()).await.unwrap().address, spec.address);
    // An address that someone has is refused, and nothing stays.
    spec.pod = bench.pod("third");
    let Err(error) = moved.sandbox(spec).await else { panic!("the address is taken") };
    assert!(error.to_string().contains("ddress already in use"), "{error}");
    assert!(moved.find(&bench.pod("third").uid).await.unwrap().sandbox.is_none());
}
