//! One question to a container: HTTP, TCP, gRPC or exec. The same acts serve lifecycle hooks.

use super::{grpc, http};
use crate::container::guest::Guest;
use crate::ground::Ground;
use crate::routes::port_number;
use k8s_openapi::api::core::v1::{Container, ExecAction, LifecycleHandler, Probe, TCPSocketAction};
use netproxy::Handler;
use runtime::{ExecOptions, Output, Session};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// As much of a command's output as a message shows.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// The HTTP components of a pod: port to handler.
#[derive(Default)]
pub struct Doors(Mutex<BTreeMap<u16, Arc<dyn Handler>>>);

impl Doors {
    /// A component serves this port.
    pub fn open(&self, port: u16, handler: Arc<dyn Handler>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(port, handler);
    }

    /// It does no more.
    pub fn close(&self, port: u16) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
    }

    /// The component at this port.
    pub fn get(&self, port: u16) -> Option<Arc<dyn Handler>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&port).cloned()
    }
}

/// Whom to ask.
pub struct Target {
    /// The guest.
    pub guest: Guest,
    /// Its spec: names of ports.
    pub container: Container,
    /// The pod's address.
    pub address: IpAddr,
    /// What it stands on.
    pub ground: Ground,
    /// The pod's HTTP components.
    pub doors: Arc<Doors>,
}

impl Target {
    /// Asks once; the error is what the event says.
    pub async fn ask(&self, probe: &Probe, timeout: Duration) -> Result<(), String> {
        if let Some(action) = &probe.http_get {
            return self.ask_http(action, timeout).await;
        }
        if let Some(action) = &probe.tcp_socket {
            return self.ask_tcp(action, timeout).await;
        }
        if let Some(action) = &probe.grpc {
            return grpc::ask(action, self.address, &self.ground, &self.doors, timeout).await;
        }
        let Some(action) = &probe.exec else { return Err("missing probe handler".into()) };
        match tokio::time::timeout(timeout, run_exec(&self.guest, action)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("command timed out: {:?} timed out after {timeout:?}", command(action).join(" "))),
        }
    }

    async fn ask_http(
        &self,
        action: &k8s_openapi::api::core::v1::HTTPGetAction,
        timeout: Duration,
    ) -> Result<(), String> {
        let url = http::url(action, &self.container, self.address)?;
        let asking = http::send_http(action, &self.container, self.address, &self.ground, &self.doors);
        let response = match tokio::time::timeout(timeout, asking).await {
            Ok(response) => response.map_err(|cause| format!("Get {url:?}: {cause}"))?,
            Err(_) => {
                let cause = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
                return Err(format!("Get {url:?}: {cause}"));
            }
        };
        // a redirect to elsewhere is an answer too
        match response.status().as_u16() {
            200..400 => Ok(()),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        }
    }

    async fn ask_tcp(&self, action: &TCPSocketAction, timeout: Duration) -> Result<(), String> {
        let port = port_number(&action.port, &self.container).ok_or("couldn't find port")?;
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        if host.is_none() && self.doors.get(port).is_some() {
            return Ok(());
        }
        let host = host.map_or_else(|| self.address.to_string(), ToOwned::to_owned);
        match tokio::time::timeout(timeout, self.ground.connect(&host, port)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(dial_error(&host, port, &error)),
            Err(_) => Err(format!("dial tcp {}: i/o timeout", joined(&host, port))),
        }
    }
}

/// Runs a lifecycle hook. As with the kubelet, any answer to an HTTP request will do.
pub async fn run_hook(hook: &LifecycleHandler, target: &Target) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if let Some(action) = &hook.http_get {
        return http::send_http(action, &target.container, target.address, &target.ground, &target.doors)
            .await
            .map(drop);
    }
    match &hook.exec {
        Some(action) => run_exec(&target.guest, action).await,
        None => Err("invalid handler: a hook runs a command, sends an HTTP request or sleeps".into()),
    }
}

/// Runs a command in the container; what it printed is the error when it fails.
async fn run_exec(guest: &Guest, action: &ExecAction) -> Result<(), String> {
    let options = ExecOptions { argv: command(action).to_vec(), stdin: false, tty: false };
    let session = guest.exec(options).await.map_err(|error| crate::container::chain(&error))?;
    // held to the end: without it the command would be ended
    let Session { input: _input, mut output, exit } = session;
    let mut kept = Vec::new();
    let reading = async {
        while let Some(Output::Stdout(bytes) | Output::Stderr(bytes)) = output.recv().await {
            let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    };
    match tokio::join!(reading, exit).1 {
        Ok(0) => Ok(()),
        Ok(code) if kept.is_empty() => Err(format!("command terminated with exit code {code}")),
        Ok(_) => Err(String::from_utf8_lossy(&kept).into_owned()),
        Err(error) => Err(crate::container::chain(&error)),
    }
}

fn command(action: &ExecAction) -> &[String] {
    action.command.as_deref().unwrap_or_default()
}

/// In the words of the kubelet's dialer.
pub(super) fn dial_error(host: &str, port: u16, error: &std::io::Error) -> String {
    let cause = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {}: {cause}", joined(host, port))
}

fn joined(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
