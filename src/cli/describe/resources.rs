//! Sums of quantities over a pod's containers, for a Node's page.

use std::ops::Add;

use serde_json::Value;

use super::page::{each, scalar};

/// A quantity in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

impl Add for Amount {
    type Output = Amount;
    fn add(self, other: Amount) -> Amount {
        Amount(self.0.saturating_add(other.0))
    }
}

impl Amount {
    /// Reads a Kubernetes quantity; what is none counts as nothing.
    pub fn parse(text: &str) -> Amount {
        let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_string());
        Amount(manifests::quantity::milli(&quantity).unwrap_or(0))
    }

    /// As kubectl writes sums: `100m`, `2`, `64Mi`.
    pub fn show(self, name: &str) -> String {
        let (whole, rest) = (self.0 / 1000, self.0 % 1000);
        if name == "cpu" {
            return if rest == 0 { whole.to_string() } else { format!("{}m", self.0) };
        }
        for (unit, shift) in [("Gi", 30u32), ("Mi", 20), ("Ki", 10)] {
            if whole != 0 && whole % (1i128 << shift) == 0 {
                return format!("{}{unit}", whole >> shift);
            }
        }
        whole.to_string()
    }

    /// The share of a whole, rounded down; 0 of nothing.
    pub fn percent_of(self, whole: Amount) -> i128 {
        if whole.0 == 0 { 0 } else { self.0.saturating_mul(100) / whole.0 }
    }
}

/// What a pod asks for: its containers together, or its largest init container if that is more.
pub fn of_pod(pod: &Value, which: &str, name: &str) -> Amount {
    let amount = |container: &Value| Amount::parse(&scalar(&container["resources"][which][name]));
    let together = each(&pod["spec"]["containers"]).map(amount).fold(Amount::default(), Add::add);
    let largest = each(&pod["spec"]["initContainers"]).map(amount).max().unwrap_or_default();
    together.max(largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sums() {
        let container = |cpu: &str, memory: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": memory}}});
        let pod = json!({"spec": {"containers": [container("100m", "64Mi"), container("1", "64Mi")], "initContainers": [container("50m", "1Gi")]}});
        assert_eq!(of_pod(&pod, "requests", "cpu").show("cpu"), "1100m");
        assert_eq!(of_pod(&pod, "requests", "memory").show("memory"), "1Gi");
        assert_eq!(of_pod(&pod, "limits", "cpu").show("cpu"), "0");
        assert_eq!(Amount::parse("500m").percent_of(Amount::parse("2")), 25);
    }
}
