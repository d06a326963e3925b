//! The programs that the tests drive, and how a Debian-like machine gets them.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// A program and the Debian package that brings it.
const TOOLS: [(&str, &str); 1] = [("kubectl", "kubernetes-client")];

/// Installs what is missing. Returns what had to be done without, in words: only where this user may not install.
pub fn install() -> Result<Vec<String>> {
    let mut without = Vec::new();
    for (program, package) in TOOLS {
        if on_path(program) {
            continue;
        }
        if !is_root() {
            without.push(format!("tests that drive {program}: install package {package} as root, then run them again"));
            continue;
        }
        apt(&["update"])?;
        apt(&["install", "--yes", "--no-install-recommends", package])?;
    }
    Ok(without)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(Path::new("/proc/self")).is_ok_and(|own| own.uid() == 0)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("run apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed", arguments.join(" "));
    }
    Ok(())
}
