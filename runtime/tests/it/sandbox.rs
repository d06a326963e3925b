//! What a guest cannot do: leave its directories, change what is read-only, take the node down.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::common::{Node, spec};
use runtime::logs::{LogFile, LogLimits};
use runtime::{Mount, Program};

const CANARY: &str = "the canary";

/// A directory shown as `/data`, beside one that is not.
struct Cage {
    node: Node,
    program: Program,
}

impl Cage {
    async fn new() -> Cage {
        let node = Node::new();
        let program = node.guest("tool.wasm").await;
        for dir in ["data", "secret"] {
            std::fs::create_dir(node.dir.path().join(dir)).unwrap();
        }
        std::fs::write(node.dir.path().join("secret/canary"), CANARY).unwrap();
        Cage { node, program }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.node.dir.path().join(path)
    }

    async fn run(&self, read_only: bool, args: &[&str]) -> String {
        let (mut spec, log) = spec(self.program.clone(), args);
        spec.mounts = vec![Mount::open(&self.host("data"), "/data", read_only).unwrap()];
        self.node.start(spec).exited().await;
        log.text()
    }
}

#[tokio::test]
async fn no_path_leads_out_of_a_mount() {
    let cage = Cage::new().await;
    let secret = cage.host("secret");
    symlink(&secret, cage.host("data/absolute")).unwrap();
    symlink("../secret", cage.host("data/relative")).unwrap();
    symlink("../secret/canary", cage.host("data/file")).unwrap();
    symlink("/proc/self/root", cage.host("data/root")).unwrap();
    std::fs::create_dir(cage.host("data/dir")).unwrap();
    let canary = secret.join("canary");
    let canary = canary.to_str().unwrap();
    let paths = [
        "/data/../secret/canary",
        "/data/dir/../../secret/canary",
        "../secret/canary",
        canary,
        &format!("/data/{canary}"),
        "/data/absolute/canary",
        "/data/relative/canary",
        "/data/file",
        &format!("/data/root{canary}"),
        "/proc/self/environ",
        "/data/dir/../../../../../../../../etc/passwd",
    ];
    for path in paths {
        let said = cage.run(false, &["tool", "cat", path]).await;
        assert!(said.starts_with("Err("), "{path}: {said}");
        let said = cage.run(false, &["tool", "write", path, "overwritten"]).await;
        assert!(said.starts_with("Err("), "{path}: {said}");
    }
    // Links the guest makes itself lead no further.
    for (target, name) in [("../secret", "own"), ("/", "top"), ("dir/../../secret", "winding")] {
        cage.run(false, &["tool", "link", target, &format!("/data/{name}")]).await;
        for path in [format!("/data/{name}/canary"), format!("/data/{name}{canary}")] {
            let said = cage.run(false, &["tool", "cat", &path]).await;
            assert!(said.starts_with("Err("), "{path}: {said}");
        }
    }
    assert_eq!(std::fs::read_to_string(canary).unwrap(), CANARY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_swapped_under_the_guest_leads_nowhere_either() {
    let cage = Cage::new().await;
    std::fs::create_dir(cage.host("data/dir")).unwrap();
    std::fs::write(cage.host("data/dir/canary"), "inside").unwrap();
    symlink("../secret", cage.host("data/link")).unwrap();
    let (data, stop) = (cage.host("data"), cage.host("data/stop"));
    let swapper = std::thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(2);
        let mut swaps = 0;
        while Instant::now() < until {
            // Atomically, so that the name is always there: now a directory, now a way out.
            let exchanged = rustix::fs::renameat_with(
                rustix::fs::CWD,
                data.join("dir"),
                rustix::fs::CWD,
                data.join("link"),
                rustix::fs::RenameFlags::EXCHANGE,
            );
            exchanged.unwrap();
            swaps += 1;
        }
        std::fs::write(stop, "").unwrap();
        swaps
    });
    let said = cage.run(false, &["tool", "race", "/data/dir/canary", "/data/stop"]).await;
    let swaps = swapper.join().unwrap();
    assert!(!said.contains(CANARY), "{said}");
    assert!(said.contains("\"inside\"") && said.contains("PermissionDenied"), "{swaps} swaps: {said}");
}

#[tokio::test]
async fn a_read_only_mount_refuses_every_change() {
    let cage = Cage::new().await;
    std::fs::create_dir(cage.host("data/empty")).unwrap();
    std::fs::write(cage.host("data/file"), "kept").unwrap();
    let before = std::fs::metadata(cage.host("data/file")).unwrap().modified().unwrap();
    let said = cage.run(true, &["tool", "poke", "/data"]).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 12, "{said}");
    assert_eq!(lines.last(), Some(&r#"read Ok("kept")"#));
    for line in &lines[..11] {
        assert!(line.contains("Err("), "{line}");
    }
    let mut left: Vec<_> =
        std::fs::read_dir(cage.host("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["empty", "file"]);
    assert_eq!(std::fs::metadata(cage.host("data/file")).unwrap().modified().unwrap(), before);
    // The same acts work where they may.
    let said = cage.run(false, &["tool", "poke", "/data"]).await;
    assert!(said.contains("create Ok(())") && said.contains("rename Ok(())"), "{said}");
}

#[tokio::test]
async fn a_deep_recursion_is_a_trap() {
    let cage = Cage::new().await;
    let (spec, log) = spec(cage.program.clone(), &["tool", "recurse"]);
    let exit = cage.node.start(spec).exited().await;
    assert_eq!(exit.code, 134, "{exit:?}");
    assert!(log.text().contains("wasm backtrace"), "{}", log.text());
}

#[tokio::test]
async fn an_endless_line_is_logged_in_bounded_memory() {
    let cage = Cage::new().await;
    let dir = cage.host("log");
    let log = LogFile::open(&dir, 0, LogLimits::default()).unwrap();
    let (mut spec, _) = spec(cage.program.clone(), &["tool", "flood", "10"]);
    (spec.stdout, spec.stderr) = (log.stdout(), log.stderr());
    assert_eq!(cage.node.start(spec).exited().await.code, 0);
    log.close();
    let mut bytes = 0;
    for file in std::fs::read_dir(&dir).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            // Pieces of one line, none of them long.
            assert!(line.len() < 32 << 10, "{}", line.len());
            let text = line.splitn(4, ' ').nth(3).unwrap();
            bytes += text.bytes().filter(|byte| *byte == b'x').count();
        }
    }
    assert_eq!(bytes, 10 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_live() {
    let cage = Cage::new().await;
    let (spec, _) = spec(cage.program.clone(), &["tool", "spin"]);
    let container = cage.node.start(spec);
    let until = Instant::now() + Duration::from_secs(30);
    while container.usage().cpu_ns == 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (before, began) = (container.usage(), Instant::now());
    assert!(before.memory_bytes >= 64 << 10, "{before:?}");
    while container.usage().cpu_ns - before.cpu_ns < 200_000_000 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (after, wall) = (container.usage(), began.elapsed());
    let used = Duration::from_nanos(after.cpu_ns - before.cpu_ns);
    // One thread's time: never more than passed, but for the tick it may be ahead.
    assert!(used >= Duration::from_millis(200), "{used:?} in {wall:?}");
    assert!(used <= wall + Duration::from_millis(100), "{used:?} in {wall:?}");
    container.kill();
    container.exited().await;
    assert_eq!(container.usage().memory_bytes, 0);
    assert!(container.usage().cpu_ns >= after.cpu_ns);
}
