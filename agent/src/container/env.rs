//! A container's environment, command line and their `$(VAR)` expansion, as the kubelet makes them.
//!
//! Pure: reads the world, touches nothing.

use crate::fields::{self, PodFacts};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, PodSpec, Secret, Service};
use runtime::images::ImageConfig;
use state::World;
use std::collections::BTreeMap;

/// Why a container cannot be configured: reason `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A ConfigMap is not there.
    #[error("configmap {0:?} not found")]
    ConfigMap(String),
    /// A Secret is not there.
    #[error("secret {0:?} not found")]
    Secret(String),
    /// A ConfigMap or Secret lacks the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Where.
        namespace: String,
        /// In which.
        name: String,
    },
    /// The downward API has no such value.
    #[error(transparent)]
    Field(#[from] fields::FieldError),
    /// A source of values that this node does not know.
    #[error("environment variable {0}: unsupported valueFrom")]
    Source(String),
}

/// What names and variables mean to one container.
pub struct Scope<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its namespace.
    pub namespace: &'a str,
    /// The container.
    pub container: &'a Container,
    /// The world at the start.
    pub world: &'a World,
    /// The downward API's other values.
    pub facts: &'a PodFacts,
    /// The pod's host name.
    pub hostname: &'a str,
}

/// The environment, each name once, in the order of definition.
pub fn environment(scope: &Scope<'_>) -> Result<Vec<(String, String)>, ConfigError> {
    let services = service_variables(scope);
    let mut env = Env::default();
    env.set("HOSTNAME", scope.hostname.into());
    from_sources(scope, &mut env)?;
    for variable in scope.container.env.iter().flatten() {
        if let Some(value) = value(scope, variable, &env, &services)? {
            env.set(&variable.name, value);
        }
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(&name, value);
        }
    }
    Ok(env.0)
}

/// The whole argv. The image's entrypoint, or else its program's name, stands in for a missing command, and only then the
/// image's arguments for missing ones.
pub fn argv(container: &Container, image: &ImageConfig, env: &[(String, String)]) -> Vec<String> {
    let mut argv = words(container.command.as_deref(), env);
    let args = words(container.args.as_deref(), env);
    if !argv.is_empty() {
        argv.extend(args);
        return argv;
    }
    argv = if image.entrypoint.is_empty() { vec![image.name.clone()] } else { image.entrypoint.clone() };
    argv.extend(if args.is_empty() { image.cmd.clone() } else { args });
    argv
}

/// `command` or `args` with their variables replaced.
pub fn words(words: Option<&[String]>, env: &[(String, String)]) -> Vec<String> {
    let look_up = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    words.unwrap_or_default().iter().map(|word| expand(word, look_up)).collect()
}

/// Replaces `$(NAME)`; `$$` is a dollar, and what is not known stays as written.
pub fn expand(text: &str, look_up: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match look_up(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[derive(Default)]
struct Env(Vec<(String, String)>);

impl Env {
    fn get(&self, name: &str) -> Option<&String> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name.into(), value)),
        }
    }
}

fn from_sources(scope: &Scope<'_>, env: &mut Env) -> Result<(), ConfigError> {
    for source in scope.container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(wanted) = &source.config_map_ref {
            match scope.world.view::<ConfigMap>(scope.namespace, &wanted.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(ConfigError::ConfigMap(wanted.name.clone())),
            }
        }
        if let Some(wanted) = &source.secret_ref {
            match scope.world.view::<Secret>(scope.namespace, &wanted.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), lossy(value));
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(ConfigError::Secret(wanted.name.clone())),
            }
        }
    }
    Ok(())
}

fn value(
    scope: &Scope<'_>,
    variable: &EnvVar,
    env: &Env,
    services: &BTreeMap<String, String>,
) -> Result<Option<String>, ConfigError> {
    let Some(from) = &variable.value_from else {
        let look_up = |name: &str| env.get(name).or_else(|| services.get(name)).cloned();
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), look_up)));
    };
    from_source(scope, &variable.name, from)
}

/// `None`: an optional source that is not there.
fn from_source(scope: &Scope<'_>, name: &str, from: &EnvVarSource) -> Result<Option<String>, ConfigError> {
    let missing = |kind, object: &str, key: &str| ConfigError::Key {
        key: key.into(),
        kind,
        namespace: scope.namespace.into(),
        name: object.into(),
    };
    if let Some(wanted) = &from.config_map_key_ref {
        let map = scope.world.view::<ConfigMap>(scope.namespace, &wanted.name);
        let optional = wanted.optional == Some(true);
        let Some(map) = map else {
            return if optional { Ok(None) } else { Err(ConfigError::ConfigMap(wanted.name.clone())) };
        };
        let found = map.data.as_ref().and_then(|data| data.get(&wanted.key)).cloned();
        return if found.is_some() || optional {
            Ok(found)
        } else {
            Err(missing("ConfigMap", &wanted.name, &wanted.key))
        };
    }
    if let Some(wanted) = &from.secret_key_ref {
        let secret = scope.world.view::<Secret>(scope.namespace, &wanted.name);
        let optional = wanted.optional == Some(true);
        let Some(secret) = secret else {
            return if optional { Ok(None) } else { Err(ConfigError::Secret(wanted.name.clone())) };
        };
        let found = secret.data.as_ref().and_then(|data| data.get(&wanted.key)).map(lossy);
        return if found.is_some() || optional { Ok(found) } else { Err(missing("Secret", &wanted.name, &wanted.key)) };
    }
    if let Some(wanted) = &from.field_ref {
        return Ok(Some(fields::field(scope.pod, scope.facts, &wanted.field_path)?));
    }
    if let Some(wanted) = &from.resource_field_ref {
        let empty = PodSpec::default();
        let spec = scope.pod.spec.as_ref().unwrap_or(&empty);
        return Ok(Some(fields::resource(spec, scope.facts, &scope.container.name, wanted)?));
    }
    Err(ConfigError::Source(name.into()))
}

fn lossy(value: &ByteString) -> String {
    String::from_utf8_lossy(&value.0).into_owned()
}

/// `REDIS_SERVICE_HOST` and its kin: Services of the pod's namespace (unless it does not want them), and always those of
/// the API server.
fn service_variables(scope: &Scope<'_>) -> BTreeMap<String, String> {
    let wants_links = scope.pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut variables = BTreeMap::new();
    let api = scope.world.view::<Service>("default", "kubernetes");
    let links = scope.world.all::<Service>(Some(scope.namespace)).filter_map(|object| object.view::<Service>());
    for service in api.into_iter().chain(links.filter(|_| wants_links)) {
        variables.extend(variables_of(service));
    }
    variables
}

fn variables_of(service: &Service) -> Vec<(String, String)> {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return Vec::new() };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return Vec::new() };
    let shout = |text: &str| text.to_uppercase().replace(['-', '.'], "_");
    let name = shout(name);
    let mut variables =
        vec![(format!("{name}_SERVICE_HOST"), ip.into()), (format!("{name}_SERVICE_PORT"), first.port.to_string())];
    for port in ports {
        if let Some(label) = port.name.as_deref().filter(|label| !label.is_empty()) {
            variables.push((format!("{name}_SERVICE_PORT_{}", shout(label)), port.port.to_string()));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
        if i == 0 {
            variables.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.push((prefix.clone(), url));
        variables.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        variables.push((format!("{prefix}_PORT"), port.port.to_string()));
        variables.push((format!("{prefix}_ADDR"), ip.into()));
    }
    variables
}
