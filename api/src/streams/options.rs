//! What a client asks of a pod's streams, checked in Kubernetes' words.

use crate::front::Call;
use crate::nodes::{AttachOptions, ExecOptions, Streams};
use crate::pods;
use crate::status::Status;
use serde_json::Value;

/// Ports of one WebSocket; each has two of its 255 channels.
const PORTS_MAX: usize = 100;

/// What is wanted of a pod.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A command.
    Exec(ExecOptions),
    /// A container's own streams.
    Attach(AttachOptions),
    /// Ports, which a WebSocket's client names here and SPDY's with each stream.
    Ports(Vec<u16>),
}

/// Reads the options of a request about `pod`.
///
/// # Errors
/// 400.
pub fn of(call: &Call, pod: &Value) -> Result<Wanted, Status> {
    let name = &call.at.name;
    let container = || pods::container(name, call.query.get("container"), pod);
    let wanted = match call.at.subresource.as_str() {
        "exec" => {
            let (container, streams) = (container()?, streams(call)?);
            let command: Vec<String> = call.query.all("command").map(str::to_owned).collect();
            if command.first().is_none_or(String::is_empty) {
                return Err(Status::bad_request("you must specify at least one command for the container"));
            }
            Wanted::Exec(ExecOptions { container, command, streams })
        }
        "attach" => Wanted::Attach(AttachOptions { container: container()?, streams: streams(call)? }),
        _ => Wanted::Ports(ports(call)?),
    };
    if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(wanted, Wanted::Exec(_)) && matches!(phase, "Succeeded" | "Failed") {
        let message = format!("cannot exec into a container in a completed pod; current phase is {phase}");
        return Err(Status::bad_request(message));
    }
    Ok(wanted)
}

fn streams(call: &Call) -> Result<Streams, Status> {
    let flag = |name| call.query.flag(name);
    let tty = flag("tty");
    // a terminal has one output: as the kubelet, say nothing of a standard error beside it
    let streams = Streams { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr") && !tty, tty };
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(streams)
}

fn ports(call: &Call) -> Result<Vec<u16>, Status> {
    let texts = call.query.all("ports").flat_map(|texts| texts.split(','));
    let ports: Vec<u16> = texts.map(port).collect::<Result<_, _>>().map_err(Status::bad_request)?;
    if ports.len() > PORTS_MAX {
        return Err(Status::bad_request(format!("at most {PORTS_MAX} ports may be forwarded over one connection")));
    }
    Ok(ports)
}

/// A port, in a query or a header.
///
/// # Errors
/// What is wrong with it.
pub fn port(text: &str) -> Result<u16, String> {
    match text.trim().parse::<u16>() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(port),
        Err(_) => {
            Err(format!("unable to parse {text:?} as a port: strconv.ParseUint: parsing {text:?}: invalid syntax"))
        }
    }
}
