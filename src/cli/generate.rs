//! The generators of `create`: objects from flags. Pure: flags in, object out, except for the files they are told to read.

use serde_json::{Map, Value, json};

use super::failure::{Failure, Result, fail};
use super::generate_data::{DataArgs, secret_value};
use super::generate_ingress;

/// What can be made from flags alone.
#[derive(Debug, clap::Subcommand)]
pub enum Generator {
    /// Create a namespace with the specified name
    #[command(visible_alias = "ns")]
    Namespace {
        /// Name of the namespace
        name: String,
    },
    /// Create a deployment with the specified name
    #[command(visible_alias = "deploy")]
    Deployment(DeploymentArgs),
    /// Create a config map from a local file, directory or literal value
    #[command(visible_alias = "cm")]
    Configmap {
        /// Name of the config map
        name: String,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Create a secret using a specified subcommand
    #[command(subcommand)]
    Secret(SecretKind),
    /// Create a service using a specified subcommand
    #[command(subcommand, visible_alias = "svc")]
    Service(ServiceKind),
    /// Create a job with the specified name
    Job {
        /// Name of the job
        name: String,
        /// Image to run
        #[arg(long, required_unless_present = "from", conflicts_with = "from")]
        image: Option<String>,
        /// The cronjob to create the job from: cronjob/NAME
        #[arg(long)]
        from: Option<String>,
        /// The command to run
        #[arg(last = true, conflicts_with = "from")]
        command: Vec<String>,
    },
    /// Create a cron job with the specified name
    #[command(visible_alias = "cj")]
    Cronjob {
        /// Name of the cron job
        name: String,
        /// Image to run
        #[arg(long)]
        image: String,
        /// A schedule in the Cron format the job should be run with
        #[arg(long)]
        schedule: String,
        /// The job's restart policy: OnFailure or Never
        #[arg(long, default_value = "OnFailure")]
        restart: String,
        /// The command to run
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Create an ingress with the specified name
    #[command(visible_alias = "ing")]
    Ingress(generate_ingress::IngressArgs),
    /// Create a service account with the specified name
    #[command(visible_alias = "sa")]
    Serviceaccount {
        /// Name of the service account
        name: String,
    },
}

/// Flags of `create deployment`.
#[derive(Debug, clap::Args)]
pub struct DeploymentArgs {
    name: String,
    /// Image names to run; several make several containers
    #[arg(long, required = true, value_delimiter = ',')]
    image: Vec<String>,
    /// Number of replicas to create
    #[arg(short = 'r', long, default_value_t = 1)]
    replicas: i32,
    /// The containerPort that this deployment exposes
    #[arg(long)]
    port: Option<u16>,
    /// The command to run
    #[arg(last = true)]
    command: Vec<String>,
}

/// What kinds of secrets there are.
#[derive(Debug, clap::Subcommand)]
pub enum SecretKind {
    /// Create a secret from a local file, directory, or literal value
    Generic {
        /// Name of the secret
        name: String,
        #[command(flatten)]
        data: DataArgs,
        /// The type of secret to create
        #[arg(long = "type")]
        kind: Option<String>,
    },
    /// Create a TLS secret
    Tls {
        /// Name of the secret
        name: String,
        /// Path to PEM encoded public key certificate
        #[arg(long)]
        cert: String,
        /// Path to private key associated with given certificate
        #[arg(long)]
        key: String,
    },
    /// Create a secret for use with a Docker registry
    DockerRegistry {
        /// Name of the secret
        name: String,
        /// Server location for Docker registry
        #[arg(long, default_value = "https://index.docker.io/v1/")]
        docker_server: String,
        /// Username for Docker registry authentication
        #[arg(long)]
        docker_username: String,
        /// Password for Docker registry authentication
        #[arg(long)]
        docker_password: String,
        /// Email for Docker registry
        #[arg(long)]
        docker_email: Option<String>,
    },
}

/// What kinds of services there are.
#[derive(Debug, clap::Subcommand)]
pub enum ServiceKind {
    /// Create a ClusterIP service
    Clusterip {
        /// Name of the service
        name: String,
        /// Port pairs as '<port>:<targetPort>'
        #[arg(long, value_delimiter = ',')]
        tcp: Vec<String>,
        /// Assign your own ClusterIP or set to 'None' for a 'headless' service
        #[arg(long)]
        clusterip: Option<String>,
    },
    /// Create a NodePort service
    Nodeport {
        /// Name of the service
        name: String,
        /// Port pairs as '<port>:<targetPort>'
        #[arg(long, value_delimiter = ',', required = true)]
        tcp: Vec<String>,
        /// Port used to expose the service on each node
        #[arg(long)]
        node_port: Option<u16>,
    },
    /// Create a LoadBalancer service
    Loadbalancer {
        /// Name of the service
        name: String,
        /// Port pairs as '<port>:<targetPort>'
        #[arg(long, value_delimiter = ',', required = true)]
        tcp: Vec<String>,
    },
    /// Create an ExternalName service
    Externalname {
        /// Name of the service
        name: String,
        /// External name of the service
        #[arg(long)]
        external_name: String,
        /// Port pairs as '<port>:<targetPort>'
        #[arg(long, value_delimiter = ',')]
        tcp: Vec<String>,
    },
}

/// The object that a generator's flags describe.
pub fn object(generator: Generator) -> Result<Value> {
    match generator {
        Generator::Namespace { name } => Ok(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}, "status": {},
        })),
        Generator::Deployment(args) => deployment(args),
        Generator::Configmap { name, data } => data.config_map(&name),
        Generator::Secret(kind) => secret(kind),
        Generator::Service(kind) => service(kind),
        Generator::Job { name, image, command, .. } => Ok(job(&name, &image.unwrap_or_default(), command)),
        Generator::Cronjob { name, image, schedule, restart, command } => {
            let mut job = job(&name, &image, command);
            job["spec"]["template"]["spec"]["restartPolicy"] = restart.into();
            Ok(json!({
                "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name},
                "spec": {"schedule": schedule, "jobTemplate": {"metadata": {"name": name}, "spec": job["spec"]}},
                "status": {},
            }))
        }
        Generator::Ingress(args) => args.object(),
        Generator::Serviceaccount { name } => {
            Ok(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}))
        }
    }
}

fn deployment(args: DeploymentArgs) -> Result<Value> {
    if args.image.len() > 1 && !args.command.is_empty() {
        return fail("cannot specify multiple --image options and command");
    }
    let mut containers = Vec::new();
    for image in &args.image {
        let mut container = json!({"name": container_name(image), "image": image, "resources": {}});
        if !args.command.is_empty() {
            container["command"] = args.command.clone().into();
        }
        containers.push(container);
    }
    if let (Some(port), Some(first)) = (args.port, containers.first_mut()) {
        first["ports"] = json!([{"containerPort": port}]);
    }
    let labels = json!({"app": args.name});
    Ok(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": args.name, "labels": labels},
        "spec": {
            "replicas": args.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
        "status": {},
    }))
}

/// The last part of the image's name, without tag and digest, made a container's name.
pub fn container_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let bare = last.split(['@', ':']).next().unwrap_or(last);
    let name: String = bare
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    match name.trim_matches('-') {
        "" => "main".to_string(),
        name => name.chars().take(63).collect(),
    }
}

fn job(name: &str, image: &str, command: Vec<String>) -> Value {
    let mut container = json!({"name": name, "image": image, "resources": {}});
    if !command.is_empty() {
        container["command"] = command.into();
    }
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"metadata": {}, "spec": {"containers": [container], "restartPolicy": "Never"}}},
        "status": {},
    })
}

/// The Job that a CronJob would make, made by hand.
pub fn job_from(name: &str, cron: &Value) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let mut annotations = template["metadata"]["annotations"].clone();
    if !annotations.is_object() {
        annotations = json!({});
    }
    annotations["cronjob.kubernetes.io/instantiate"] = "manual".into();
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "annotations": annotations, "labels": template["metadata"]["labels"],
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "CronJob", "name": cron["metadata"]["name"],
                "uid": cron["metadata"]["uid"], "controller": true,
            }],
        },
        "spec": template["spec"], "status": {},
    })
}

fn secret(kind: SecretKind) -> Result<Value> {
    let object = |name: &str, data: Map<String, Value>| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data});
    match kind {
        SecretKind::Generic { name, data, kind } => {
            let mut secret = data.secret(&name)?;
            if let Some(kind) = kind {
                secret["type"] = kind.into();
            }
            Ok(secret)
        }
        SecretKind::Tls { name, cert, key } => {
            let read = |file: &str| {
                std::fs::read(file).map_err(|error| Failure::Text(super::output::go_io_error(file, &error)))
            };
            let data = Map::from_iter([
                ("tls.crt".to_string(), secret_value(&read(&cert)?)),
                ("tls.key".to_string(), secret_value(&read(&key)?)),
            ]);
            let mut secret = object(&name, data);
            secret["type"] = "kubernetes.io/tls".into();
            Ok(secret)
        }
        SecretKind::DockerRegistry { name, docker_server, docker_username, docker_password, docker_email } => {
            let auth = secret_value(format!("{docker_username}:{docker_password}").as_bytes());
            let mut entry = json!({"username": docker_username, "password": docker_password, "auth": auth});
            if let Some(email) = docker_email {
                entry["email"] = email.into();
            }
            let config = json!({"auths": {docker_server: entry}}).to_string();
            let data = Map::from_iter([(".dockerconfigjson".to_string(), secret_value(config.as_bytes()))]);
            let mut secret = object(&name, data);
            secret["type"] = "kubernetes.io/dockerconfigjson".into();
            Ok(secret)
        }
    }
}

fn service(kind: ServiceKind) -> Result<Value> {
    let (name, tcp, kind_name) = match &kind {
        ServiceKind::Clusterip { name, tcp, .. } => (name, tcp, "ClusterIP"),
        ServiceKind::Nodeport { name, tcp, .. } => (name, tcp, "NodePort"),
        ServiceKind::Loadbalancer { name, tcp } => (name, tcp, "LoadBalancer"),
        ServiceKind::Externalname { name, tcp, .. } => (name, tcp, "ExternalName"),
    };
    let mut spec = json!({"selector": {"app": name}, "type": kind_name});
    let mut ports = tcp.iter().map(|text| service_port(text)).collect::<Result<Vec<_>>>()?;
    let mut needs_ports = true;
    match &kind {
        ServiceKind::Clusterip { clusterip: Some(address), .. } => {
            spec["clusterIP"] = address.clone().into();
            needs_ports = address != "None";
        }
        ServiceKind::Nodeport { node_port: Some(port), .. } => {
            if let Some(first) = ports.first_mut() {
                first["nodePort"] = (*port).into();
            }
        }
        ServiceKind::Externalname { external_name, .. } => {
            spec["externalName"] = external_name.clone().into();
            needs_ports = false;
        }
        _ => {}
    }
    if ports.is_empty() && needs_ports {
        return fail("at least one tcp port specifier must be provided");
    }
    if !ports.is_empty() {
        spec["ports"] = ports.into();
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec, "status": {"loadBalancer": {}},
    }))
}

/// `80` or `80:8080` or `80:http`.
fn service_port(text: &str) -> Result<Value> {
    let (port, target) = text.split_once(':').unwrap_or((text, text));
    let number: u16 =
        port.parse().map_err(|_| Failure::Text(format!("invalid port {port:?}: must be in range of 1 to 65535")))?;
    let target_port = target.parse::<u16>().map_or_else(|_| Value::from(target), Value::from);
    let name = text.replace(':', "-");
    Ok(json!({"name": name, "port": number, "protocol": "TCP", "targetPort": target_port}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names() {
        for (image, name) in [
            ("nginx", "nginx"),
            ("registry:5000/a/My_App:1.2", "my-app"),
            ("a/b@sha256:abc", "b"),
            ("file:///x/hello.wasm", "hello-wasm"),
        ] {
            assert_eq!(container_name(image), name);
        }
    }

    #[test]
    fn ports() {
        assert_eq!(service_port("80:http").unwrap()["targetPort"], "http");
        assert_eq!(service_port("90").unwrap(), json!({"name": "90", "port": 90, "protocol": "TCP", "targetPort": 90}));
        assert!(service_port("x").is_err());
        assert!(service(ServiceKind::Clusterip { name: "a".into(), tcp: vec![], clusterip: None }).is_err());
    }
}
