//! What the binary tells a master.

use crate::ImageSource;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// Everything a master is told at its start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Directory of the master's files. Made when missing.
    pub data_dir: PathBuf,
    /// Address to listen on.
    pub bind_address: IpAddr,
    /// TCP port of the API, and UDP port of the nodes' links; 0 takes a free one.
    pub https_port: u16,
    /// Name of the machine, for the serving certificate.
    pub node_name: String,
    /// Address under which the API is known to pods and to other machines.
    pub node_ip: IpAddr,
    /// Further names of the serving certificate.
    pub tls_sans: Vec<String>,
    /// First address and prefix length of the pods' network.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// Prefix length of each node's part of it; a fitting one when absent.
    pub node_cidr_mask: Option<u8>,
    /// All addresses lie in 127.0.0.0/8: a cluster of this machine alone.
    pub loopback: bool,
    /// First address and prefix length of the range of Service addresses.
    pub service_cidr: (Ipv4Addr, u8),
    /// Address of the cluster's DNS.
    pub cluster_dns: Ipv4Addr,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The join token, or its secret alone; made when absent.
    pub token: Option<String>,
    /// kube-apiserver's static tokens: a CSV file.
    pub token_auth_file: Option<PathBuf>,
    /// PEM file of a further authority whose client certificates are trusted.
    pub client_ca_file: Option<PathBuf>,
    /// The images that are handed on to nodes.
    pub images: Option<Arc<dyn ImageSource>>,
}
