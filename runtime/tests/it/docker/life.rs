//! Starting, ending, adopting, removing.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use runtime::docker::{FoundState, Health, ImageLimits, Seccomp};
use runtime::{DockerError, ExitReason};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("ends", 10)).await.unwrap();
    let spec = |name: &str, script: &str| {
        let mut spec = bench.spec("ends", &sandbox, script);
        spec.name = name.to_owned();
        spec
    };
    let fine = bench.docker.start(spec("fine", "exit 0")).await.unwrap();
    let three = bench.docker.start(spec("three", "exit 3")).await.unwrap();
    let killed = bench.docker.start(spec("killed", "sleep 600")).await.unwrap();
    let mut asked = spec("asked", "trap 'exit 7' USR1; while :; do sleep 0.05; done");
    asked.stop_signal = Some("SIGUSR1".into());
    let asked = bench.docker.start(asked).await.unwrap();
    let mut greedy = spec("greedy", "");
    greedy.resources.memory_limit_bytes = Some(16 << 20);
    greedy.command = vec!["/bin/dd".into()];
    greedy.args = vec!["if=/dev/zero".into(), "of=/dev/null".into(), "bs=200M".into(), "count=2".into()];
    let greedy = bench.docker.start(greedy).await.unwrap();

    let exit = exited(&fine).await;
    assert_eq!((exit.code, exit.reason, exit.message.as_str()), (0, ExitReason::Completed, ""));
    assert!(exit.started_at <= exit.finished_at && exit.started_at == fine.started_at(), "{exit:?}");
    assert_eq!((exited(&three).await.code, exited(&three).await.reason), (3, ExitReason::Error));
    let exit = exited(&greedy).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled), "{exit:?}");
    assert_eq!(killed.exit(), None);
    killed.kill();
    assert_eq!((exited(&killed).await.code, exited(&killed).await.reason), (137, ExitReason::Error));
    asked.stop();
    assert_eq!(exited(&asked).await.code, 7);
    asked.stop();
    asked.kill();

    let found = bench.docker.find(&bench.pod("ends").uid).await.unwrap();
    assert_eq!(found.sandbox.as_ref().map(|sandbox| (sandbox.running, sandbox.address)), Some((true, sandbox.address)));
    let codes: Vec<(String, Option<i32>)> = found
        .containers
        .iter()
        .map(|container| match &container.state {
            FoundState::Exited(exit) => (container.name.clone(), Some(exit.code)),
            _ => (container.name.clone(), None),
        })
        .collect();
    let expected = [("asked", 7), ("fine", 0), ("greedy", 137), ("killed", 137), ("three", 3)];
    assert_eq!(codes, expected.map(|(name, code)| (name.to_owned(), Some(code))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("bad", 10)).await.unwrap();
    let good = || bench.spec("bad", &sandbox, "sleep 600");
    let failure = async |spec| match bench.docker.start(spec).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    };
    let mut spec = good();
    spec.command = vec!["/no/such/program".into()];
    let error = failure(spec).await;
    assert_eq!(error.reason(), "RunContainerError");
    assert!(error.to_string().contains("/no/such/program"), "{error}");

    let mut spec = good();
    spec.image = format!("sha256:{}", "0".repeat(64));
    let error = failure(spec).await;
    assert!(matches!(&error, DockerError::Create { detail } if detail.contains("No such image")), "{error:?}");

    let mut spec = good();
    spec.mounts = vec![mount("/no/such/directory", "/x")];
    let error = failure(spec).await;
    assert!(matches!(&error, DockerError::Create { detail } if detail.contains("/no/such/directory")), "{error:?}");

    let mut spec = good();
    spec.security.run_as_non_root = true;
    let error = failure(spec).await;
    let expected = format!(
        "container has runAsNonRoot and image will run as root (pod: \"bad_default({})\", container: main)",
        bench.pod("bad").uid
    );
    assert_eq!((error.to_string(), error.reason()), (expected, "CreateContainerConfigError"));

    let left = bench.docker.find(&bench.pod("bad").uid).await.unwrap();
    assert!(left.containers.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_as_it_was_asked_for() {
    let Some(bench) = bench().await else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "from the node\n").unwrap();
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("asked", 10)).await.unwrap();
    let script = "hostname; pwd; id -u; id -g; id -G; cat /data/file; echo $GREETING; echo $FROM_IMAGE
        touch /data/new 2>/dev/null || echo read-only; touch /x 2>/dev/null || echo root read-only
        grep -E 'NoNewPrivs|CapBnd' /proc/self/status; cat /sys/fs/cgroup/cpu/cpu.shares /sys/fs/cgroup/cpu.weight \
        /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; cat /proc/self/oom_score_adj";
    let mut spec = bench.spec("asked", &sandbox, script);
    spec.env = vec![("GREETING".into(), "a = b".into())];
    spec.working_dir = Some("/etc".into());
    spec.mounts = vec![mount(dir.path().to_str().unwrap(), "/data")];
    spec.mounts[0].read_only = true;
    spec.resources.cpu_request_millis = Some(250);
    spec.resources.cpu_limit_millis = Some(500);
    spec.resources.memory_limit_bytes = Some(64 << 20);
    spec.resources.oom_score_adj = 900;
    spec.security.user = Some(1234);
    spec.security.group = Some(4321);
    spec.security.supplemental_groups = vec![77];
    spec.security.run_as_non_root = true;
    spec.security.read_only_root = true;
    spec.security.drop_capabilities = vec!["ALL".into()];
    spec.security.add_capabilities = vec!["NET_BIND_SERVICE".into()];
    spec.security.allow_privilege_escalation = Some(false);
    spec.security.seccomp = Some(Seccomp::RuntimeDefault);
    let container = bench.docker.start(spec).await.unwrap();
    let output = bench.output(&container).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        &lines[..10],
        &[
            "host-of-asked",
            "/etc",
            "1234",
            "4321",
            "4321 77",
            "from the node",
            "a = b",
            "yes",
            "read-only",
            "root read-only"
        ],
        "{output}"
    );
    assert!(lines[10].starts_with("CapBnd") && lines[10].ends_with("0000000000000400"), "{output}");
    assert!(lines[11].starts_with("NoNewPrivs") && lines[11].ends_with('1'), "{output}");
    assert!(output.contains("\n256\n") || output.contains("\n10\n"), "{output}");
    assert!(output.contains("\n67108864\n") && output.ends_with("\n900\n"), "{output}");

    let mut spec = bench.spec("asked", &sandbox, "");
    spec.name = "image".into();
    (spec.command, spec.args) = (Vec::new(), Vec::new());
    let container = bench.docker.start(spec.clone()).await.unwrap();
    assert_eq!(bench.output(&container).await, "from the image\n");
    spec.name = "args".into();
    spec.args = vec!["/bin/echo".into(), "mine".into()];
    let container = bench.docker.start(spec).await.unwrap();
    assert_eq!(bench.output(&container).await, "mine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_finds_its_pods() {
    let Some(bench) = bench().await else { return };
    let container = bench.run("back", 10, "sleep 600").await;
    let other = bench.another();
    let uid = bench.pod("back").uid;
    assert_eq!(other.pods().await.unwrap(), [uid.as_str()]);
    let found = other.find(&uid).await.unwrap();
    let sandbox = other.sandbox(bench.sandbox_spec("back", 99)).await.unwrap();
    assert_eq!(found.sandbox.map(|sandbox| sandbox.id).as_ref(), Some(&sandbox.id));
    assert_eq!(sandbox.address, Some(bench.address(10)), "an address is not taken from a running pod");
    let [same] = found.containers.as_slice() else { panic!("{:?}", found.containers) };
    assert!(is_running(&same.state) && same.attempt == 0 && same.image_name == IMAGE, "{same:?}");
    let adopted = other.adopt(&same.id).await.unwrap();
    assert_eq!((adopted.started_at(), adopted.name()), (container.started_at(), "default/back/main"));

    // Nobody listens for `other`: what happened in the meantime is found out when someone does.
    container.kill();
    assert_eq!(exited(&container).await.code, 137);
    assert_eq!(adopted.exit(), None);
    let shutdown = CancellationToken::new();
    let watching = tokio::spawn(other.clone().watch(shutdown.clone()));
    assert_eq!(exited(&adopted).await.code, 137);
    shutdown.cancel();
    watching.await.unwrap();

    // A dead sandbox is replaced.
    cli(&["kill", &sandbox.id]);
    let replaced = other.sandbox(bench.sandbox_spec("back", 11)).await.unwrap();
    assert_eq!(replaced.address, Some(bench.address(11)));
    assert_ne!(replaced.id, sandbox.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_goes_away_comes_back() {
    let Some(bench) = bench().await else { return };
    let first = bench.run("away", 10, "sleep 600").await;
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("away", 10)).await.unwrap();
    let mut spec = bench.spec("away", &sandbox, "sleep 600");
    spec.name = "second".into();
    let second = bench.docker.start(spec).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let (way, cut) = way(&socket);
    let other = bench.through(&socket);
    let shutdown = CancellationToken::new();
    let watching = tokio::spawn(other.clone().watch(shutdown.clone()));
    let mut health = other.health();
    let mut is = async |wanted: fn(&Health) -> bool| {
        let waited = tokio::time::timeout(LONG, health.wait_for(wanted)).await;
        waited.unwrap().unwrap().clone()
    };
    is(|health| matches!(health, Health::Ready { .. })).await;
    let (first_again, second_again) = (other.adopt(first.id()).await.unwrap(), other.adopt(second.id()).await.unwrap());

    cut.cancel();
    way.await.unwrap();
    is(|health| matches!(health, Health::Down { .. })).await;
    first.kill();
    exited(&first).await;
    second_again.kill();
    assert_eq!((first_again.exit(), second_again.exit()), (None, None));

    let (way, cut) = self::way(&socket);
    is(|health| matches!(health, Health::Ready { .. })).await;
    assert_eq!(exited(&first_again).await.code, 137);
    // What could not be sent is sent now.
    assert_eq!(exited(&second_again).await.code, 137);
    shutdown.cancel();
    watching.await.unwrap();
    cut.cancel();
    way.await.unwrap();
}

/// A way to the engine that can be cut.
fn way(socket: &Path) -> (JoinHandle<()>, CancellationToken) {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let engine = host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock").to_owned();
    let cut = CancellationToken::new();
    let (listener, path, ended) = (UnixListener::bind(socket).unwrap(), socket.to_owned(), cut.clone());
    let way = tokio::spawn(async move {
        while let Some(accepted) = ended.run_until_cancelled(listener.accept()).await {
            let (mut client, _) = accepted.unwrap();
            let (engine, ended) = (engine.clone(), ended.clone());
            tokio::spawn(async move {
                let mut engine = UnixStream::connect(&engine).await.unwrap();
                let _ = ended.run_until_cancelled(tokio::io::copy_bidirectional(&mut client, &mut engine)).await;
            });
        }
        std::fs::remove_file(path).unwrap();
    });
    (way, cut)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_remove_has_ended() {
    let Some(bench) = bench().await else { return };
    let container = bench.run("removed", 10, "sleep 600").await;
    cli(&["rm", "-f", container.id()]);
    assert_eq!(exited(&container).await.code, 137);
    let Err(error) = bench.docker.adopt(container.id()).await else { panic!("it is gone") };
    assert_eq!(error, DockerError::NotFound { id: container.id().to_owned() });
    bench.docker.remove_pod("no such pod").await.unwrap();
    bench.docker.remove(container.id()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_off_starts_leave_nothing() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("broken", 10)).await.unwrap();
    let uid = bench.pod("broken").uid;
    for wait_ms in [0, 2, 10, 30, 80, 160] {
        let starting = bench.docker.start(bench.spec("broken", &sandbox, "sleep 600"));
        let _ = tokio::time::timeout(Duration::from_millis(wait_ms), starting).await;
    }
    // The name is the same each time; whatever is left over is not in the way.
    let mut last = None;
    until("a start after broken ones", async || {
        last = bench.docker.start(bench.spec("broken", &sandbox, "sleep 600")).await.ok();
        last.is_some()
    })
    .await;
    let id = last.unwrap().id().to_owned();
    until("only the last one lives", async || {
        let found = bench.docker.find(&uid).await.unwrap().containers;
        matches!(found.as_slice(), [one] if one.id == id && is_running(&one.state))
    })
    .await;

    // A removal waits for what is being made.
    let making = tokio::spawn({
        let (docker, spec) = (bench.docker.clone(), bench.sandbox_spec("early", 20));
        async move { docker.sandbox(spec).await.map(|sandbox| sandbox.id) }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    making.abort();
    bench.docker.remove_pod(&bench.pod("early").uid).await.unwrap();
    assert!(bench.docker.find(&bench.pod("early").uid).await.unwrap().sandbox.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_goes() {
    let Some(bench) = bench().await else { return };
    let sandbox = bench.docker.sandbox(bench.sandbox_spec("kept", 10)).await.unwrap();
    for attempt in 0..4 {
        let mut spec = bench.spec("kept", &sandbox, "echo $0; exit 1");
        spec.attempt = attempt;
        exited(&bench.docker.start(spec).await.unwrap()).await;
    }
    let uid = bench.pod("kept").uid;
    until("older attempts go by themselves", async || {
        let found = bench.docker.find(&uid).await.unwrap().containers;
        found.iter().map(|container| container.attempt).collect::<Vec<_>>() == [3, 2]
    })
    .await;
    bench.run("gone", 11, "sleep 600").await;
    let keep = HashSet::from([uid.clone()]);
    let never = ImageLimits { high_percent: 101, low_percent: 100 };
    let collected = bench.docker.collect(|uid| keep.contains(uid), never).await.unwrap();
    assert_eq!(collected.pods, [bench.pod("gone").uid]);
    assert!(collected.images.is_empty() && collected.disk_percent.is_some_and(|percent| percent <= 100));
    assert_eq!(bench.docker.pods().await.unwrap(), [uid]);
}

/// In a process of its own, whose open files are no other test's.
#[tokio::test(flavor = "multi_thread")]
async fn cycles_leave_nothing() {
    const ALONE: &str = "CORACLE_TEST_ALONE";
    let Some(bench) = bench().await else { return };
    if std::env::var_os(ALONE).is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "docker::life::cycles_leave_nothing", "--nocapture"]).env(ALONE, "1");
        assert!(alone.status().unwrap().success());
        return;
    }
    let mut warm = usize::MAX;
    for cycle in 0..31_u8 {
        let name = format!("cycle{cycle}");
        let container = bench.run(&name, 20, "sleep 600").await;
        if cycle % 3 == 0 {
            container.kill();
            exited(&container).await;
        }
        bench.docker.remove_pod(&bench.pod(&name).uid).await.unwrap();
        if cycle == 0 {
            warm = open_files();
        }
    }
    assert_eq!(bench.left(), Vec::<String>::new());
    until("no file stays open", async || open_files() <= warm).await;
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mount(host: &str, container: &str) -> runtime::docker::DockerMount {
    runtime::docker::DockerMount { host: host.into(), container: container.into(), read_only: false, propagation: None }
}
