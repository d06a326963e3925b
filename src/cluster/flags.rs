//! The flags of `server`, `agent` and `up`. Names are k3s' where k3s has the thing.

use agent::Cidr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// Flags of whatever runs a node.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeFlags {
    /// Name of this node [default: the host's name]
    #[arg(long, env = "CORACLE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address under which this node is known [default: the one of the default route; of an agent, of the route to its
    /// server]
    #[arg(short = 'i', long, env = "CORACLE_NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Register the node with a label, key=value
    #[arg(long, env = "CORACLE_NODE_LABEL", value_delimiter = ',', value_name = "LABEL", action = clap::ArgAction::Append)]
    pub node_label: Vec<String>,
    /// Register the node with a taint, key=value:effect
    #[arg(long, env = "CORACLE_NODE_TAINT", value_delimiter = ',', value_name = "TAINT", action = clap::ArgAction::Append)]
    pub node_taint: Vec<String>,
    /// Port of plain-text ingress traffic [default: 80, or 8080 without the privilege]
    #[arg(long, env = "CORACLE_INGRESS_HTTP_PORT", value_name = "PORT")]
    pub ingress_http_port: Option<u16>,
    /// Port of TLS ingress traffic [default: 443, or 8443 without the privilege]
    #[arg(long, env = "CORACLE_INGRESS_HTTPS_PORT", value_name = "PORT")]
    pub ingress_https_port: Option<u16>,
    /// File that names the resolvers of names outside the cluster
    #[arg(long, env = "CORACLE_RESOLV_CONF", default_value = agent::RESOLV_CONF, value_name = "FILE")]
    pub resolv_conf: PathBuf,
    /// Offer components of WASI preview 3, which is experimental, to pods that ask for it by annotation
    #[arg(long, env = "CORACLE_WASI_P3")]
    pub wasi_p3: bool,
}

/// Flags of `coracle agent`.
#[derive(Debug, Clone, clap::Args)]
#[command(args_override_self = true)]
pub struct AgentFlags {
    /// YAML file with the same keys as these flags
    #[arg(short = 'c', long, env = "CORACLE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Server to connect to, https://HOST:6443
    #[arg(short = 's', long, env = "CORACLE_URL", value_name = "URL")]
    pub server: Option<String>,
    /// Token to use for authentication, for the first time
    #[arg(short = 't', long, env = "CORACLE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File that holds the token
    #[arg(long, env = "CORACLE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Folder to hold state [default: /var/lib/coracle, or $XDG_DATA_HOME/coracle when not root]
    #[arg(short = 'd', long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub node: NodeFlags,
}

/// Flags of `coracle server`.
#[derive(Debug, Clone, clap::Args)]
#[command(args_override_self = true)]
pub struct ServerFlags {
    /// YAML file with the same keys as these flags
    #[arg(short = 'c', long, env = "CORACLE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder to hold state [default: /var/lib/coracle, or $XDG_DATA_HOME/coracle when not root]
    #[arg(short = 'd', long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address that the API listens on
    #[arg(long, env = "CORACLE_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Port that the API listens on; 0 takes a free one
    #[arg(long, env = "CORACLE_HTTPS_LISTEN_PORT", default_value_t = 6443, value_name = "PORT")]
    pub https_listen_port: u16,
    /// Write the administrator's kubeconfig here [default: /etc/coracle/coracle.yaml, or beside the state when not root]
    #[arg(short = 'o', long, env = "CORACLE_KUBECONFIG_OUTPUT", value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
    /// Shared secret used to join a server or agent to a cluster
    #[arg(short = 't', long, env = "CORACLE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Add host names or addresses to the API's certificate
    #[arg(long, env = "CORACLE_TLS_SAN", value_delimiter = ',', value_name = "NAME", action = clap::ArgAction::Append)]
    pub tls_san: Vec<String>,
    /// IPv4 network of pods; inside 127.0.0.0/8 no privilege is used
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    pub cluster_cidr: Option<Cidr>,
    /// Prefix length of each node's part of the network of pods [default: 24, or 4 more than the network's own when that is
    /// longer than 22]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE_IPV4", value_name = "BITS")]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// IPv4 network of services
    #[arg(long, env = "CORACLE_SERVICE_CIDR", value_name = "CIDR")]
    pub service_cidr: Option<Cidr>,
    /// Address of the cluster's DNS [default: the tenth of the service network]
    #[arg(long, env = "CORACLE_CLUSTER_DNS", value_name = "IP")]
    pub cluster_dns: Option<Ipv4Addr>,
    /// Domain of the cluster's names
    #[arg(long, env = "CORACLE_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
    /// etcd endpoints instead of the embedded store (not available in this version)
    #[arg(long, env = "CORACLE_DATASTORE_ENDPOINT", value_name = "URL")]
    pub datastore_endpoint: Option<String>,
    /// CSV file of bearer tokens: token,user,uid,"group1,group2"
    #[arg(long, env = "CORACLE_TOKEN_AUTH_FILE", value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// PEM file of a further authority for client certificates
    #[arg(long, env = "CORACLE_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    #[command(flatten)]
    pub node: NodeFlags,
    /// Run the master alone, without a node in this process
    #[arg(long, env = "CORACLE_DISABLE_AGENT")]
    pub disable_agent: bool,
}

/// Flags of `coracle up`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpFlags {
    /// Files or folders of manifests to apply
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    pub filename: Vec<String>,
    /// Give the workloads this many seconds to become ready
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout_seconds: u64,
    /// Port that the API listens on; 0 takes a free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub https_listen_port: u16,
    /// Port of plain-text ingress traffic [default: 8080, or a free one]
    #[arg(long, value_name = "PORT")]
    pub ingress_http_port: Option<u16>,
    /// Port of TLS ingress traffic [default: 8443, or a free one]
    #[arg(long, value_name = "PORT")]
    pub ingress_https_port: Option<u16>,
    /// Offer components of WASI preview 3, which is experimental, to pods that ask for it by annotation
    #[arg(long)]
    pub wasi_p3: bool,
}
