//! A pod's spec with all its containers in one shape, the ephemeral ones too.
//!
//! Ephemeral containers are another type in the API, though every one of their fields is a container's.

use super::state::Slot;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};
use std::ops::Deref;

/// A pod's spec.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blueprint {
    spec: PodSpec,
    ephemeral: Vec<Container>,
}

impl Deref for Blueprint {
    type Target = PodSpec;

    fn deref(&self) -> &PodSpec {
        &self.spec
    }
}

impl Blueprint {
    /// Takes a spec as it is.
    pub fn new(spec: PodSpec) -> Self {
        let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(as_container).collect();
        Self { spec, ephemeral }
    }

    /// `spec.initContainers`, empty where there are none.
    pub fn init(&self) -> &[Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    /// `spec.ephemeralContainers`.
    pub fn ephemeral(&self) -> &[Container] {
        &self.ephemeral
    }

    /// One container.
    pub fn container(&self, slot: Slot) -> Option<&Container> {
        match slot {
            Slot::Init(i) => self.init().get(i),
            Slot::Main(i) => self.spec.containers.get(i),
            Slot::Ephemeral(i) => self.ephemeral.get(i),
        }
    }

    /// All containers in the order of their start.
    pub fn slots(&self) -> impl DoubleEndedIterator<Item = (Slot, &Container)> {
        let init = self.init().iter().enumerate().map(|(i, c)| (Slot::Init(i), c));
        let main = self.spec.containers.iter().enumerate().map(|(i, c)| (Slot::Main(i), c));
        let ephemeral = self.ephemeral.iter().enumerate().map(|(i, c)| (Slot::Ephemeral(i), c));
        init.chain(main).chain(ephemeral)
    }

    /// The container whose processes an ephemeral one wants to see.
    pub fn target(&self, slot: Slot) -> Option<&str> {
        let Slot::Ephemeral(i) = slot else { return None };
        let ephemeral = self.spec.ephemeral_containers.as_deref()?.get(i)?;
        ephemeral.target_container_name.as_deref().filter(|name| !name.is_empty())
    }
}

fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    // both are JSON objects with the same fields; targetContainerName is dropped on the way
    serde_json::from_value(serde_json::to_value(ephemeral).ok()?).ok()
}
