//! Programs that are run: bounded in time, with input, on a terminal, in several versions.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// After this many seconds a program is ended, which fails its test rather than hangs it.
const SECONDS_MAX: &str = "150";
/// The oldest kubectl that must work.
const OLDEST_MINOR: u32 = 27;

/// A command of that program which does not run for ever.
pub fn bounded(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", SECONDS_MAX]).arg(program);
    command
}

/// Runs a command with that input, which it need not read.
pub fn feed(command: &mut Command, input: &[u8]) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if input.is_empty() {
        return command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    }
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

/// The arguments by which util-linux's `script` runs a shell command on a terminal of its own.
pub fn terminal(command: &str) -> [&str; 4] {
    ["-qefc", command, "/dev/null", "-e"]
}

/// The oldest kubectl that must work (it speaks SPDY) and the newest that is found (WebSocket): those that lie as
/// `kubectl.1.NN` beside the one on the path, else that one.
pub fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file());
    let on_path = on_path.expect("kubectl is installed by cargo xtask test").canonicalize().unwrap();
    let dir = on_path.parent().unwrap().read_dir().unwrap();
    let minor = |file: &Path| -> Option<u32> { file.file_name()?.to_str()?.strip_prefix("kubectl.1.")?.parse().ok() };
    let mut versions: Vec<(u32, PathBuf)> =
        dir.filter_map(|entry| Some(entry.ok()?.path())).filter_map(|file| Some((minor(&file)?, file))).collect();
    versions.retain(|(minor, _)| *minor >= OLDEST_MINOR);
    versions.sort();
    match versions.as_slice() {
        [] => vec![on_path],
        [(_, only)] => vec![only.clone()],
        [(_, oldest), .., (_, newest)] => vec![oldest.clone(), newest.clone()],
    }
}
