//! The verbs that tell about the server: `api-resources`, `api-versions`, `version`, `cluster-info`, `auth`.

use http::Method;
use serde_json::{Value, json};

use super::client::Media;
use super::discovery::Resource;
use super::failure::{Failure, Result, fail};
use super::output::{self, OutputArgs, Printer, gojson, tabs};
use super::session::Session;

/// The Kubernetes release whose command line this is.
const CLIENT_MINOR: &str = "36";

/// Flags of `api-resources`.
#[derive(Debug, clap::Args)]
pub struct ApiResourcesArgs {
    /// Output format: wide, name
    #[arg(short = 'o', long)]
    output: Option<String>,
    /// Limit to resources in the specified API group
    #[arg(long)]
    api_group: Option<String>,
    /// Only resources that are (or are not) namespaced
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    namespaced: Option<bool>,
    /// Limit to resources that support the specified verbs
    #[arg(long, value_delimiter = ',')]
    verbs: Vec<String>,
    /// Limit to resources that belong to the specified categories
    #[arg(long, value_delimiter = ',')]
    categories: Vec<String>,
    /// Don't print headers
    #[arg(long)]
    no_headers: bool,
    /// Sort by name or kind
    #[arg(long)]
    sort_by: Option<String>,
    /// Use the cached list of resources (there is no cache)
    #[arg(long, hide = true)]
    cached: bool,
}

/// Carries out `api-resources`.
pub async fn api_resources(session: &Session, args: ApiResourcesArgs) -> Result<()> {
    let wide = match args.output.as_deref() {
        None | Some("") | Some("name") => false,
        Some("wide") => true,
        Some(other) => return fail(format!("--output {other} is not available")),
    };
    let discovery = session.discovery().await?;
    let keep = |resource: &&Resource| {
        args.api_group.as_ref().is_none_or(|group| *group == resource.group)
            && args.namespaced.is_none_or(|namespaced| namespaced == resource.namespaced)
            && args.verbs.iter().all(|verb| resource.can(verb))
            && args.categories.iter().all(|category| resource.categories.contains(category))
            && !resource.verbs.is_empty()
    };
    let mut resources: Vec<&Resource> = discovery.preferred().filter(keep).collect();
    match args.sort_by.as_deref() {
        None => resources.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural))),
        Some("name") => resources.sort_by(|a, b| a.plural.cmp(&b.plural)),
        Some("kind") => resources.sort_by(|a, b| a.kind.cmp(&b.kind)),
        Some(_) => return fail("--sort-by accepts only name or kind"),
    }
    if args.output.as_deref() == Some("name") {
        resources.iter().for_each(|resource| output::line(&resource.qualified()));
        return Ok(());
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    if !args.no_headers {
        rows.push(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"].map(str::to_string).to_vec());
        if wide {
            rows[0].extend(["VERBS", "CATEGORIES"].map(str::to_string));
        }
    }
    for resource in resources {
        let mut row = vec![
            resource.plural.clone(),
            resource.short_names.join(","),
            resource.api_version(),
            resource.namespaced.to_string(),
            resource.kind.clone(),
        ];
        if wide {
            let mut verbs = resource.verbs.clone();
            verbs.sort();
            row.extend([verbs.join(","), resource.categories.join(",")]);
        }
        rows.push(row);
    }
    output::out(&tabs::grid(&rows));
    Ok(())
}

/// Carries out `api-versions`.
pub async fn api_versions(session: &Session) -> Result<()> {
    let mut versions = session.discovery().await?.group_versions.clone();
    versions.sort();
    versions.iter().for_each(|version| output::line(version));
    Ok(())
}

/// Flags of `version`.
#[derive(Debug, clap::Args)]
pub struct VersionArgs {
    /// Client version only
    #[arg(long)]
    pub client: bool,
    /// Output format: yaml, json
    #[arg(short = 'o', long)]
    output: Option<String>,
}

/// Carries out `version`; without a session when the client cannot even be set up or only the client was asked for.
pub async fn version(session: Result<Session>, args: VersionArgs) -> Result<()> {
    let client = json!({
        "major": "1", "minor": CLIENT_MINOR,
        "gitVersion": format!("v1.{CLIENT_MINOR}.0+coracle.{}", env!("CARGO_PKG_VERSION")),
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    });
    let server = match (&session, args.client) {
        (_, true) => None,
        (Ok(session), false) => Some(session.client.get("/version").await),
        (Err(failure), false) => Some(Err(failure.clone())),
    };
    let mut whole = json!({"clientVersion": client});
    if let Some(Ok(server)) = &server {
        whole["serverVersion"] = server.clone();
    }
    match args.output.as_deref() {
        None | Some("") => {
            output::line(&format!("Client Version: {}", client["gitVersion"].as_str().unwrap_or_default()));
            if let Some(Ok(server)) = &server {
                output::line(&format!("Server Version: {}", server["gitVersion"].as_str().unwrap_or_default()));
            }
        }
        Some("json") => output::line(&gojson::pretty(&whole).replace("    ", "  ")),
        Some("yaml") => output::out(&manifests::yaml::to_string(&whole)),
        Some(_) => return fail("--output must be 'yaml' or 'json'"),
    }
    match server {
        Some(Err(failure)) => Err(failure),
        _ => Ok(()),
    }
}

/// The processor as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Carries out `cluster-info`.
pub async fn cluster_info(session: &Session) -> Result<()> {
    session.client.get("/version").await?;
    output::line(&format!("Kubernetes control plane is running at {}", session.client.url()));
    output::line("\nTo further debug and diagnose cluster problems, use 'coracle get events -A' and the server's log.");
    Ok(())
}

/// Questions about authorization.
#[derive(Debug, clap::Subcommand)]
pub enum AuthCommand {
    /// Check self user attributes
    Whoami {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Check whether an action is allowed
    #[command(name = "can-i")]
    CanI {
        /// VERB [TYPE | TYPE/NAME | NONRESOURCEURL]
        words: Vec<String>,
        /// Check the action in all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// SubResource such as pod/log
        #[arg(long)]
        subresource: Option<String>,
        /// Only set the exit code
        #[arg(short = 'q', long)]
        quiet: bool,
    },
}

/// Carries out `auth`.
pub async fn auth(session: &Session, command: AuthCommand) -> Result<()> {
    match command {
        AuthCommand::Whoami { output } => whoami(session, output).await,
        AuthCommand::CanI { words, all_namespaces, subresource, quiet } => {
            can_i(session, &words, all_namespaces, subresource, quiet).await
        }
    }
}

async fn whoami(session: &Session, args: OutputArgs) -> Result<()> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = session.client.send(Method::POST, path, Media::Json, &body).await.map_err(|failure| {
        if failure.is_not_found() {
            return Failure::Text("the selfsubjectreviews API is not enabled in the cluster\nenable it, or use the kubeconfig to see who you are".into());
        }
        failure
    })?;
    let mut printer = Printer::new(args.format(false)?, &args);
    let user = &review["status"]["userInfo"];
    let mut rows = vec![vec!["ATTRIBUTE".to_string(), "VALUE".to_string()]];
    let mut row = |name: &str, value: String| rows.push(vec![name.to_string(), value]);
    row("Username", user["username"].as_str().unwrap_or_default().to_string());
    if let Some(uid) = user["uid"].as_str().filter(|uid| !uid.is_empty()) {
        row("UID", uid.to_string());
    }
    if user["groups"].is_array() {
        row("Groups", list(&user["groups"]));
    }
    for (key, values) in user["extra"].as_object().into_iter().flatten() {
        row(&format!("Extra: {key}"), list(values));
    }
    printer.print(&review, tabs::grid(&rows).trim_end_matches('\n'))
}

fn list(values: &Value) -> String {
    let values: Vec<&str> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    format!("[{}]", values.join(" "))
}

async fn can_i(
    session: &Session,
    words: &[String],
    all_namespaces: bool,
    subresource: Option<String>,
    quiet: bool,
) -> Result<()> {
    let [verb, what] = words else {
        return fail(
            "you must specify two arguments: verb resource or verb resource/resourceName.\nSee 'coracle auth can-i -h' for help and examples.",
        );
    };
    let spec = if what.starts_with('/') {
        json!({"nonResourceAttributes": {"verb": verb, "path": what}})
    } else {
        let (word, name) = what.split_once('/').unwrap_or((what, ""));
        let mut attributes = json!({"verb": verb, "resource": word, "name": name});
        if let Some(resource) = session.discovery().await?.find(word) {
            attributes["resource"] = resource.plural.clone().into();
            attributes["group"] = resource.group.clone().into();
            if resource.namespaced && !all_namespaces {
                attributes["namespace"] = session.namespace.clone().into();
            }
        } else if word != "*" {
            eprintln!("Warning: the server doesn't have a resource type '{word}'\n");
        }
        if let Some(subresource) = subresource {
            attributes["subresource"] = subresource.into();
        }
        json!({"resourceAttributes": attributes})
    };
    let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review = session.client.send(Method::POST, path, Media::Json, &body).await?;
    let allowed = review["status"]["allowed"] == true;
    if !quiet {
        let reason = review["status"]["reason"].as_str().filter(|text| !text.is_empty());
        let answer = if allowed { "yes" } else { "no" };
        output::line(&reason.filter(|_| !allowed).map_or(answer.to_string(), |reason| format!("{answer} - {reason}")));
    }
    if allowed { Ok(()) } else { Err(Failure::Exit(1)) }
}
