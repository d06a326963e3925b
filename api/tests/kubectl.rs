//! The kubectl binaries of this machine against programs and ports: the old ones speak SPDY, the new ones WebSockets.
#![allow(clippy::unwrap_used)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use support::{Server, TOKEN, Who};

const LARGE: usize = 10 * 1024 * 1024;

/// kubectl on the PATH, and other versions that lie beside it.
fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file());
    let Some(found) = found.and_then(|file| file.canonicalize().ok()) else { return Vec::new() };
    let beside = std::fs::read_dir(found.parent().unwrap_or(Path::new("/"))).into_iter().flatten().flatten();
    let beside = beside.map(|entry| entry.path());
    let is_kubectl =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubectl."));
    let mut all: Vec<PathBuf> = beside.filter(is_kubectl).collect();
    all.sort();
    // the oldest, the newest and what the machine uses: the others speak what one of these does
    let mut some: Vec<PathBuf> =
        [all.first().cloned(), all.last().cloned(), Some(found)].into_iter().flatten().collect();
    some.dedup();
    some
}

/// A child that does not outlive its test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Kubectl {
    binary: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--kubeconfig").arg(&self.config).args(args).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
        command
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(args);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap();
        output
    }

    fn expect(&self, args: &[&str], input: &[u8], code: i32, stdout: &str, stderr: &str) {
        let output = self.run(args, input);
        let said =
            (output.status.code(), String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((said.0, &*said.1), (Some(code), stdout), "{:?} {args:?}: {}", self.binary, said.2);
        assert!(said.2.contains(stderr), "{:?} {args:?}: {}", self.binary, said.2);
    }

    fn programs(&self) {
        self.expect(&["exec", "p", "--", "say", "hi"], b"", 0, "hi", "");
        self.expect(&["exec", "p", "--", "warn", "no"], b"", 0, "", "no");
        self.expect(&["exec", "p", "--", "exit", "7"], b"", 7, "", "command terminated with exit code 7");
        self.expect(&["exec", "p", "-c", "a", "--", "absent"], b"", 1, "", "container not found (\"a\")");
        self.expect(&["exec", "-i", "p", "--", "count"], &vec![b'x'; LARGE], 0, &LARGE.to_string(), "");
        self.expect(&["attach", "-i", "p"], b"hello", 0, "hello", "");
        let version = self.binary.file_name().unwrap().to_string_lossy().replace(['.', '_'], "-");
        let name = format!("debugger-{version}");
        let debug = self.run(&["debug", "p", "--image=x", "--target=a", "-c", &name], b"");
        assert!(debug.status.success(), "{:?}: {debug:?}", self.binary);
        let added = "jsonpath={.spec.ephemeralContainers[-1:].name}";
        self.expect(&["get", "pod", "p", "-o", added], b"", 0, &name, "");
        let flood = self.run(&["exec", "p", "--", "flood", &LARGE.to_string()], b"");
        assert_eq!((flood.status.code(), flood.stdout.len()), (Some(0), LARGE), "{:?}", self.binary);
        let bytes: Vec<u8> = (0..LARGE).map(|at| (at / 7) as u8).collect();
        let back = self.run(&["exec", "-i", "p", "--", "cat"], &bytes);
        assert!(back.stdout == bytes, "{:?}: {} of {LARGE} bytes came back", self.binary, back.stdout.len());
    }

    fn ports(&self) {
        let mut child = self.command(&["port-forward", "p", ":80"]);
        let child = child.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut child = Held(child);
        let mut line = String::new();
        let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.split(' ').nth(2).unwrap_or_else(|| panic!("{line}")).to_owned();
        // what it prints further is not to block it
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let connections: Vec<_> = (0..20_u8)
            .map(|at| {
                let address = address.clone();
                std::thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    let mut writing = stream.try_clone().unwrap();
                    let sending = std::thread::spawn(move || {
                        writing.write_all(&vec![at; 500_000]).unwrap();
                        writing.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes).unwrap();
                    sending.join().unwrap();
                    assert!(bytes.ends_with(b"heard 500000"), "{at}: {} bytes", bytes.len());
                    assert!(bytes[..500_000].iter().all(|byte| *byte == at));
                })
            })
            .collect();
        for connection in connections {
            connection.join().unwrap();
        }
    }

    fn metrics(&self) {
        self.expect(&["top", "node", "n", "--no-headers"], b"", 0, "n     124m   12%   3Mi   0%    \n", "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_reaches_programs_and_ports() {
    let binaries = kubectls();
    if binaries.is_empty() {
        println!("not run: no kubectl on the PATH");
        return;
    }
    let server = Server::start().await;
    let mut client = server.client(Who::Certificate).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "n", "containers": [{"name": "a", "image": "x", "stdin": true}]},
    });
    assert_eq!(client.send("POST", "/api/v1/namespaces/default/pods", &pod).await.code, 201);
    let status = json!({"status": {"phase": "Running", "containerStatuses": [{
        "name": "a", "image": "x", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}},
    }], "conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(client.patch("/api/v1/namespaces/default/pods/p/status", "merge-patch", &status).await.code, 200);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"allocatable": {"cpu": "1", "memory": "8Gi"}}});
    assert_eq!(client.send("POST", "/api/v1/nodes", &node).await.code, 201);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let url = format!("https://127.0.0.1:{}", server.address().port());
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "clusters": [{"name": "c", "cluster": {
            "server": url, "tls-server-name": "localhost", "certificate-authority-data": STANDARD.encode(pem(server.authority())),
        }}],
    });
    std::fs::write(&config, kubeconfig.to_string()).unwrap();
    for binary in binaries {
        let kubectl = Kubectl { binary, config: config.clone() };
        tokio::task::spawn_blocking(move || {
            kubectl.programs();
            kubectl.ports();
            kubectl.metrics();
        })
        .await
        .unwrap();
    }
    server.stop().await;
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
