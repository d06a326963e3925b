//! The node's bridge network: one per owner, with the node's part of the pod addresses.

use std::collections::HashMap;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect};

use super::error::{DockerError, engine, found, refused};
use super::{Docker, LABEL_OWNER};

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

impl Docker {
    /// The network's name.
    pub(super) fn network_name(&self) -> String {
        format!("coracle-{}", self.0.config.owner)
    }

    /// Makes what sandboxes need, the network and their image, where it is not there. `again`: also look whether what
    /// was there still is.
    pub(super) async fn prepare(&self, again: bool) -> Result<(), DockerError> {
        let mut prepared = self.0.prepared.lock().await;
        if *prepared && !again {
            return Ok(());
        }
        *prepared = false;
        self.ensure_pause_image().await?;
        self.ensure_network().await?;
        *prepared = true;
        Ok(())
    }

    async fn ensure_network(&self) -> Result<(), DockerError> {
        let client = self.0.connection.client()?;
        let network = self.network_name();
        let failed = |detail| DockerError::Network { network: network.clone(), detail };
        let existing = found(client.inspect_network(&network, None).await).map_err(engine("inspect a network"))?;
        if let Some(existing) = existing {
            if self.fits(&existing) {
                return Ok(());
            }
            let attached = existing.containers.unwrap_or_default().len();
            if attached > 0 {
                let (wanted, config) = (&self.0.config.subnet, subnet(existing.ipam.as_ref()));
                return Err(failed(format!(
                    "it is there with subnet {config} instead of {wanted} and has {attached} pods"
                )));
            }
            client.remove_network(&network).await.map_err(refused(failed))?;
        }
        client.create_network(self.network()).await.map_err(refused(failed))?;
        Ok(())
    }

    fn network(&self) -> NetworkCreateRequest {
        let config = &self.0.config;
        let ipam = IpamConfig {
            subnet: Some(config.subnet.clone()),
            gateway: Some(config.gateway.to_string()),
            ..Default::default()
        };
        NetworkCreateRequest {
            name: self.network_name(),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam { config: Some(vec![ipam]), ..Default::default() }),
            options: Some(HashMap::from([(BRIDGE_NAME.to_owned(), config.bridge.clone())])),
            labels: Some(HashMap::from([(LABEL_OWNER.to_owned(), config.owner.clone())])),
            ..Default::default()
        }
    }

    fn fits(&self, network: &NetworkInspect) -> bool {
        let config = &self.0.config;
        let ours = network.ipam.as_ref().and_then(|ipam| ipam.config.as_ref()).is_some_and(|ranges| {
            matches!(ranges.as_slice(), [range] if range.subnet.as_deref() == Some(&config.subnet)
                && range.gateway.as_deref() == Some(&config.gateway.to_string()))
        });
        let bridge = network.options.as_ref().and_then(|options| options.get(BRIDGE_NAME));
        ours && network.driver.as_deref() == Some("bridge") && bridge == Some(&config.bridge)
    }
}

fn subnet(ipam: Option<&Ipam>) -> String {
    let ranges = ipam.and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    let subnets: Vec<&str> = ranges.iter().filter_map(|range| range.subnet.as_deref()).collect();
    subnets.join(", ")
}
