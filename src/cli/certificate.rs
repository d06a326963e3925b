//! `certificate approve` and `certificate deny`: the verdict of a person about CertificateSigningRequests.

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::Media;
use super::failure::{Failure, Result, all_of, fail};
use super::files::FileArgs;
use super::output::{OutputArgs, Printer};
use super::session::{Selection, Session, Target};

/// Tries against a request that keeps changing.
const TRIES_MAX: u32 = 5;

/// What can be done with certificates.
#[derive(Debug, clap::Subcommand)]
pub enum CertificateCommand {
    /// Approve a certificate signing request
    Approve(VerdictArgs),
    /// Deny a certificate signing request
    Deny(VerdictArgs),
}

/// Flags of both.
#[derive(Debug, clap::Args)]
pub struct VerdictArgs {
    /// Names of requests, alone or as csr/NAME
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    files: FileArgs,
    /// Update the CSR even if it is already approved or denied
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// A verdict and how it is told.
struct Verdict {
    kind: &'static str,
    opposite: &'static str,
    reason: &'static str,
    message: &'static str,
    done: &'static str,
}

const APPROVED: Verdict = Verdict {
    kind: "Approved",
    opposite: "Denied",
    reason: "KubectlApprove",
    message: "This CSR was approved by kubectl certificate approve.",
    done: "approved",
};
const DENIED: Verdict = Verdict {
    kind: "Denied",
    opposite: "Approved",
    reason: "KubectlDeny",
    message: "This CSR was denied by kubectl certificate deny.",
    done: "denied",
};

/// Carries it out.
pub async fn run(session: &Session, command: CertificateCommand) -> Result<()> {
    let (args, verdict) = match command {
        CertificateCommand::Approve(args) => (args, APPROVED),
        CertificateCommand::Deny(args) => (args, DENIED),
    };
    if args.names.is_empty() && args.files.is_empty() {
        return fail("one or more CSRs must be specified as <name> or -f <filename>");
    }
    let (targets, mut failures) = if args.files.is_empty() {
        let words: Vec<String> = args.names.iter().map(|name| qualified(name)).collect();
        (session.targets(&words, &Selection::default()).await?, Vec::new())
    } else {
        session.file_targets(&args.files).await?
    };
    let mut printer = Printer::new(args.output.format(false)?, &args.output);
    for target in targets {
        match conclude(session, &target, &verdict, args.force).await {
            Ok(object) => printer.print(&object, &format!("{} {}", target.full_name(), verdict.done))?,
            Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
            Err(failure) => failures.push(failure),
        }
    }
    all_of(failures)
}

fn qualified(name: &str) -> String {
    let bare = name.rsplit('/').next().unwrap_or(name);
    format!("certificatesigningrequests.certificates.k8s.io/{bare}")
}

async fn conclude(session: &Session, target: &Target, verdict: &Verdict, force: bool) -> Result<Value> {
    if target.resource.kind != "CertificateSigningRequest" {
        return fail(format!("can only {} certificate signing requests, not {}", verb(verdict), target.full_name()));
    }
    let mut tries_left = TRIES_MAX;
    loop {
        tries_left -= 1;
        let mut object = session.client.get(&target.path()).await?;
        let is = |kind: &str| {
            object["status"]["conditions"].as_array().into_iter().flatten().any(|condition| condition["type"] == kind)
        };
        if is(verdict.opposite) {
            return fail(format!("certificate signing request {:?} is already {}", name(target), verdict.opposite));
        }
        if is(verdict.kind) && !force {
            return Ok(object);
        }
        say(&mut object, verdict);
        let path = format!("{}/approval", target.path());
        match session.client.send(Method::PUT, &path, Media::Json, &object).await {
            Err(failure) if failure.is_conflict() && tries_left > 0 => {}
            answer => return answer,
        }
    }
}

fn name(target: &Target) -> &str {
    target.name.as_deref().unwrap_or_default()
}

fn verb(verdict: &Verdict) -> &'static str {
    if verdict.kind == APPROVED.kind { "approve" } else { "deny" }
}

/// Writes the verdict among the conditions, in place of the same one said before.
fn say(object: &mut Value, verdict: &Verdict) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({
        "type": verdict.kind, "status": "True", "reason": verdict.reason, "message": verdict.message,
        "lastUpdateTime": now,
    });
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = object["status"]["conditions"].as_array_mut() {
        conditions.retain(|condition| condition["type"] != verdict.kind);
        conditions.push(condition);
    }
}
