//! Docker: its client, an image made here, and what a server has left behind.

use super::programs::{bounded, feed};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, Once, PoisonError};

/// The label by which a node finds again what it made.
const OWNER_LABEL: &str = "coracle.dev/node";

/// Whether tests may use Docker. Where not, it says so in the test's output.
pub fn has_docker() -> bool {
    let has = std::env::var_os("CORACLE_TEST_DOCKER").is_some_and(|value| value == "1");
    if !has {
        println!("not run: needs Docker (cargo xtask test)");
    }
    has
}

/// Runs Docker's client.
fn docker_output(arguments: &[&str]) -> Output {
    feed(bounded(Path::new("docker")).args(arguments), b"")
}

/// Runs Docker's client, which must succeed; its stdout without the last newline.
#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    let output = docker_output(arguments);
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// An image of busybox under a name of this process. It is there while any value of this type is.
pub struct Busybox(());

static USERS: Mutex<usize> = Mutex::new(0);

impl Busybox {
    /// Makes the image unless it is there.
    pub fn make() -> Self {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            import(&Self::image());
        }
        *users += 1;
        Self(())
    }

    /// Writes it to a file, for another engine.
    pub fn save(&self, file: &Path) {
        docker(&["save", "--output", file.to_str().unwrap(), &Self::image()]);
    }

    /// The image's name.
    pub fn image() -> String {
        format!("coracle-test-{}/busybox:1", std::process::id())
    }
}

impl Drop for Busybox {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0 {
            // a container that a failed test has left may still use it
            let _ = docker_output(&["rm", "--force", &pin(&Self::image())]);
            let _ = docker_output(&["rmi", "--force", &Self::image()]);
        }
    }
}

/// An image as `docker import` makes it of a directory: busybox under all its names, and the files that programs expect.
fn import(image: &str) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for folder in ["bin", "etc", "tmp", "root", "home/app", "www", "var/run", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = feed(Command::new("/bin/busybox").arg("--list"), b"");
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let files = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"),
        ("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
        ("www/index.html", "hello from busybox\n"),
    ];
    for (name, text) in files {
        std::fs::write(root.join(name), text).unwrap();
    }
    let tar = dir.path().join("image.tar");
    let packed = Command::new("tar")
        .args(["--create", "--numeric-owner", "--owner=0", "--group=0", "--mode=a+rX", "--file"])
        .arg(&tar)
        .arg("--directory")
        .arg(&root)
        .arg(".")
        .status();
    assert!(packed.unwrap().success());
    let change = ["--change", "CMD [\"/bin/sh\"]", "--change", "ENV PATH=/bin", "--change", "ENV FROM_IMAGE=yes"];
    let mut arguments = vec!["import"];
    arguments.extend(change);
    arguments.extend([tar.to_str().unwrap(), image]);
    static TOLD: Once = Once::new();
    TOLD.call_once(|| println!("making {image}"));
    docker(&arguments);
    // an image of a container is not swept up, however full the machine's disk is
    docker(&["create", "--name", &pin(image), image, "true"]);
}

/// The container, never started, that keeps an image.
fn pin(image: &str) -> String {
    image.replace(['/', ':'], "-")
}

/// What a node calls itself in Docker's labels, found by its bridge network.
pub fn owner(subnet: &str) -> Option<String> {
    let ids = docker(&["network", "ls", "--quiet", "--filter", &format!("label={OWNER_LABEL}")]);
    ids.lines().find_map(|id| {
        let format =
            format!("{{{{index .Labels \"{OWNER_LABEL}\"}}}} {{{{range .IPAM.Config}}}}{{{{.Subnet}}}}{{{{end}}}}");
        // another test's network may go away meanwhile
        let output = docker_output(&["network", "inspect", "--format", &format, id]);
        let text = String::from_utf8(output.stdout).unwrap();
        let (owner, found) = text.trim().split_once(' ')?;
        (found == subnet).then(|| owner.to_owned())
    })
}

/// The containers of a node, by id, also those that have ended.
pub fn containers_of(owner: &str) -> Vec<String> {
    let listed = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &format!("label={OWNER_LABEL}={owner}")]);
    listed.lines().map(str::to_owned).collect()
}

/// Removes every container and network of a node.
pub fn remove_all_of(owner: &str) {
    let containers = containers_of(owner);
    if !containers.is_empty() {
        let mut arguments = vec!["rm", "--force", "--volumes"];
        arguments.extend(containers.iter().map(String::as_str));
        docker_output(&arguments);
    }
    let networks =
        docker_output(&["network", "ls", "--quiet", "--filter", &format!("label={OWNER_LABEL}={owner}")]).stdout;
    for network in String::from_utf8_lossy(&networks).lines() {
        docker_output(&["network", "rm", network]);
    }
}
