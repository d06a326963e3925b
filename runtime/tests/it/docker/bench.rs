//! What every test stands on: a `Docker` of its own owner and subnet, an image, and the promise to leave nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use runtime::docker::{DockerResources, DockerSecurity, FoundState, Health, ImageInfo, PodId, Sandbox, SandboxSpec};
use runtime::{Docker, DockerConfig, DockerContainer, DockerContainerSpec, Exit};
use tokio_util::sync::CancellationToken;

/// How long anything may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);
pub const IMAGE: &str = "coracle.test/busybox:1";

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Bench {
    pub docker: Docker,
    pub owner: String,
    pub bridge: String,
    third: [u8; 3],
    image: ImageInfo,
    watch: CancellationToken,
}

/// `None`: not to be run here, and why is printed.
pub async fn bench() -> Option<Arc<Bench>> {
    if std::env::var("CORACLE_TEST_DOCKER").as_deref() != Ok("1") {
        println!("not run: needs Docker (cargo xtask test)");
        return None;
    }
    make_image();
    let count = COUNT.fetch_add(1, Ordering::SeqCst);
    let unique = std::process::id() % 0x10_0000 * 64 + count % 64;
    let third = [10, 90 + (unique / 200 % 10) as u8, (unique % 200) as u8];
    let owner = format!("{:04x}{unique:08x}", 0x7e57);
    let bridge = format!("ct{unique:x}");
    let docker = Docker::new(config(&owner, &bridge, third));
    let watch = CancellationToken::new();
    tokio::spawn(docker.clone().watch(watch.clone()));
    let mut bench = Bench { docker, owner, bridge, third, image: ImageInfo::default(), watch };
    bench.ready().await;
    bench.image = bench.docker.has_image(IMAGE).await.unwrap().unwrap();
    Some(Arc::new(bench))
}

pub fn config(owner: &str, bridge: &str, [a, b, c]: [u8; 3]) -> DockerConfig {
    DockerConfig {
        owner: owner.to_owned(),
        subnet: format!("{a}.{b}.{c}.0/24"),
        gateway: Ipv4Addr::new(a, b, c, 1).into(),
        bridge: bridge.to_owned(),
        endpoint: None,
    }
}

impl Bench {
    pub async fn ready(&self) {
        let mut health = self.docker.health();
        let ready = health.wait_for(|health| matches!(health, Health::Ready { .. }));
        let found = tokio::time::timeout(LONG, ready).await;
        assert!(matches!(found, Ok(Ok(_))), "{:?}", *self.docker.health().borrow());
    }

    /// Another agent of the same node, as after a restart.
    pub fn another(&self) -> Docker {
        Docker::new(config(&self.owner, &self.bridge, self.third))
    }

    /// Another agent of the same node, on another way to the engine.
    pub fn through(&self, socket: &std::path::Path) -> Docker {
        let mut config = config(&self.owner, &self.bridge, self.third);
        config.endpoint = Some(format!("unix://{}", socket.display()));
        Docker::new(config)
    }

    pub fn other_subnet(&self) -> Docker {
        let [a, b, c] = self.third;
        Docker::new(config(&self.owner, &self.bridge, [a, b + 20, c]))
    }

    pub fn address(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.third;
        Ipv4Addr::new(a, b, c, last).into()
    }

    pub fn pod(&self, name: &str) -> PodId {
        PodId { namespace: "default".into(), name: name.into(), uid: format!("{}-{name}", self.owner) }
    }

    pub fn sandbox_spec(&self, name: &str, last: u8) -> SandboxSpec {
        SandboxSpec {
            pod: self.pod(name),
            address: Some(self.address(last)),
            hostname: format!("host-of-{name}"),
            share_processes: false,
            host_ipc: false,
            host_pid: false,
            sysctls: Vec::new(),
        }
    }

    pub fn spec(&self, pod: &str, sandbox: &Sandbox, script: &str) -> DockerContainerSpec {
        DockerContainerSpec {
            pod: self.pod(pod),
            name: "main".into(),
            attempt: 0,
            sandbox_id: Some(sandbox.id.clone()),
            image: self.image.id.clone(),
            image_name: IMAGE.into(),
            command: vec!["/bin/sh".into(), "-c".into()],
            args: vec![script.into()],
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            devices: Vec::new(),
            resources: DockerResources::default(),
            security: DockerSecurity::default(),
            tty: false,
            stdin: false,
            stdin_once: false,
            stop_signal: None,
            share_processes: false,
            share_pid_of: None,
            host_pid: false,
            host_ipc: false,
        }
    }

    /// A sandbox and a container that runs a script.
    pub async fn run(&self, pod: &str, last: u8, script: &str) -> DockerContainer {
        let sandbox = self.docker.sandbox(self.sandbox_spec(pod, last)).await.unwrap();
        self.docker.start(self.spec(pod, &sandbox, script)).await.unwrap()
    }

    /// Both outputs of a container that has ended or will.
    pub async fn output(&self, container: &DockerContainer) -> String {
        let options = runtime::logs::ReadOptions { follow: true, ..Default::default() };
        let stream = self.docker.logs(container.id(), options, true, true).await.unwrap();
        text(tokio::time::timeout(LONG, collect(stream)).await.unwrap())
    }

    /// The ids of everything this test's owner has.
    pub fn left(&self) -> Vec<String> {
        let label = format!("label=coracle.dev/node={}", self.owner);
        let ids = cli(&["ps", "-aq", "--filter", &label]);
        ids.split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.watch.cancel();
        // What a broken-off start is still making comes after; a second look finds it.
        for _ in 0..2 {
            let left = self.left();
            if !left.is_empty() {
                let mut args = vec!["rm", "-f", "-v"];
                args.extend(left.iter().map(String::as_str));
                cli(&args);
            }
        }
        cli(&["network", "rm", &format!("coracle-{}", self.owner)]);
    }
}

pub async fn exited(container: &DockerContainer) -> Exit {
    tokio::time::timeout(LONG, container.exited()).await.unwrap()
}

pub async fn collect(mut stream: futures::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = futures::StreamExt::next(&mut stream).await {
        all.extend_from_slice(&piece.unwrap());
    }
    all
}

pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Waits for something that others do.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let end = std::time::Instant::now() + LONG;
    while !done().await {
        assert!(std::time::Instant::now() < end, "{what}: not within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn is_running(state: &FoundState) -> bool {
    matches!(state, FoundState::Running)
}

pub fn cli(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// busybox, from this machine's own static one. It stays, as it is the same for everyone.
fn make_image() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        if !cli(&["images", "-q", IMAGE]).trim().is_empty() {
            return;
        }
        let mut archive = tar::Builder::new(Vec::new());
        archive.follow_symlinks(true);
        let mut add = |path: &str, mode: u32, content: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(mode);
            archive.append_data(&mut header, path, content).unwrap();
        };
        let busybox = std::fs::read("/bin/busybox").expect("package busybox-static");
        add("bin/busybox", 0o755, &busybox);
        add("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\nsomebody:x:1234:1234::/:/bin/sh\n");
        for program in [
            "sh", "cat", "echo", "sleep", "id", "ls", "ps", "nc", "wget", "httpd", "hostname", "stty", "dd", "head",
            "tail", "yes", "tr", "grep", "kill", "true", "false", "mkdir", "touch", "cp", "wc", "ip", "ipcs", "env",
            "printf", "seq", "mount", "date", "sync", "awk",
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, format!("bin/{program}"), "/bin/busybox").unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let mut import = Command::new("docker")
            .args(["import", "-c", "CMD [\"/bin/sh\", \"-c\", \"echo from the image\"]"])
            .args(["-c", "ENV FROM_IMAGE=yes PATH=/bin", "-", IMAGE])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut import.stdin.take().unwrap(), &archive).unwrap();
        assert!(import.wait().unwrap().success());
    });
}
