//! What the kernel says a process uses.

use anyhow::{Context, Result};
use std::time::Duration;

/// Resident memory with shared pages divided among their users.
pub fn pss_bytes(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = field(&rollup, "Pss:").context("no Pss")?;
    Ok(kib * 1024)
}

/// The part of [`pss_bytes`] that no file stands behind, which the kernel cannot drop and read again.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = field(&rollup, "Pss_Anon:").context("no Pss_Anon")?;
    Ok(kib * 1024)
}

/// Files, sockets and whatever else it has open.
pub fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Processor time used since the start, in user and kernel mode.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    // Linux reports in ticks of USER_HZ, which is 100 on every architecture we build for
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // the name is in parentheses and may hold spaces; utime and stime are the 14th and 15th field of the line
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || -> Result<u32> { Ok(fields.next().context("a short line")?.parse()?) };
    Ok(TICK * (ticks()? + ticks()?))
}

/// [`cpu_time`] with that of the children that run now, such as a server's workers.
pub fn cpu_time_with_children(pid: u32) -> Result<Duration> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let mut sum = cpu_time(pid)?;
    for child in children.split_whitespace() {
        sum += cpu_time(child.parse()?)?;
    }
    Ok(sum)
}

/// Bytes that the process has sent towards a disk since its start.
pub fn written_bytes(pid: u32) -> Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    field(&io, "write_bytes:").context("no write_bytes")
}

/// The three load averages of this machine.
pub fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
