//! The programs that the tests drive, and how a Debian-like machine gets them.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program, whether what is there will do, and the Debian package that brings it.
struct Tool {
    program: &'static str,
    will_do: fn(&Path) -> bool,
    package: &'static str,
}

const TOOLS: [Tool; 9] = [
    Tool { program: "kubectl", will_do: any, package: "kubernetes-client" },
    Tool { program: "dockerd", will_do: any, package: "docker.io" },
    // a package of its own in newer Debians, part of docker.io in older ones
    Tool { program: "docker", will_do: any, package: "docker-cli" },
    Tool { program: "docker-registry", will_do: any, package: "docker-registry" },
    // images are made of it, so it must need no library
    Tool { program: "busybox", will_do: is_static, package: "busybox-static" },
    Tool { program: "dig", will_do: any, package: "bind9-dnsutils" },
    Tool { program: "ip", will_do: any, package: "iproute2" },
    // an engine without it cannot join its bridge to the network
    Tool { program: "iptables", will_do: any, package: "iptables" },
    Tool { program: "faketime", will_do: any, package: "faketime" },
];

/// Installs what is missing. Returns what had to be done without, in words: only where this user may not install, or
/// where the packages cannot be had.
pub fn install() -> Result<Vec<String>> {
    let mut without = Vec::new();
    let mut is_updated = false;
    for tool in &TOOLS {
        if is_there(tool) {
            continue;
        }
        let Tool { program, package, .. } = tool;
        if !is_root() {
            without.push(format!("tests that drive {program}: install package {package} as root, then run them again"));
            continue;
        }
        let update = if is_updated { Ok(()) } else { apt(&["update"]) };
        is_updated = true;
        let got = update.and_then(|()| apt(&["install", "--yes", "--no-install-recommends", package]));
        if let Err(error) = got {
            without.push(format!("tests that drive {program}: package {package} could not be installed: {error:#}"));
        }
    }
    Ok(without)
}

/// The first of that name on the path.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // an ordinary user's path may lack where daemons are
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Whether this user may do everything.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn is_there(tool: &Tool) -> bool {
    find(tool.program).is_some_and(|file| (tool.will_do)(&file))
}

fn any(_: &Path) -> bool {
    true
}

/// No dynamic linker is asked for; its name would be among the first pages.
fn is_static(file: &Path) -> bool {
    use std::io::Read;
    let mut head = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.windows(7).any(|window| window == b"/lib/ld" || window == b"ib64/ld")
}

/// Quiet unless it fails.
fn apt(arguments: &[&str]) -> Result<()> {
    println!("apt-get {}", arguments.join(" "));
    let output = Command::new("apt-get")
        .arg("-qq")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("run apt-get")?;
    if !output.status.success() {
        bail!("apt-get {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
