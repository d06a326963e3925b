//! The client verbs: `coracle get`, `apply`, `logs` and their kin, which are kubectl's words, flags, output and exit codes.
//!
//! Everything here talks to an API server over HTTPS as any other client would, with a kubeconfig; nothing here knows
//! whether the server is ours. Deliberately absent: the verbs that run a cluster (`server`, `agent`, `up`).

pub mod failure;

mod apply;
mod client;
mod create;
mod delete;
mod discovery;
mod dry_run;
mod duration;
mod files;
mod generate;
mod generate_data;
mod generate_ingress;
mod get;
mod get_watch;
mod kubeconfig;
mod output;
mod session;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

/// Flags that every client verb takes, before or after the verb.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Globals {
    /// Path to the kubeconfig file to use for requests
    #[arg(long, global = true, value_name = "FILE", help_heading = "Client options")]
    pub kubeconfig: Option<PathBuf>,
    /// The name of the kubeconfig context to use
    #[arg(long, global = true, help_heading = "Client options")]
    pub context: Option<String>,
    /// The name of the kubeconfig cluster to use
    #[arg(long, global = true, help_heading = "Client options")]
    pub cluster: Option<String>,
    /// The name of the kubeconfig user to use
    #[arg(long, global = true, help_heading = "Client options")]
    pub user: Option<String>,
    /// If present, the namespace scope for this request
    #[arg(short = 'n', long, global = true, help_heading = "Client options")]
    pub namespace: Option<String>,
    /// The address and port of the Kubernetes API server
    #[arg(short = 's', long, global = true, value_name = "URL", help_heading = "Client options")]
    pub server: Option<String>,
    /// Bearer token for authentication to the API server
    #[arg(long, global = true, help_heading = "Client options")]
    pub token: Option<String>,
    /// Do not check the server's certificate: this makes the connection insecure
    #[arg(long, global = true, help_heading = "Client options")]
    pub insecure_skip_tls_verify: bool,
    /// Path to a cert file for the certificate authority
    #[arg(long, global = true, value_name = "FILE", help_heading = "Client options")]
    pub certificate_authority: Option<PathBuf>,
    /// Path to a client certificate file for TLS
    #[arg(long, global = true, value_name = "FILE", help_heading = "Client options")]
    pub client_certificate: Option<PathBuf>,
    /// Path to a client key file for TLS
    #[arg(long, global = true, value_name = "FILE", help_heading = "Client options")]
    pub client_key: Option<PathBuf>,
    /// How long to wait before giving up on a single server request (1s, 2m, 3h); zero means never
    #[arg(long, global = true, default_value = "0", value_name = "DURATION", help_heading = "Client options")]
    pub request_timeout: String,
    /// Number for the log level verbosity
    #[arg(short = 'v', long = "v", global = true, value_name = "LEVEL", help_heading = "Client options")]
    pub v: Option<i32>,
}

/// What one can ask of a cluster: one variant per verb of kubectl.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Display one or many resources
    Get(get::GetArgs),
    /// Apply a configuration to a resource by file name or stdin
    Apply(apply::ApplyArgs),
    /// Create a resource from a file or from stdin
    Create(create::CreateArgs),
    /// Delete resources by file names, stdin, resources and names, or by resources and label selector
    Delete(delete::DeleteArgs),
}

/// Carries out one verb and says with which code the process ends.
pub async fn run(verb: Verb, globals: Globals) -> ExitCode {
    match dispatch(verb, &globals).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let message = failure.message();
            if !message.is_empty() {
                eprintln!("{message}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn dispatch(verb: Verb, globals: &Globals) -> failure::Result<()> {
    let session = session::Session::open(globals).await?;
    match verb {
        Verb::Get(args) => get::run(&session, args).await,
        Verb::Apply(args) => apply::run(&session, args).await,
        Verb::Create(args) => create::run(&session, args).await,
        Verb::Delete(args) => delete::run(&session, args).await,
    }
}
