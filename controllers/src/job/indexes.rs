//! The indexes of an indexed Job, in Kubernetes' compact notation: `0,3-5,7`.

use super::INDEX;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt;

/// Most indexes a notation may name; Kubernetes allows a Job 100,000 completions.
const INDEXES_MAX: u32 = 100_000;

/// A set of indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(BTreeSet<u32>);

impl Indexes {
    /// The set of a notation; what does not read as part of it is left out.
    pub(super) fn parse(text: &str) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?.min(INDEXES_MAX))
        };
        Self(text.split(',').filter_map(range).flatten().collect())
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.0.contains(&index)
    }

    pub(super) fn insert(&mut self, index: u32) -> bool {
        self.0.insert(index)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<u32> for Indexes {
    fn from_iter<I: IntoIterator<Item = u32>>(indexes: I) -> Self {
        Self(indexes.into_iter().collect())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for index in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *index => *last = *index,
                _ => runs.push((*index, *index)),
            }
        }
        for (number, (first, last)) in runs.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// Makes a template that of one index: annotation, label, `JOB_COMPLETION_INDEX` in every container, host name.
pub(super) fn mark(template: &mut Value, job: &str, index: u32) {
    let text = index.to_string();
    for field in ["annotations", "labels"] {
        let own = &mut template["metadata"][field];
        if !own.is_object() {
            *own = json!({});
        }
        own[INDEX] = text.as_str().into();
    }
    let spec = &mut template["spec"];
    if spec["hostname"].is_null() {
        spec["hostname"] = format!("{job}-{index}").into();
    }
    let variable = json!({
        "name": "JOB_COMPLETION_INDEX",
        "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": format!("metadata.annotations['{INDEX}']")}},
    });
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            match &mut container["env"] {
                Value::Array(env) if env.iter().any(|own| own["name"] == variable["name"]) => {}
                Value::Array(env) => env.push(variable.clone()),
                other => *other = json!([variable]),
            }
        }
    }
    // assigning through an index made null fields of what the template does not have
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notation_goes_both_ways() {
        for text in ["", "0", "0,1", "0,3-5,7", "1-100"] {
            assert_eq!(Indexes::parse(text).to_string(), text);
        }
        assert_eq!(Indexes::parse("x,4-2,6").to_string(), "6");
    }
}
