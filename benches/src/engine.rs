//! Docker, by its own client: an image made here, `docker run` to compare with, and what a node leaves behind.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The label by which a node finds again what it made.
const OWNER_LABEL: &str = "coracle.dev/node";

/// An image of busybox with a page to serve; removed when dropped.
pub struct Image {
    /// Its name.
    pub name: String,
}

/// Makes the image; `None`, with a word why, where there is no root, no Docker or no busybox.
pub fn image() -> Result<Option<Image>> {
    if !rootly() || docker(&["version"]).is_err() {
        crate::line("not measured", "needs root and a Docker engine");
        return Ok(None);
    }
    let name = format!("coracle-bench-{}/busybox:1", std::process::id());
    const MAKE: &str = r#"
        set -e
        dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
        mkdir -p "$dir/bin" "$dir/www" "$dir/proc" "$dir/sys" "$dir/dev" "$dir/etc" "$dir/tmp"
        cp /bin/busybox "$dir/bin/"; for name in sh httpd sleep true; do ln -s busybox "$dir/bin/$name"; done
        echo hello > "$dir/www/index.html"
        tar -C "$dir" -c . | docker import --change 'ENV PATH=/bin' - "$0"
    "#;
    let made = Command::new("sh").args(["-c", MAKE, &name]).output()?;
    if !made.status.success() {
        bail!("make an image of /bin/busybox: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(Some(Image { name }))
}

impl Drop for Image {
    fn drop(&mut self) {
        // a measurement that failed may have left a container of it
        let _ = docker(&["rmi", "--force", &self.name]);
    }
}

/// Runs Docker's client; its stdout.
pub fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output().context("run docker")?;
    if !output.status.success() {
        bail!("docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Removes all that the node with that bridge network has made and not removed.
pub fn remove_node(subnet: &str) {
    let Some(owner) = owner(subnet) else { return };
    for id in containers(&owner) {
        let _ = docker(&["rm", "--force", "--volumes", &id]);
    }
    let _ = docker(&["network", "rm", &format!("coracle-{owner}")]);
}

/// How many containers a node has, also of those that have ended.
pub fn count_of_node(subnet: &str) -> usize {
    owner(subnet).map_or(0, |owner| containers(&owner).len())
}

fn owner(subnet: &str) -> Option<String> {
    let ids = docker(&["network", "ls", "--quiet", "--filter", &format!("label={OWNER_LABEL}")]).ok()?;
    ids.lines().find_map(|id| {
        let format =
            format!("{{{{index .Labels \"{OWNER_LABEL}\"}}}} {{{{range .IPAM.Config}}}}{{{{.Subnet}}}}{{{{end}}}}");
        let text = docker(&["network", "inspect", "--format", &format, id]).ok()?;
        let (owner, found) = text.split_once(' ')?;
        (found == subnet).then(|| owner.to_owned())
    })
}

fn containers(owner: &str) -> Vec<String> {
    let listed = docker(&["ps", "--all", "--quiet", "--filter", &format!("label={OWNER_LABEL}={owner}")]);
    listed.unwrap_or_default().lines().map(str::to_owned).collect()
}

fn rootly() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The middle of the ratios of pairs.
pub fn median_ratio(pairs: &[(Duration, Duration)]) -> f64 {
    let mut ratios: Vec<f64> = pairs.iter().map(|(ours, theirs)| ours.as_secs_f64() / theirs.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}
