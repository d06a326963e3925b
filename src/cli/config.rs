//! `config`: reading and changing kubeconfig files. Nothing here talks to a server.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde_json::{Value, json};

use super::Globals;
use super::failure::{Failure, Result, fail};
use super::kubeconfig;
use super::output::{self, OutputArgs, Printer, tabs};

/// What can be done with kubeconfig files.
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Display merged kubeconfig settings
    View {
        #[command(flatten)]
        output: OutputArgs,
        /// Remove all information not used by the current context
        #[arg(long)]
        minify: bool,
        /// Display raw byte data and sensitive data
        #[arg(long)]
        raw: bool,
        /// Make the kubeconfig self-contained
        #[arg(long)]
        flatten: bool,
    },
    /// Describe one or many contexts
    GetContexts {
        /// Names of contexts
        names: Vec<String>,
        /// Output format: name
        #[arg(short = 'o', long)]
        output: Option<String>,
        /// Don't print headers
        #[arg(long)]
        no_headers: bool,
    },
    /// Display the current-context
    CurrentContext,
    /// Set the current-context
    #[command(visible_alias = "use")]
    UseContext {
        /// Name of the context
        name: String,
    },
    /// Set a context entry; --cluster, --user and --namespace say what is in it
    SetContext {
        /// Name of the context
        name: Option<String>,
        /// Modify the current context
        #[arg(long)]
        current: bool,
    },
    /// Set a cluster entry; --server, --certificate-authority and --insecure-skip-tls-verify say what is in it
    SetCluster {
        /// Name of the cluster
        name: String,
        /// Embed the certificate instead of its path
        #[arg(long)]
        embed_certs: bool,
        /// The name to check the server's certificate for
        #[arg(long)]
        tls_server_name: Option<String>,
    },
    /// Set a user entry; --token, --client-certificate and --client-key say what is in it
    SetCredentials {
        /// Name of the user
        name: String,
        /// Embed certificate and key instead of their paths
        #[arg(long)]
        embed_certs: bool,
    },
    /// Display clusters defined in the kubeconfig
    GetClusters,
    /// Display users defined in the kubeconfig
    GetUsers,
    /// Delete the specified cluster from the kubeconfig
    DeleteCluster {
        /// Name of the cluster
        name: String,
    },
    /// Delete the specified context from the kubeconfig
    DeleteContext {
        /// Name of the context
        name: String,
    },
    /// Delete the specified user from the kubeconfig
    DeleteUser {
        /// Name of the user
        name: String,
    },
    /// Rename a context from the kubeconfig file
    RenameContext {
        /// The name it has
        from: String,
        /// The name it gets
        to: String,
    },
}

/// Carries it out.
pub fn run(globals: &Globals, command: ConfigCommand) -> Result<()> {
    let files = kubeconfig::files(globals);
    let file =
        files.iter().find(|file| file.exists()).or(files.first()).cloned().unwrap_or_else(|| PathBuf::from("config"));
    match command {
        ConfigCommand::View { output, minify, raw, flatten } => view(globals, output, minify, raw, flatten),
        ConfigCommand::GetContexts { names, output, no_headers } => {
            get_contexts(globals, &names, output.as_deref(), no_headers)
        }
        ConfigCommand::CurrentContext => {
            let merged = merged(globals)?;
            match globals.context.as_deref().or(merged["current-context"].as_str()) {
                Some(name) if !name.is_empty() => output::line(name),
                _ => return fail("current-context is not set"),
            }
            Ok(())
        }
        ConfigCommand::GetClusters => list_names(globals, "clusters"),
        ConfigCommand::GetUsers => list_names(globals, "users"),
        ConfigCommand::UseContext { name } => {
            if find(&merged(globals)?, "contexts", &name).is_none() {
                return fail(format!("no context exists with the name: {name:?}"));
            }
            edit(&file, |config| {
                config["current-context"] = name.clone().into();
                Ok(format!("Switched to context {name:?}."))
            })
        }
        ConfigCommand::SetContext { name, current } => set_context(globals, &file, name, current),
        ConfigCommand::SetCluster { name, embed_certs, tls_server_name } => {
            set_cluster(globals, &file, &name, embed_certs, tls_server_name)
        }
        ConfigCommand::SetCredentials { name, embed_certs } => set_credentials(globals, &file, &name, embed_certs),
        ConfigCommand::DeleteCluster { name } => delete(&file, "clusters", "cluster", &name),
        ConfigCommand::DeleteContext { name } => delete(&file, "contexts", "context", &name),
        ConfigCommand::DeleteUser { name } => delete(&file, "users", "user", &name),
        ConfigCommand::RenameContext { from, to } => rename(&file, &from, &to),
    }
}

/// All files as one, with empty parts as kubectl shows them.
fn merged(globals: &Globals) -> Result<Value> {
    let config = kubeconfig::load(globals)?;
    let mut value = serde_json::to_value(&config).map_err(|error| Failure::Text(error.to_string()))?;
    value["apiVersion"] = "v1".into();
    value["kind"] = "Config".into();
    for list in ["clusters", "contexts", "users"] {
        if value[list].as_array().is_none_or(Vec::is_empty) {
            value[list] = Value::Null;
        }
    }
    if value["preferences"].is_null() {
        value["preferences"] = json!({});
    }
    if value["current-context"].is_null() {
        value["current-context"] = "".into();
    }
    if let Some(context) = &globals.context {
        value["current-context"] = context.clone().into();
    }
    Ok(value)
}

fn find<'a>(config: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    config[list].as_array()?.iter().find(|entry| entry["name"] == name)
}

fn view(globals: &Globals, args: OutputArgs, minify: bool, raw: bool, flatten: bool) -> Result<()> {
    let mut config = merged(globals)?;
    if minify {
        let context = config["current-context"].as_str().unwrap_or_default().to_string();
        if context.is_empty() {
            return fail("current-context must exist in order to minify");
        }
        let Some(chosen) = find(&config, "contexts", &context) else {
            return fail(format!("cannot locate context {context:?}"));
        };
        let (cluster, user) = (chosen["context"]["cluster"].clone(), chosen["context"]["user"].clone());
        for (list, name) in [("contexts", Value::from(context)), ("clusters", cluster), ("users", user)] {
            if let Some(entries) = config[list].as_array_mut() {
                entries.retain(|entry| entry["name"] == name);
            }
        }
    }
    if flatten {
        for (list, inner) in [("clusters", "cluster"), ("users", "user")] {
            for entry in config[list].as_array_mut().into_iter().flatten() {
                embed(&mut entry[inner])?;
            }
        }
    }
    if !raw && !flatten {
        config["clusters"].as_array_mut().into_iter().flatten().for_each(|entry| hide(&mut entry["cluster"]));
        config["users"].as_array_mut().into_iter().flatten().for_each(|entry| hide(&mut entry["user"]));
    }
    let mut args = args;
    args.output.get_or_insert_with(|| "yaml".to_string());
    Printer::new(args.format(false)?, &args).print(&config, "")
}

fn hide(entry: &mut Value) {
    let Some(map) = entry.as_object_mut() else { return };
    for (key, value) in map {
        match key.as_str() {
            "certificate-authority-data" | "client-certificate-data" => *value = "DATA+OMITTED".into(),
            "client-key-data" => *value = "DATA+OMITTED".into(),
            "token" | "password" => *value = "REDACTED".into(),
            _ => {}
        }
    }
}

fn embed(entry: &mut Value) -> Result<()> {
    for key in ["certificate-authority", "client-certificate", "client-key"] {
        let Some(path) = entry[key].as_str().map(str::to_string) else { continue };
        let data = encoded(Path::new(&path))?;
        if let Some(map) = entry.as_object_mut() {
            map.remove(key);
            map.insert(format!("{key}-data"), data);
        }
    }
    Ok(())
}

fn encoded(file: &Path) -> Result<Value> {
    let bytes = std::fs::read(file).map_err(|error| {
        Failure::Text(format!("could not read {}", output::go_io_error(&file.display().to_string(), &error)))
    })?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes).into())
}

fn get_contexts(globals: &Globals, names: &[String], format: Option<&str>, no_headers: bool) -> Result<()> {
    let config = merged(globals)?;
    let current = config["current-context"].as_str().unwrap_or_default();
    let mut entries: Vec<&Value> = config["contexts"].as_array().into_iter().flatten().collect();
    entries.sort_by_key(|entry| entry["name"].as_str().unwrap_or_default());
    let mut failures = Vec::new();
    if !names.is_empty() {
        for name in names.iter().filter(|name| find(&config, "contexts", name).is_none()) {
            failures.push(Failure::Text(format!("context {name} not found")));
        }
        entries.retain(|entry| names.iter().any(|name| entry["name"] == name.as_str()));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    match format {
        None | Some("") => {
            let mut rows = Vec::new();
            if !no_headers {
                rows.push(["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"].map(str::to_string).to_vec());
            }
            for entry in entries {
                let mark = if entry["name"] == current { "*" } else { "" };
                let inner = &entry["context"];
                rows.push(vec![
                    mark.into(),
                    text(&entry["name"]),
                    text(&inner["cluster"]),
                    text(&inner["user"]),
                    text(&inner["namespace"]),
                ]);
            }
            output::out(&tabs::grid(&rows));
        }
        Some("name") => entries.iter().for_each(|entry| output::line(&text(&entry["name"]))),
        Some(other) => return fail(format!("output must be one of '' or 'name': {other}")),
    }
    super::failure::all_of(failures)
}

fn list_names(globals: &Globals, list: &str) -> Result<()> {
    output::line("NAME");
    for entry in merged(globals)?[list].as_array().into_iter().flatten() {
        output::line(entry["name"].as_str().unwrap_or_default());
    }
    Ok(())
}

fn set_context(globals: &Globals, file: &Path, name: Option<String>, current: bool) -> Result<()> {
    let name = match (name, current) {
        (Some(_), true) => return fail("you cannot specify both a context name and --current"),
        (None, false) => return fail("you must specify a non-empty context name or --current"),
        (Some(name), false) => name,
        (None, true) => match merged(globals)?["current-context"].as_str() {
            Some(name) if !name.is_empty() => name.to_string(),
            _ => return fail("no current context is set"),
        },
    };
    edit(file, |config| {
        let (entry, is_new) = entry(config, "contexts", "context", &name);
        let settings = [("cluster", &globals.cluster), ("user", &globals.user), ("namespace", &globals.namespace)];
        for (key, value) in settings {
            match value {
                Some(value) => entry[key] = value.clone().into(),
                None if is_new && key != "namespace" => entry[key] = "".into(),
                None => {}
            }
        }
        Ok(format!("Context {name:?} {}.", if is_new { "created" } else { "modified" }))
    })
}

fn set_cluster(
    globals: &Globals,
    file: &Path,
    name: &str,
    embed_certs: bool,
    tls_server_name: Option<String>,
) -> Result<()> {
    edit(file, |config| {
        let (entry, _) = entry(config, "clusters", "cluster", name);
        if let Some(server) = &globals.server {
            entry["server"] = server.clone().into();
        }
        if let Some(server_name) = &tls_server_name {
            entry["tls-server-name"] = server_name.clone().into();
        }
        if globals.insecure_skip_tls_verify {
            entry["insecure-skip-tls-verify"] = true.into();
            forget(entry, &["certificate-authority", "certificate-authority-data"]);
        }
        if let Some(path) = &globals.certificate_authority {
            forget(entry, &["certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify"]);
            put_file(entry, "certificate-authority", path, embed_certs)?;
        }
        Ok(format!("Cluster {name:?} set."))
    })
}

fn set_credentials(globals: &Globals, file: &Path, name: &str, embed_certs: bool) -> Result<()> {
    edit(file, |config| {
        let (entry, _) = entry(config, "users", "user", name);
        if let Some(token) = &globals.token {
            entry["token"] = token.clone().into();
            forget(entry, &["tokenFile"]);
        }
        let files = [("client-certificate", &globals.client_certificate), ("client-key", &globals.client_key)];
        for (key, path) in files {
            if let Some(path) = path {
                forget(entry, &[key, &format!("{key}-data")]);
                put_file(entry, key, path, embed_certs)?;
            }
        }
        Ok(format!("User {name:?} set."))
    })
}

fn put_file(entry: &mut Value, key: &str, path: &Path, embed_certs: bool) -> Result<()> {
    if embed_certs {
        entry[format!("{key}-data")] = encoded(path)?;
    } else {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        entry[key] = absolute.display().to_string().into();
    }
    Ok(())
}

fn forget(entry: &mut Value, keys: &[&str]) {
    if let Some(map) = entry.as_object_mut() {
        map.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

/// The inside of a named entry, made if it is not there; and whether it was made.
fn entry<'a>(config: &'a mut Value, list: &str, inner: &str, name: &str) -> (&'a mut Value, bool) {
    if !config[list].is_array() {
        config[list] = json!([]);
    }
    let known = find(config, list, name).is_some();
    if !known && let Some(entries) = config[list].as_array_mut() {
        entries.push(json!({"name": name, inner: {}}));
    }
    let at =
        config[list].as_array().and_then(|entries| entries.iter().position(|entry| entry["name"] == name)).unwrap_or(0);
    let slot = &mut config[list][at][inner];
    if !slot.is_object() {
        *slot = json!({});
    }
    (slot, !known)
}

fn delete(file: &Path, list: &str, what: &str, name: &str) -> Result<()> {
    edit(file, |config| {
        if find(config, list, name).is_none() {
            return fail(format!("cannot delete {what} {name}, not in {}", file.display()));
        }
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|entry| entry["name"] != name);
        }
        if what == "context" && config["current-context"] == name {
            eprintln!(
                "warning: this removed your active context, use \"coracle config use-context\" to select a different one"
            );
        }
        Ok(format!("deleted {what} {name} from {}", file.display()))
    })
}

fn rename(file: &Path, from: &str, to: &str) -> Result<()> {
    edit(file, |config| {
        if find(config, "contexts", from).is_none() {
            return fail(format!("cannot rename the context {from:?}, it's not in {}", file.display()));
        }
        if find(config, "contexts", to).is_some() {
            return fail(format!(
                "cannot rename the context {from:?}, the context {to:?} already exists in {}",
                file.display()
            ));
        }
        for entry in config["contexts"].as_array_mut().into_iter().flatten().filter(|entry| entry["name"] == from) {
            entry["name"] = to.into();
        }
        if config["current-context"] == from {
            config["current-context"] = to.into();
        }
        Ok(format!("Context {from:?} renamed to {to:?}."))
    })
}

/// Reads a file, changes it, and puts the new one in its place as a whole; then says what was done.
fn edit(file: &Path, change: impl FnOnce(&mut Value) -> Result<String>) -> Result<()> {
    let cannot = |error: std::io::Error| Failure::Text(output::go_io_error(&file.display().to_string(), &error));
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(cannot)?,
    };
    let read = manifests::yaml::documents(&text)
        .map_err(|error| Failure::Text(format!("error loading config file {:?}: {error}", file.display())))?;
    let mut config = read.into_iter().next().map(|document| document.value).filter(Value::is_object).unwrap_or_else(|| {
        json!({"apiVersion": "v1", "kind": "Config", "preferences": {}, "clusters": null, "contexts": null, "users": null, "current-context": ""})
    });
    let said = change(&mut config)?;
    if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(cannot)?;
    }
    let beside = file.with_extension("new");
    write_private(&beside, &manifests::yaml::to_string(&config)).map_err(cannot)?;
    // A kubeconfig that is a link to elsewhere stays one.
    let target = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    std::fs::rename(&beside, target).map_err(cannot)?;
    output::line(&said);
    Ok(())
}

/// The file holds credentials: nobody else may read it.
fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut opened = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    opened.write_all(text.as_bytes())?;
    opened.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_built_up() {
        let directory = tempfile::tempdir().unwrap();
        let globals = Globals {
            kubeconfig: Some(directory.path().join("config")),
            server: Some("https://h:6443".into()),
            cluster: Some("c".into()),
            user: Some("u".into()),
            token: Some("secret".into()),
            ..Default::default()
        };
        let do_it = |command| run(&globals, command);
        do_it(ConfigCommand::SetCluster { name: "c".into(), embed_certs: false, tls_server_name: None }).unwrap();
        do_it(ConfigCommand::SetCredentials { name: "u".into(), embed_certs: false }).unwrap();
        do_it(ConfigCommand::SetContext { name: Some("x".into()), current: false }).unwrap();
        do_it(ConfigCommand::UseContext { name: "x".into() }).unwrap();
        do_it(ConfigCommand::RenameContext { from: "x".into(), to: "y".into() }).unwrap();
        assert!(do_it(ConfigCommand::DeleteContext { name: "x".into() }).is_err());
        let config = merged(&globals).unwrap();
        assert_eq!(config["current-context"], "y");
        assert_eq!(config["contexts"][0]["context"]["cluster"], "c");
        assert_eq!(config["users"][0]["user"]["token"], "secret");
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://h:6443");
    }
}
