//! Which cluster to talk to, and as whom: kubeconfig files found and merged as kubectl does, then flags on top.
//!
//! The order is `--kubeconfig`, `$KUBECONFIG` (a list), `~/.kube/config`, and last the file that a server on this machine
//! wrote. Parsing and merging are the kube crate's; writing is in `config`.

use std::path::{Path, PathBuf};

use kube::config::{AuthInfo, Cluster, Config, Context, KubeConfigOptions, Kubeconfig};
use kube::config::{NamedAuthInfo, NamedCluster, NamedContext};

use super::Globals;
use super::failure::{Failure, Result, fail};

/// The only name in the one-cluster kubeconfig that `connection` hands to the client.
const CHOSEN: &str = "chosen";

/// Where to connect and with which defaults.
pub struct Connection {
    /// For the client.
    pub config: Config,
    /// `HOST:PORT`, for messages.
    pub host: String,
    /// The namespace of the context, or `default`.
    pub namespace: String,
}

/// The files that kubeconfig is read from, most important first; some may not exist.
pub fn files(globals: &Globals) -> Vec<PathBuf> {
    if let Some(file) = &globals.kubeconfig {
        return vec![file.clone()];
    }
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
        return std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let users = home.as_ref().map(|home| home.join(".kube/config"));
    match users {
        Some(file) if file.exists() => vec![file],
        users => local_servers(home.as_deref()).into_iter().find(|file| readable(file)).or(users).into_iter().collect(),
    }
}

fn readable(file: &Path) -> bool {
    std::fs::File::open(file).is_ok()
}

/// The kubeconfig files that a server on this machine writes.
fn local_servers(home: Option<&Path>) -> Vec<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| home.map(|home| home.join(".local/share")));
    let mut files = vec![PathBuf::from("/etc/coracle/coracle.yaml")];
    files.extend(data.map(|dir| dir.join("coracle/coracle.yaml")));
    files
}

/// Reads and merges the files; files that do not exist count as empty, unless the user named one by flag.
pub fn load(globals: &Globals) -> Result<Kubeconfig> {
    let mut merged = Kubeconfig::default();
    for file in files(globals) {
        if !file.exists() {
            if globals.kubeconfig.is_some() {
                return fail(format!("stat {}: no such file or directory", file.display()));
            }
            continue;
        }
        let read = Kubeconfig::read_from(&file)
            .map_err(|error| Failure::Text(format!("error loading config file {:?}: {error}", file.display())))?;
        merged = merged.merge(read).map_err(|error| Failure::Text(error.to_string()))?;
    }
    Ok(merged)
}

/// Follows the context to a cluster and a user, and lays the flags over them.
pub async fn connection(globals: &Globals) -> Result<Connection> {
    let file = load(globals)?;
    let context_name = globals.context.clone().or_else(|| file.current_context.clone()).filter(|name| !name.is_empty());
    let mut context = Context::default();
    if let Some(name) = &context_name {
        match file.contexts.iter().find(|context| context.name == *name) {
            Some(named) => context = named.context.clone().unwrap_or_default(),
            None if globals.context.is_some() => {
                return Err(Failure::Bare(format!(
                    "Error in configuration: context was not found for specified context: {name}"
                )));
            }
            None => {}
        }
    }
    let cluster = chosen_cluster(globals, &file, &context)?;
    let user = chosen_user(globals, &file, &context)?;
    let server = cluster.server.clone().unwrap_or_default();
    let host = server.parse::<http::Uri>().ok().and_then(|uri| uri.authority().map(ToString::to_string));
    let namespace = context.namespace.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into());
    let one = Kubeconfig {
        clusters: vec![NamedCluster { name: CHOSEN.into(), cluster: Some(cluster), ..Default::default() }],
        auth_infos: vec![NamedAuthInfo { name: CHOSEN.into(), auth_info: Some(user), ..Default::default() }],
        contexts: vec![NamedContext {
            name: CHOSEN.into(),
            context: Some(Context { cluster: CHOSEN.into(), user: Some(CHOSEN.into()), ..Default::default() }),
            ..Default::default()
        }],
        current_context: Some(CHOSEN.into()),
        ..Default::default()
    };
    let options = KubeConfigOptions::default();
    let mut config =
        Config::from_custom_kubeconfig(one, &options).await.map_err(|error| Failure::Text(error.to_string()))?;
    config.default_retry = false;
    Ok(Connection { config, host: host.unwrap_or(server), namespace })
}

fn chosen_cluster(globals: &Globals, file: &Kubeconfig, context: &Context) -> Result<Cluster> {
    let name = globals.cluster.as_deref().unwrap_or(&context.cluster);
    let found = file.clusters.iter().find(|cluster| cluster.name == name).and_then(|named| named.cluster.clone());
    if found.is_none() && globals.cluster.is_some() {
        return fail(format!("cluster {name:?} does not exist"));
    }
    let mut cluster = found.unwrap_or_default();
    if let Some(server) = &globals.server {
        cluster.server = Some(if server.contains("://") { server.clone() } else { format!("http://{server}") });
    }
    // kubectl's own default, kept because its error message is what people search for.
    cluster.server =
        cluster.server.filter(|server| !server.is_empty()).or_else(|| Some("http://localhost:8080".into()));
    if let Some(file) = &globals.certificate_authority {
        cluster.certificate_authority = Some(file.display().to_string());
        cluster.certificate_authority_data = None;
    }
    if globals.insecure_skip_tls_verify {
        cluster.insecure_skip_tls_verify = Some(true);
        cluster.certificate_authority = None;
        cluster.certificate_authority_data = None;
    }
    Ok(cluster)
}

fn chosen_user(globals: &Globals, file: &Kubeconfig, context: &Context) -> Result<AuthInfo> {
    let name = globals.user.as_deref().or(context.user.as_deref()).unwrap_or_default();
    let found = file.auth_infos.iter().find(|user| user.name == name).and_then(|named| named.auth_info.clone());
    if found.is_none() && globals.user.is_some() {
        return fail(format!("auth info {name:?} does not exist"));
    }
    let mut user = found.unwrap_or_default();
    if let Some(token) = &globals.token {
        user.token = Some(token.clone().into());
        user.token_file = None;
    }
    if let Some(file) = &globals.client_certificate {
        user.client_certificate = Some(file.display().to_string());
        user.client_certificate_data = None;
    }
    if let Some(file) = &globals.client_key {
        user.client_key = Some(file.display().to_string());
        user.client_key_data = None;
    }
    Ok(user)
}
