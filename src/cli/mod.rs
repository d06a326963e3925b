//! The client verbs: `coracle get`, `apply`, `logs` and their kin, which are kubectl's words, flags, output and exit codes.
//!
//! Everything here talks to an API server over HTTPS as any other client would, with a kubeconfig; nothing here knows
//! whether the server is ours. Deliberately absent: the verbs that run a cluster (`server`, `agent`, `up`).

pub mod embedded;
pub mod failure;

mod about;
mod apply;
mod attach;
mod certificate;
mod client;
mod completion;
mod config;
mod cp;
mod cp_pack;
mod cp_unpack;
mod create;
mod debug;
mod debug_copy;
mod debug_profile;
mod delete;
mod describe;
mod discovery;
mod drain;
mod dry_run;
mod duration;
mod edit;
mod events;
mod exec;
mod explain;
mod files;
mod generate;
mod generate_data;
mod generate_ingress;
mod get;
mod get_watch;
mod image;
mod kubeconfig;
mod label;
mod logs;
mod mutate;
mod nodes;
mod output;
mod patch;
mod port_forward;
mod proxy;
mod rollout;
mod rollout_history;
mod run_attached;
mod run_pod;
mod scale;
mod session;
mod set;
mod stream;
mod token;
mod top;
mod wait;
mod words;

pub use files::FileArgs;
pub use session::{Session, Target};

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
    /// Show details of a specific resource or group of resources
    Describe(describe::DescribeArgs),
    /// Apply a configuration to a resource by file name or stdin
    Apply(apply::ApplyArgs),
    /// Create a resource from a file or from stdin
    Create(create::CreateArgs),
    /// Delete resources by file names, stdin, resources and names, or by label selector
    Delete(delete::DeleteArgs),
    /// Edit a resource on the server
    Edit(edit::EditArgs),
    /// Update fields of a resource
    Patch(patch::PatchArgs),
    /// Replace a resource by file name or stdin
    Replace(patch::ReplaceArgs),
    /// Diff the live version against a would-be applied version
    Diff(edit::DiffArgs),
    /// Update the labels on a resource
    Label(label::LabelArgs),
    /// Update the annotations on a resource
    Annotate(label::LabelArgs),
    /// Set a new size for a deployment or replica set
    Scale(scale::ScaleArgs),
    /// Manage the rollout of a resource
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Set specific features on objects
    #[command(subcommand)]
    Set(set::SetCommand),
    /// Take a pod or deployment and expose it as a new service
    Expose(run_pod::ExposeArgs),
    /// Run a particular image on the cluster
    Run(Box<run_pod::RunArgs>),
    /// Print the logs for a container in a pod
    Logs(logs::LogsArgs),
    /// Execute a command in a container
    Exec(exec::ExecArgs),
    /// Attach to a running container
    Attach(attach::AttachArgs),
    /// Copy files and directories to and from containers
    Cp(cp::CpArgs),
    /// Forward one or more local ports to a pod
    PortForward(port_forward::PortForwardArgs),
    /// Create debugging sessions for troubleshooting workloads and nodes
    Debug(Box<debug::DebugArgs>),
    /// Display resource (CPU/memory) usage
    #[command(subcommand)]
    Top(top::TopCommand),
    /// Run a proxy to the Kubernetes API server
    Proxy(proxy::ProxyArgs),
    /// Output shell completion code for the specified shell (bash, zsh, fish)
    Completion(completion::CompletionArgs),
    /// Wait for a specific condition on one or many resources
    Wait(wait::WaitArgs),
    /// List events
    Events(events::EventsArgs),
    /// Get documentation for a resource
    Explain(explain::ExplainArgs),
    /// Print the supported API resources on the server
    ApiResources(about::ApiResourcesArgs),
    /// Print the supported API versions on the server, in the form of group/version
    ApiVersions,
    /// Inspect authorization
    #[command(subcommand)]
    Auth(about::AuthCommand),
    /// Mark node as unschedulable
    Cordon(drain::CordonArgs),
    /// Mark node as schedulable
    Uncordon(drain::CordonArgs),
    /// Drain node in preparation for maintenance
    Drain(drain::DrainArgs),
    /// Update the taints on one or more nodes
    Taint(nodes::TaintArgs),
    /// Modify kubeconfig files
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the client and server version information
    Version(about::VersionArgs),
    /// Display cluster information
    ClusterInfo,
    /// Modify certificate resources
    #[command(subcommand)]
    Certificate(certificate::CertificateCommand),
    /// Manage tokens for machines to join with
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Manage Wasm images: a registry's and those of the node on this machine
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Not available in this version
    #[command(hide = true, disable_help_flag = true)]
    Autoscale(Absent),
    /// Not available in this version
    #[command(hide = true, disable_help_flag = true)]
    Kustomize(Absent),
    /// Not available in this version
    #[command(hide = true, disable_help_flag = true)]
    Plugin(Absent),
}

/// The arguments of a verb that is not there yet, whatever they are.
#[derive(Debug, clap::Args)]
pub struct Absent {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<String>,
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
    // These work without a cluster.
    let verb = match verb {
        Verb::Config(command) => return config::run(globals, command),
        Verb::Completion(args) => return completion::run(args),
        Verb::Version(args) => return about::version(Session::open(globals).await, args).await,
        Verb::Image(command) => return image::run(command).await,
        other => refuse_absent(other)?,
    };
    let session = &Session::open(globals).await?;
    match verb {
        Verb::Get(args) => get::run(session, args).await,
        Verb::Describe(args) => describe::run(session, args).await,
        Verb::Apply(args) => apply::run(session, args).await,
        Verb::Create(args) => create::run(session, args).await,
        Verb::Delete(args) => delete::run(session, args).await,
        Verb::Edit(args) => edit::edit(session, args).await,
        Verb::Patch(args) => patch::run(session, args).await,
        Verb::Replace(args) => patch::replace(session, args).await,
        Verb::Diff(args) => edit::diff(session, args).await,
        Verb::Scale(args) => scale::run(session, args).await,
        Verb::Rollout(command) => rollout::run(session, command).await,
        Verb::Set(command) => set::run(session, command).await,
        Verb::Expose(args) => run_pod::expose(session, args).await,
        Verb::Run(args) => run_pod::run(session, *args).await,
        Verb::Logs(args) => logs::run(session, args).await,
        Verb::Exec(args) => exec::run(session, args).await,
        Verb::Attach(args) => attach::run(session, args).await,
        Verb::Cp(args) => cp::run(session, args).await,
        Verb::PortForward(args) => port_forward::run(session, args).await,
        Verb::Debug(args) => debug::run(session, *args).await,
        Verb::Top(command) => top::run(session, command).await,
        Verb::Proxy(args) => proxy::run(session, args).await,
        Verb::Wait(args) => wait::run(session, args).await,
        Verb::Events(args) => events::run(session, args).await,
        Verb::Explain(args) => explain::run(session, args).await,
        Verb::ApiResources(args) => about::api_resources(session, args).await,
        Verb::Auth(command) => about::auth(session, command).await,
        Verb::Taint(args) => nodes::taint(session, args).await,
        Verb::Label(args) => label::run(session, args, label::Which::Labels).await,
        Verb::Annotate(args) => label::run(session, args, label::Which::Annotations).await,
        Verb::Cordon(args) => drain::cordon(session, args, true).await,
        Verb::Uncordon(args) => drain::cordon(session, args, false).await,
        Verb::Drain(args) => drain::drain(session, args).await,
        Verb::Certificate(command) => certificate::run(session, command).await,
        Verb::Token(command) => token::run(session, command).await,
        Verb::ApiVersions => about::api_versions(session).await,
        Verb::ClusterInfo => about::cluster_info(session).await,
        _ => Ok(()),
    }
}

/// Verbs that kubectl has and this version has not say so, instead of looking like typing errors.
fn refuse_absent(verb: Verb) -> failure::Result<Verb> {
    let (name, absent) = match &verb {
        Verb::Autoscale(absent) => ("autoscale", absent),
        Verb::Kustomize(absent) => ("kustomize", absent),
        Verb::Plugin(absent) => ("plugin", absent),
        _ => return Ok(verb),
    };
    let _ = &absent.words;
    failure::fail(format!("{name} is not available in this version of coracle"))
}

/// Makes flags without a value take one after `=` too (`--watch=false`), as every flag of kubectl does.
pub fn as_kubectl(command: clap::Command) -> clap::Command {
    use clap::ArgAction;
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .value_parser(clap::value_parser!(bool))
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .hide_default_value(true)
            .hide_possible_values(true)
            .value_name("BOOL"),
        _ => arg,
    });
    command.mut_subcommands(as_kubectl)
}

/// What a command line that makes no sense gets: kubectl's text and exit code. Help and version go to stdout as ever.
pub fn usage_error(error: &clap::Error) -> ExitCode {
    use clap::error::{ContextKind, ErrorKind};
    let named = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    match error.kind() {
        // Nobody is left to tell when stdout is gone.
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            drop(error.print());
            return ExitCode::SUCCESS;
        }
        ErrorKind::UnknownArgument if named(ContextKind::InvalidArg).starts_with('-') => {
            let flag = named(ContextKind::InvalidArg);
            let usage = named(ContextKind::Usage);
            let words: Vec<&str> = usage.trim_start_matches("Usage:").split_whitespace().collect();
            let command: Vec<&str> = words.into_iter().take_while(|word| !word.starts_with(['[', '<', '-'])).collect();
            eprintln!("error: unknown flag: {flag}\nSee '{} --help' for usage.", command.join(" "));
        }
        ErrorKind::MissingRequiredArgument if named(ContextKind::InvalidArg).starts_with("--") => {
            let flags = named(ContextKind::InvalidArg);
            let names: Vec<String> = flags
                .split(',')
                .filter_map(|flag| flag.trim().strip_prefix("--"))
                .map(|flag| format!("{:?}", flag.split([' ', '=', '<']).next().unwrap_or(flag)))
                .collect();
            eprintln!("error: required flag(s) {} not set", names.join(", "));
        }
        ErrorKind::InvalidSubcommand => {
            eprintln!("error: unknown command {:?} for \"coracle\"", named(ContextKind::InvalidSubcommand));
        }
        _ => drop(error.print()),
    }
    ExitCode::from(1)
}
