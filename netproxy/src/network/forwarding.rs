//! The firewall's rules for pods behind a bridge of Docker's: packets between the bridge and the device to other nodes pass, and
//! keep their source address. Docker drops what it does not know and masquerades what leaves its bridge.
//!
//! The rules stand in chains of their own, one name in all tables, so that asking again or after a crash replaces them; each is
//! jumped to first of all. Pods without Docker need none of this. Deliberately absent: policy, and opening anything for the host.

use super::Cidr;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

/// The switch for routing between interfaces. Docker sets it too, and nobody takes it back.
const FORWARD_SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
/// How long the tool waits for its lock.
const LOCK_SECONDS: &str = "5";
/// Of what the tool says, characters that are shown.
const DETAIL_CHARS_MAX: usize = 300;

/// Between which interfaces, for which pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// The device to other nodes, 15 bytes at most.
    pub device: String,
    /// The bridge's interface.
    pub bridge: String,
    /// The pods on the bridge.
    pub pods: Cidr,
}

/// Why packets to and from the bridge may not pass.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// The kernel does not route between interfaces.
    #[error("cannot switch on net.ipv4.ip_forward")]
    Switch(#[source] io::Error),
    /// The tool is not there, or does not start.
    #[error("cannot run {tool}, which Docker's own rules need")]
    Run {
        /// Its name.
        tool: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tool refused.
    #[error("{command}: {detail}")]
    Refused {
        /// What was asked.
        command: String,
        /// Its words.
        detail: String,
    },
}

impl Forwarding {
    /// Puts the rules in place, whatever was there before. Docker puts its own in front whenever it makes its network, so this is to
    /// be asked again then. Needs CAP_NET_ADMIN and a tokio runtime.
    ///
    /// # Errors
    /// [`ForwardingError`]: some rules may be in place.
    pub async fn ensure(&self) -> Result<(), ForwardingError> {
        let this = self.clone();
        blocking(move || this.ensure_now()).await
    }

    /// Takes the rules away; absent ones are no error.
    ///
    /// # Errors
    /// When the tool does not run.
    pub async fn remove(&self) -> Result<(), ForwardingError> {
        let this = self.clone();
        blocking(move || this.remove_now()).await
    }

    fn ensure_now(&self) -> Result<(), ForwardingError> {
        switch_on().map_err(ForwardingError::Switch)?;
        let chain = self.chain();
        restore(&self.rules())?;
        // there only since Docker drops, there, what comes to its bridge from other interfaces
        if let Err(error) = restore(&self.early_rules()).and_then(|()| jump_first("raw", "PREROUTING", &chain)) {
            tracing::debug!(%error, "a kernel without raw tables");
        }
        let user = succeeds(iptables("filter", &["-S", "DOCKER-USER"]))?;
        jump_first("filter", if user { "DOCKER-USER" } else { "FORWARD" }, &chain)?;
        jump_first("nat", "POSTROUTING", &chain)
    }

    fn remove_now(&self) -> Result<(), ForwardingError> {
        let chain = self.chain();
        for (table, from) in
            [("filter", "DOCKER-USER"), ("filter", "FORWARD"), ("nat", "POSTROUTING"), ("raw", "PREROUTING")]
        {
            succeeds(iptables(table, &["-D", from, "-j", &chain]))?;
        }
        for table in ["filter", "nat", "raw"] {
            if succeeds(iptables(table, &["-F", &chain]))? {
                succeeds(iptables(table, &["-X", &chain]))?;
            }
        }
        Ok(())
    }

    fn chain(&self) -> String {
        format!("CORACLE-{}", self.device)
    }

    fn rules(&self) -> String {
        let Self { device, bridge, .. } = self;
        let chain = self.chain();
        let mut rules = String::new();
        let filter = [format!("-i {device} -o {bridge}"), format!("-i {bridge} -o {device}")];
        for (table, matches) in [("filter", filter.as_slice()), ("nat", &[format!("-o {device}")])] {
            table_rules(&mut rules, table, &chain, matches);
        }
        rules
    }

    fn early_rules(&self) -> String {
        let mut rules = String::new();
        table_rules(&mut rules, "raw", &self.chain(), &[format!("-i {} -d {}", self.device, self.pods)]);
        rules
    }
}

/// A table in the tool's own form: declaring a chain empties it.
fn table_rules(rules: &mut String, table: &str, chain: &str, matches: &[String]) {
    // a String takes everything
    let _ = writeln!(rules, "*{table}\n:{chain} - [0:0]");
    for rule in matches {
        let _ = writeln!(rules, "-A {chain} {rule} -j ACCEPT");
    }
    let _ = writeln!(rules, "COMMIT");
}

async fn blocking(act: impl FnOnce() -> Result<(), ForwardingError> + Send + 'static) -> Result<(), ForwardingError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done,
        Err(error) => Err(ForwardingError::Run { tool: "iptables", source: io::Error::other(error) }),
    }
}

fn switch_on() -> io::Result<()> {
    if std::fs::read_to_string(FORWARD_SWITCH)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(FORWARD_SWITCH, "1")
}

/// Makes the jump to `chain` the first rule of `from`.
pub(super) fn jump_first(table: &'static str, from: &str, chain: &str) -> Result<(), ForwardingError> {
    let jump = format!("-A {from} -j {chain}");
    let first = output("iptables", iptables(table, &["-S", from, "1"]))?;
    if String::from_utf8_lossy(&first.stdout).trim() == jump {
        return Ok(());
    }
    while succeeds(iptables(table, &["-D", from, "-j", chain]))? {}
    let inserted = output("iptables", iptables(table, &["-I", from, "1", "-j", chain]))?;
    accepted(inserted, || format!("iptables -t {table} -I {from} -j {chain}"))
}

fn iptables(table: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("iptables");
    command.args(["-w", LOCK_SECONDS, "-t", table]).args(arguments).stdin(Stdio::null());
    command
}

fn output(tool: &'static str, mut command: Command) -> Result<Output, ForwardingError> {
    command.output().map_err(|source| ForwardingError::Run { tool, source })
}

fn succeeds(command: Command) -> Result<bool, ForwardingError> {
    Ok(output("iptables", command)?.status.success())
}

pub(super) fn restore(rules: &str) -> Result<(), ForwardingError> {
    const TOOL: &str = "iptables-restore";
    let failed = |source| ForwardingError::Run { tool: TOOL, source };
    let mut child = Command::new(TOOL)
        .args(["-w", LOCK_SECONDS, "--noflush"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(rules.as_bytes()),
        None => Ok(()),
    };
    // what it says is better than that it has hung up
    let output = child.wait_with_output().map_err(failed)?;
    accepted(output, || format!("{TOOL} --noflush"))?;
    written.map_err(failed)
}

fn accepted(output: Output, command: impl FnOnce() -> String) -> Result<(), ForwardingError> {
    if output.status.success() {
        return Ok(());
    }
    let detail = String::from_utf8_lossy(&output.stderr).trim().chars().take(DETAIL_CHARS_MAX).collect();
    Err(ForwardingError::Refused { command: command(), detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn rules_are_spelled() {
        let forwarding = Forwarding {
            device: "coracle0".into(),
            bridge: "cor7deeb777233c".into(),
            pods: "10.42.1.128/25".parse().unwrap(),
        };
        expect![[r#"
            *filter
            :CORACLE-coracle0 - [0:0]
            -A CORACLE-coracle0 -i coracle0 -o cor7deeb777233c -j ACCEPT
            -A CORACLE-coracle0 -i cor7deeb777233c -o coracle0 -j ACCEPT
            COMMIT
            *nat
            :CORACLE-coracle0 - [0:0]
            -A CORACLE-coracle0 -o coracle0 -j ACCEPT
            COMMIT
            *raw
            :CORACLE-coracle0 - [0:0]
            -A CORACLE-coracle0 -i coracle0 -d 10.42.1.128/25 -j ACCEPT
            COMMIT
        "#]]
        .assert_eq(&format!("{}{}", forwarding.rules(), forwarding.early_rules()));
    }
}
