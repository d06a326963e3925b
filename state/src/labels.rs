//! Does a label selector choose an object? Kubernetes' LabelSelector on labels.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

/// Whether a selector chooses these labels. The empty selector chooses everything; an operator we do not know, nothing.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    let holds = |key: &str, operator: &str, values: Option<&Vec<String>>| {
        let own = labels.get(key);
        let among = |own: &String| values.is_some_and(|values| values.contains(own));
        match operator {
            "In" => own.is_some_and(among),
            "NotIn" => !own.is_some_and(among),
            "Exists" => own.is_some(),
            "DoesNotExist" => own.is_none(),
            _ => false,
        }
    };
    selector.match_labels.iter().flatten().all(equal)
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|term| holds(&term.key, &term.operator, term.values.as_ref()))
}
