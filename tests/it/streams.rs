//! What kubectl does to a running container: exec, attach, cp, port-forward and logs, with the oldest kubectl that must
//! work (SPDY), the newest (WebSocket) and coracle itself, on both kinds of container.

use crate::harness::{Room, User, feed, kubectls, request, terminal, until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

/// A pod with a container of each kind, which live until told otherwise.
const PAIR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: pair}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - {name: busybox, image: BUSYBOX, command: [httpd, -f, -p, "127.0.0.1:8080", -h, /www], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: wasm, image: PROBE, args: [http, "8000"], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: counter, image: PROBE, args: [count, "9000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: alone}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: data, emptyDir: {}}]
  containers: [{name: wasm, image: PROBE, args: [http, "8000"], volumeMounts: [{name: data, mountPath: /data}]}]
"#;

fn pair(namespace: &str) -> Option<Room> {
    let room = Room::enter(namespace)?;
    room.apply(PAIR);
    room.wait("pod/pair", "condition=Ready");
    room.wait("pod/alone", "condition=Ready");
    Some(room)
}

/// Both kubectls and coracle.
fn clients() -> Vec<PathBuf> {
    let mut clients = kubectls();
    clients.push(env!("CARGO_BIN_EXE_coracle").into());
    clients
}

fn exec(room: &User, client: &Path, flags: &[&str], command: &[&str], input: &[u8]) -> Output {
    room.client(client, &[&["exec"], flags, &["--"], command].concat(), input)
}

#[test]
fn exec_passes_arguments_streams_and_exit_codes() {
    let Some(room) = pair("exec") else { return };
    let much = vec![b'z'; 3 << 20];
    for client in &clients() {
        let name = client.display();
        let busybox = ["pair", "-c", "busybox"];
        let output = exec(&room, client, &busybox, &["sh", "-c", "echo out $0; echo err >&2; exit 3", "a b"], b"");
        assert_eq!((&*output.stdout, output.status.code()), (&b"out a b\n"[..], Some(3)), "{name}: {output:?}");
        assert!(output.stderr.starts_with(b"err\n"), "{name}: {output:?}");
        let output = exec(&room, client, &["pair", "-c", "busybox", "-i"], &["cat"], &much);
        assert!(output.stdout == much && output.status.success(), "{name}: {} bytes", output.stdout.len());
        let output = exec(&room, client, &busybox, &["/no/such"], b"");
        assert!([126, 127].contains(&output.status.code().unwrap()), "{name}: {output:?}");

        for wasm in [["pair", "-c", "wasm"], ["alone", "-c", "wasm"]] {
            let output = exec(&room, client, &wasm, &["probe", "args", "a b", "c"], b"");
            assert_eq!(output.stdout, b"[\"args\", \"a b\", \"c\"]\n", "{name}: {output:?}");
            let output = exec(&room, client, &wasm, &["probe", "both"], b"");
            assert_eq!((&*output.stdout, &*output.stderr), (&b"to stdout\n"[..], &b"to stderr\n"[..]), "{name}");
            let output = exec(&room, client, &wasm, &["probe", "fail"], b"");
            assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
            let output = exec(&room, client, &[&wasm[..], &["-i"]].concat(), &["probe", "hear"], b"one\ntwo\n");
            assert_eq!(output.stdout, b"heard one\nheard two\nthe end after 8 bytes\n", "{name}: {output:?}");
            let output = exec(&room, client, &[&wasm[..], &["-i"]].concat(), &["probe", "hear"], &much);
            let heard = format!("the end after {} bytes\n", much.len());
            assert_eq!(String::from_utf8_lossy(&output.stdout), heard, "{name}");
        }
        let output = exec(&room, client, &["pair", "-c", "nobody"], &["true"], b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("nobody"), "{name}: {said}");
    }
}

#[test]
fn exec_on_a_terminal_has_its_size() {
    let Some(room) = pair("terminal") else { return };
    for client in &clients() {
        let name = client.display();
        let on_terminal = |line: &str| {
            let line = format!("stty rows 41 cols 97; exec {} exec -it {line}", client.display());
            let mut command = room.command("script");
            feed(command.args(terminal(&line)).env("SHELL", "/bin/sh"), b"")
        };
        // the size is told by a message of its own that may come after the start
        let wait = "sh -c 'for i in 1 2 3 4 5 6 7 8 9; do [ \"$(stty size)\" = \"41 97\" ] && break; sleep 0.2; done; stty size; exit 4'";
        let output = on_terminal(&format!("pair -c busybox -- {wait}"));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("41 97") && output.status.code() == Some(4), "{name}: {output:?}");
        for pod in ["pair", "alone"] {
            let output = on_terminal(&format!("{pod} -c wasm -- probe terminal"));
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("true true"), "{name}: {output:?}");
        }
    }
}

#[test]
fn attach_gives_a_program_its_input() {
    let Some(room) = Room::enter("attach") else { return };
    let specs = [
        ("docker", "image: BUSYBOX, command: [sh, -c, \"while read x; do echo heard $x; done; echo the end\"]"),
        ("wasm", "image: PROBE, args: [hear]"),
    ];
    for (number, client) in clients().iter().enumerate() {
        for (kind, spec) in specs {
            let pod = format!("{kind}-{number}");
            room.apply(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
                 - {{name: main, stdin: true, stdinOnce: true, {spec}}}\n"
            ));
            room.wait(&format!("pod/{pod}"), "condition=Ready");
            let output = room.client(client, &["attach", "-i", &pod], b"one\ntwo\n");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("heard one\nheard two\nthe end"), "{} {kind}: {output:?}", client.display());
            room.wait(&format!("pod/{pod}"), "jsonpath={.status.phase}=Succeeded");
            assert!(room.kubectl(&["logs", &pod]).contains("heard one\nheard two\n"));
        }
    }
}

#[test]
fn run_makes_attaches_and_removes() {
    let Some(room) = Room::enter("run") else { return };
    let image = crate::harness::Busybox::image();
    for (number, client) in clients().iter().enumerate() {
        let (pod, image) = (format!("run-{number}"), format!("--image={image}"));
        let arguments = ["run", &pod, &image, "-i", "--rm", "--restart=Never", "--", "sh", "-c", "cat; exit 0"];
        let output = room.client(client, &arguments, b"through the pipe\n");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("through the pipe") && output.status.success(), "{}: {output:?}", client.display());
        assert_eq!(room.field(&format!("pod/{pod}"), "{.metadata.deletionTimestamp}"), "");
    }
}

#[test]
fn cp_goes_both_ways() {
    let Some(room) = pair("cp") else { return };
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (number, client) in clients().iter().enumerate() {
        let name = client.display();
        let tree = PathBuf::from(room.path(&format!("tree-{number}")));
        std::fs::create_dir_all(tree.join("deep/er")).unwrap();
        std::fs::write(tree.join("big"), &bytes).unwrap();
        std::fs::write(tree.join("deep/er/small with space"), "small\n").unwrap();
        std::fs::write(tree.join("empty"), "").unwrap();
        for (pod, container) in [("pair", "busybox"), ("pair", "wasm"), ("alone", "wasm")] {
            let cp = |from: &str, to: &str| {
                let output = room.client(client, &["cp", from, to, "-c", container], b"");
                assert!(output.status.success(), "{name}: cp {from} {to} -c {container}: {output:?}");
            };
            let inside = format!("{pod}:/data/{number}-{container}");
            cp(tree.to_str().unwrap(), &inside);
            let back = PathBuf::from(room.path(&format!("back-{number}-{pod}-{container}")));
            cp(&inside, back.to_str().unwrap());
            assert!(std::fs::read(back.join("big")).unwrap() == bytes, "{name} {pod} {container}");
            assert_eq!(std::fs::read(back.join("deep/er/small with space")).unwrap(), b"small\n");
            assert_eq!(std::fs::read(back.join("empty")).unwrap(), b"");
            let single = room.file("single", "one file\n");
            cp(&single, &format!("{pod}:/data/single-{number}"));
            let again = room.path(&format!("again-{number}-{pod}-{container}"));
            cp(&format!("{pod}:/data/single-{number}"), &again);
            assert_eq!(std::fs::read_to_string(&again).unwrap(), "one file\n");
        }
        // what tar says of it is lost by some kubectls, which end before it comes
        room.client(client, &["cp", "pair:/data/nowhere", &room.path("nowhere"), "-c", "wasm"], b"");
        assert!(!Path::new(&room.path("nowhere")).exists(), "{name}");
    }
    assert_eq!(room.kubectl(&["exec", "pair", "-c", "wasm", "--", "probe", "cat", "/data/single-0"]), "one file\n");
}

/// A `port-forward` that goes on, and where it listens for each port.
pub struct Forward {
    child: Child,
    /// Where it listens, in the order of the pod's ports.
    pub ports: Vec<SocketAddr>,
}

impl Forward {
    /// Waits until it listens.
    pub fn start(room: &User, client: &Path, pod: &str, ports: &[&str]) -> Self {
        let mut command = room.command(client);
        command.args(["port-forward", "--address", "127.0.0.1", pod]).args(ports);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let local = |line: String| line.strip_prefix("Forwarding from ")?.split(' ').next()?.parse().ok();
        let ports = lines.by_ref().filter_map(local).take(ports.len()).collect();
        // it tells of every connection, and ends when nobody listens
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, ports }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

#[test]
fn port_forward_carries_many_connections_and_half_closes() {
    let Some(room) = pair("forward") else { return };
    for client in &clients() {
        let name = client.display();
        let forward = Forward::start(&room, client, "pod/pair", &[":8080", ":8000", ":9000"]);
        let [busybox, wasm, counter] = forward.ports[..] else { panic!("{name}: {:?}", forward.ports) };
        std::thread::scope(|scope| {
            for number in 0..30 {
                scope.spawn(move || {
                    let path = format!("/{number}");
                    let reply = request(wasm, "wasm", &path).unwrap();
                    assert_eq!(reply.body, format!("wasm answers {path}\n"));
                    assert_eq!(request(busybox, "busybox", "/").unwrap().body, "hello from busybox\n");
                });
            }
        });
        // four megabytes, then the end of what this side says; the answer comes after that
        let mut stream = TcpStream::connect(counter).unwrap();
        stream.write_all(&vec![7; 4 << 20]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("counted {}\n", 4 << 20), "{name}");
        drop(forward);
        let forward = Forward::start(&room, client, "pod/alone", &[":8000"]);
        assert_eq!(request(forward.ports[0], "alone", "/a").unwrap().body, "wasm answers /a\n", "{name}");
    }
}

#[test]
fn logs_by_all_their_flags() {
    let Some(room) = Room::enter("logs") else { return };
    room.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: busybox, image: BUSYBOX, command: [sh, -c, "i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); done; echo wrong >&2; sleep 1000"]}
  - {name: wasm, image: PROBE, args: [tick]}
"#,
    );
    room.wait("pod/talker", "condition=Ready");
    let logs = |arguments: &[&str]| room.kubectl(&[&["logs"], arguments].concat());
    until("all lines are there", || logs(&["talker", "-c", "busybox"]).contains("wrong").then_some(()));
    let all = logs(&["talker", "-c", "busybox"]);
    assert_eq!(all.lines().count(), 51, "{all}");
    assert_eq!(logs(&["talker", "-c", "busybox", "--tail=2"]).lines().count(), 2);
    assert_eq!(logs(&["talker", "-c", "busybox", "--limit-bytes=10"]).len(), 10);
    assert_eq!(logs(&["talker", "-c", "busybox", "--since-time=2100-01-01T00:00:00Z"]), "");
    let stamped = logs(&["talker", "-c", "busybox", "--timestamps", "--tail=1"]);
    assert!(stamped.starts_with("20") && stamped.contains('Z'), "{stamped}");
    let both = logs(&["-l", "app=talker", "--all-containers", "--prefix", "--tail=5"]);
    assert!(both.contains("[pod/talker/busybox] ") && both.contains("[pod/talker/wasm] tick"), "{both}");
    assert!(logs(&["talker"]).contains("line 0"), "the first container is the default");
    assert_eq!(room.coracle(&["logs", "talker", "-c", "busybox"]), all);
    for container in ["busybox", "wasm"] {
        let mut follow = room.command("kubectl");
        follow.args(["logs", "-f", "talker", "-c", container]);
        let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
        let wanted = if container == "wasm" { "tick 40" } else { "wrong" };
        assert!(lines.any(|line| line.unwrap() == wanted), "{container}");
        let _ = std::process::Command::new("kill").arg(follow.id().to_string()).status();
        follow.wait().unwrap();
    }
}
