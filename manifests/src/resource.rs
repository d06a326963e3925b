//! The address of a kind in the API: its group and its plural, as in a URL.

use std::borrow::Cow;
use std::fmt;

/// A Kubernetes `GroupResource`: the API group (empty for the core group) and the lower-case plural of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: Cow<'static, str>,
    /// Lower-case plural, as in a URL: `pods`.
    pub plural: Cow<'static, str>,
}

impl Resource {
    /// The resource of a built-in kind's Rust type.
    pub const fn of<T: k8s_openapi::Resource>() -> Self {
        Self { group: Cow::Borrowed(T::GROUP), plural: Cow::Borrowed(T::URL_PATH_SEGMENT) }
    }

    /// A resource known only at run time.
    pub fn new(group: impl Into<String>, plural: impl Into<String>) -> Self {
        Self { group: Cow::Owned(group.into()), plural: Cow::Owned(plural.into()) }
    }
}

impl fmt::Display for Resource {
    /// `pods`, or `deployments.apps`: the form that kubectl and error texts use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.plural) } else { write!(f, "{}.{}", self.plural, self.group) }
    }
}
