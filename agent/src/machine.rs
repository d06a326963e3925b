//! The machine that the node runs on: what it has, what presses on it, whether it is being switched off.
//!
//! Read from /proc and the file system; only systemd can say that a machine is being switched off, and a machine without it
//! is not said to be.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Below this share of free memory or disk the node is under pressure.
const PRESSURE_PERCENT: u64 = 5;
/// systemd answers in so long or is not heard.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// What the machine has.
#[derive(Clone, Debug)]
pub struct Machine {
    cpus: usize,
    memory_bytes: u64,
    disk_bytes: u64,
    /// `/etc/machine-id`
    pub machine_id: String,
    /// Another one after each start of the machine.
    pub boot_id: String,
    /// `6.12.9`
    pub kernel: String,
    /// `Debian GNU/Linux 12 (bookworm)`
    pub os_image: String,
    /// As Go spells it: `amd64`, `arm64`.
    pub arch: &'static str,
}

impl Machine {
    /// Looks at the machine; `data_dir` is on the disk that counts.
    pub fn look(data_dir: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let name = rustix::system::uname();
        let pretty = read("/etc/os-release");
        let pretty = pretty.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory("MemTotal:"),
            disk_bytes: disk(data_dir).0,
            machine_id: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: name.release().to_string_lossy().into_owned(),
            os_image: pretty.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_owned()),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                "x86" => "386",
                other => other,
            },
        }
    }

    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Capacity, which is also what pods may have: the node's own needs are small and not set aside.
    pub fn resources(&self, pods_max: u32) -> [(String, Quantity); 4] {
        let kibi = |bytes: u64| Quantity(format!("{}Ki", bytes / 1024));
        [
            ("cpu".into(), Quantity(self.cpus.to_string())),
            ("ephemeral-storage".into(), kibi(self.disk_bytes)),
            ("memory".into(), kibi(self.memory_bytes)),
            ("pods".into(), Quantity(pods_max.to_string())),
        ]
    }
}

/// A figure of /proc/meminfo, in bytes.
fn memory(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Total and available bytes of the file system.
fn disk(path: &Path) -> (u64, u64) {
    rustix::fs::statvfs(path).map_or((0, 0), |stat| (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// What presses on the machine now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Little memory is left.
    pub memory: bool,
    /// Little disk is left.
    pub disk: bool,
}

impl Pressure {
    /// Looks at the machine.
    pub fn look(machine: &Machine, data_dir: &Path) -> Self {
        let scarce = |free: u64, all: u64| all > 0 && free < all / 100 * PRESSURE_PERCENT;
        Self {
            memory: scarce(memory("MemAvailable:"), machine.memory_bytes),
            disk: scarce(disk(data_dir).1, machine.disk_bytes),
        }
    }
}

/// Whether the machine is being switched off.
pub async fn is_stopping() -> bool {
    if !Path::new("/run/systemd/system").exists() {
        return false;
    }
    tokio::task::spawn_blocking(|| ask_systemd().is_some_and(|state| state.trim() == "stopping")).await.unwrap_or(false)
}

/// `running`, `degraded`, `stopping`, ...
fn ask_systemd() -> Option<String> {
    let mut child = Command::new("systemctl")
        .arg("is-system-running")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let end = Instant::now() + ANSWER_MAX;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut word = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut()?, &mut word).ok()?;
    Some(word)
}
