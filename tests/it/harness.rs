//! A cluster to test against, and the ways in.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A `coracle server` of this test alone.
pub struct Cluster {
    dir: TempDir,
    ports: Ports,
    networks: (String, String),
    server: Option<Child>,
}

struct Ports {
    api: u16,
    http: u16,
    https: u16,
}

impl Cluster {
    /// Starts a server and waits until its node is ready.
    pub fn start() -> Self {
        static NETWORKS: AtomicU8 = AtomicU8::new(0);
        let pair = 192 + 2 * (NETWORKS.fetch_add(1, Ordering::Relaxed) % 31);
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            ports: Ports { api: free_port(), http: free_port(), https: free_port() },
            networks: (format!("127.{pair}.0.0/16"), format!("127.{}.0.0/16", pair + 1)),
            server: None,
        };
        cluster.run();
        cluster
    }

    /// Starts the server again, on the same directory and ports.
    pub fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("server.log")).unwrap();
        let server = Command::new(env!("CARGO_BIN_EXE_coracle"))
            .arg("server")
            .args(["--data-dir", &self.path("data"), "--write-kubeconfig", &self.path("kubeconfig")])
            .args(["--bind-address", "127.0.0.1", "--https-listen-port", &self.ports.api.to_string()])
            .args(["--ingress-http-port", &self.ports.http.to_string()])
            .args(["--ingress-https-port", &self.ports.https.to_string()])
            .args(["--cluster-cidr", &self.networks.0, "--service-cidr", &self.networks.1])
            .args(["--node-name", "node"])
            .current_dir(root())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        until("the node is ready", || {
            let node = self.try_kubectl(&["get", "node", "node", "-o", READY]);
            (node.trim() == "True").then_some(())
        });
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// A path in the cluster's directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A file in the cluster's directory.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs kubectl; its exit code and words.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Output {
        self.client("kubectl", arguments)
    }

    /// Runs kubectl, which must succeed; its stdout.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeed(arguments, self.kubectl_output(arguments), || self.log())
    }

    /// Runs kubectl; its stdout, whatever happened.
    pub fn try_kubectl(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.kubectl_output(arguments).stdout).unwrap()
    }

    /// Runs coracle as a client.
    pub fn coracle_output(&self, arguments: &[&str]) -> Output {
        self.client(env!("CARGO_BIN_EXE_coracle"), arguments)
    }

    /// Runs coracle as a client, which must succeed; its stdout.
    #[track_caller]
    pub fn coracle(&self, arguments: &[&str]) -> String {
        succeed(arguments, self.coracle_output(arguments), || self.log())
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("HOME", self.dir.path())
            .current_dir(root())
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("run {program}: {error}"))
    }

    /// Applies a manifest given as text.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let file = self.file("manifest.yaml", manifest);
        self.kubectl(&["apply", "-f", &file])
    }

    /// One object as JSON.
    #[track_caller]
    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).unwrap()
    }

    /// A request through the ingress.
    pub fn ingress(&self, host: &str, path: &str) -> std::io::Result<Reply> {
        request(([127, 0, 0, 1], self.ports.http).into(), host, path)
    }

    /// What the server said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("server.log")).unwrap_or_default()
    }

    /// Waits for a condition of an object as `kubectl wait` does.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: &str) {
        self.kubectl(&["wait", what, &format!("--for={condition}"), "--timeout=120s"]);
    }
}

const READY: &str = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // it may have ended by itself, which is no reason to hide why the test fails
            let _ = server.kill();
            let _ = server.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
    }
}

#[track_caller]
fn succeed(arguments: &[&str], output: Output, log: impl Fn() -> String) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{stdout}\n{stderr}\n--- the server's log ---\n{}",
        output.status,
        log()
    );
    stdout.into_owned()
}

/// The checkout, where examples are.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A small guest of the runtime's own tests.
pub fn guest(name: &str) -> String {
    let path: PathBuf = root().join("runtime/tests/guests").join(name);
    assert!(path.exists(), "{}", path.display());
    format!("file://{}", path.display())
}

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Asks until the answer is there.
#[track_caller]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// An answer over HTTP/1.1.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

/// One GET on a connection of its own.
pub fn request(to: SocketAddr, host: &str, path: &str) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    let mut rest = String::new();
    reader.read_to_string(&mut rest)?;
    let body = rest.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok(Reply { status, body })
}
