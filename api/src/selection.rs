//! Which objects of a resource a list or watch is about: namespace, label selector, field selector.

use crate::front::Call;
use crate::status::Status;
use manifests::selector::{FieldSelector, LabelSelector};
use state::{Key, Object};

/// The filter of one list or watch.
pub struct Selection {
    resource: manifests::Resource,
    namespace: Option<String>,
    name: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// As the call's path and options say.
    ///
    /// # Errors
    /// 400 for a selector that does not parse or names a field that the kind cannot be selected by.
    pub fn of(call: &Call) -> Result<Self, Status> {
        let labels = LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default())
            .map_err(|error| Status::bad_request(format!("unable to parse requirement: {error}")))?;
        let fields = FieldSelector::parse(call.kind, call.query.get("fieldSelector").unwrap_or_default())
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            resource: call.resource(),
            namespace: some(&call.at.namespace),
            name: some(&call.at.name),
            labels,
            fields,
        })
    }

    /// The namespace it is limited to.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether everything of the resource and namespace is in it.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    /// Whether a key is one of the resource and namespace.
    pub fn covers(&self, key: &Key) -> bool {
        key.resource == self.resource
            && self.namespace.as_deref().is_none_or(|namespace| namespace == &*key.namespace)
            && self.name.as_deref().is_none_or(|name| name == &*key.name)
    }

    /// Whether an object of the resource and namespace passes the selectors.
    pub fn takes(&self, object: &Object) -> bool {
        self.labels.matches(&object.meta().labels)
            && self.name.as_deref().is_none_or(|name| name == object.meta().name)
            && (self.fields.is_empty() || self.fields.matches(&object.value()))
    }
}
