//! A cluster to test against, and the ways in.

mod cable;
mod docker;
mod engine;
mod fleet;
mod net;
mod programs;
mod registry;
mod room;
mod server;

pub use cable::{Cable, Weather};
pub use docker::{Busybox, docker, has_docker};
pub use engine::Engine;
pub use fleet::{Agent, Fleet};
pub use net::{Reply, Traffic, free_port, request};
pub use programs::{feed, kubectls, terminal};
pub use registry::Registry;
pub use room::Room;
pub use server::Server;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A `coracle server` of this test alone, and a user of it.
pub struct Cluster {
    user: User,
    server: Server,
}

impl Cluster {
    /// Starts a server that needs no privilege, in loopback networks, and waits until its node is ready.
    pub fn start() -> Self {
        Self::of(Server::start_loopback())
    }

    /// Starts a server as root installs one, with Docker; `None`, with a word why, where the tests have neither.
    pub fn privileged() -> Option<Self> {
        has_docker().then(|| Self::of(Server::start_privileged()))
    }

    /// The same with the Docker, if any, that listens at a `DOCKER_HOST`.
    pub fn with_docker_at(host: &str) -> Self {
        Self::of(Server::start_at(host))
    }

    fn of(server: Server) -> Self {
        Self { user: server.user(), server }
    }

    /// Starts the server again, on the same directory and ports.
    pub fn run(&mut self) {
        self.server.run();
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A request through the ingress.
    pub fn ingress(&self, host: &str, path: &str) -> std::io::Result<Reply> {
        request(self.server.ingress(), host, path)
    }
}

impl std::ops::Deref for Cluster {
    type Target = User;

    fn deref(&self) -> &User {
        &self.user
    }
}

/// Somebody with a kubeconfig, and a directory for files.
pub struct User {
    dir: TempDir,
    kubeconfig: PathBuf,
    log: PathBuf,
}

impl User {
    /// A path in the user's directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A file in the user's directory.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs kubectl; its exit code and words.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Output {
        self.client("kubectl", arguments, b"")
    }

    /// Runs kubectl, which must succeed; its stdout.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.succeed(arguments, self.kubectl_output(arguments))
    }

    /// Runs kubectl; its stdout, whatever happened.
    pub fn try_kubectl(&self, arguments: &[&str]) -> String {
        String::from_utf8_lossy(&self.kubectl_output(arguments).stdout).into_owned()
    }

    /// Runs coracle as a client.
    pub fn coracle_output(&self, arguments: &[&str]) -> Output {
        self.client(env!("CARGO_BIN_EXE_coracle"), arguments, b"")
    }

    /// Runs coracle as a client, which must succeed; its stdout.
    #[track_caller]
    pub fn coracle(&self, arguments: &[&str]) -> String {
        self.succeed(arguments, self.coracle_output(arguments))
    }

    /// Runs any client program with this user's kubeconfig, giving it `input`. It is ended when it takes too long.
    pub fn client(&self, program: impl AsRef<Path>, arguments: &[&str], input: &[u8]) -> Output {
        feed(self.command(program.as_ref()).args(arguments), input)
    }

    /// The same, not yet started, for programs that go on.
    pub fn command(&self, program: impl AsRef<Path>) -> std::process::Command {
        let mut command = programs::bounded(program.as_ref());
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", self.dir.path()).current_dir(root());
        command
    }

    /// The stdout of a client that must have succeeded.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str], output: Output) -> String {
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "{arguments:?}: {}\n{stdout}\n{stderr}\n--- the server's log ---\n{}",
            output.status,
            self.log()
        );
        stdout.into_owned()
    }

    /// Applies a manifest given as text, in which the images BUSYBOX, PROBE and WEB stand for those of the tests.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let arguments = ["apply", "-f", "-"];
        let manifest = manifest
            .replace("image: BUSYBOX", &format!("image: {}", Busybox::image()))
            .replace("image: PROBE", &format!("image: {}", probe()))
            .replace("image: WEB", &format!("image: {}", guest("web.wasm")));
        self.succeed(&arguments, self.client("kubectl", &arguments, manifest.as_bytes()))
    }

    /// One object, or a list of them, as JSON.
    #[track_caller]
    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).unwrap()
    }

    /// What a JSONPath yields of an object; nothing where it is not there.
    pub fn field(&self, what: &str, path: &str) -> String {
        self.try_kubectl(&["get", what, "-o", &format!("jsonpath={path}")])
    }

    /// Waits until a JSONPath yields what is wanted.
    #[track_caller]
    pub fn until_field(&self, what: &str, path: &str, wanted: &str) {
        let mut last = String::new();
        until_or(
            || {
                last = self.field(what, path);
                (last == wanted).then_some(())
            },
            || format!("{what}: {path} is {wanted:?}\n{}", self.tell(what)),
        );
    }

    /// Waits until the events of an object contain a text; all of them.
    #[track_caller]
    pub fn until_event(&self, what: &str, text: &str) -> String {
        until_or(
            || {
                let events = self.events(what);
                events.contains(text).then_some(events)
            },
            || format!("an event of {what} contains {text:?}\n{}", self.tell(what)),
        )
    }

    /// Type, reason and message of each event of an object.
    pub fn events(&self, what: &str) -> String {
        self.try_kubectl(&["events", "--for", what])
    }

    /// Waits for a condition of an object as `kubectl wait` does.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: &str) {
        let output = self.kubectl_output(&["wait", what, &format!("--for={condition}"), "--timeout=100s"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {condition}: {said}\n{}", self.tell(what));
    }

    /// All that may explain why something is not so.
    fn tell(&self, what: &str) -> String {
        let object = self.try_kubectl(&["get", what, "-o", "yaml"]);
        let status = object.split_once("\nstatus:").map(|(_, status)| status.to_owned()).unwrap_or(object);
        format!(
            "--- status ---{status}\n--- events ---\n{}\n--- the server's log ---\n{}",
            self.events(what),
            self.log()
        )
    }

    /// The end of what the server said.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(100)..].join("\n")
    }
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

/// The guest of these tests, whose verbs its source tells.
pub fn probe() -> String {
    format!("file://{}", root().join("tests/it/guests/probe.wasm").display())
}

/// Asks until the answer is there.
#[track_caller]
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    until_or(ask, || what.to_owned())
}

/// As [`until`], with more to say when it fails.
#[track_caller]
pub fn until_or<T>(mut ask: impl FnMut() -> Option<T>, what: impl Fn() -> String) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "still not so: {}", what());
        std::thread::sleep(Duration::from_millis(100));
    }
}
