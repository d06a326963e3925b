//! What the server serves, and which of it a word on the command line means (`po`, `deployments.apps`, `Deployment`, `all`).

use serde_json::Value;

use super::client::Client;
use super::failure::{Failure, Result, fail};

/// `Accept` for all groups in one answer; older servers answer with the plain lists instead.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// One resource as discovery describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind of the objects.
    pub kind: String,
    /// The name in paths, such as `pods`.
    pub plural: String,
    /// The singular word; may be empty.
    pub singular: String,
    /// Abbreviations.
    pub short_names: Vec<String>,
    /// Groups of resources it belongs to, such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What one may do.
    pub verbs: Vec<String>,
    /// Names of its subresources.
    pub subresources: Vec<String>,
}

impl Resource {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, or `pods` for the core group.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `deployment.apps`, or `pod` for the core group: the first part of the names that verbs print.
    pub fn kind_word(&self) -> String {
        let kind = self.kind.to_lowercase();
        if self.group.is_empty() { kind } else { format!("{kind}.{}", self.group) }
    }

    /// `deployment.apps/web`.
    pub fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.kind_word())
    }

    /// The path of the collection, in a namespace if one is given and the resource has namespaces.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api".to_string() } else { format!("/apis/{}", self.group) };
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{root}/{}/namespaces/{}/{}", self.version, super::client::escape(namespace), self.plural)
            }
            _ => format!("{root}/{}/{}", self.version, self.plural),
        }
    }

    /// The path of one object.
    pub fn path(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}/{}", self.collection(namespace), super::client::escape(name))
    }

    /// Whether the server says it can do this to the resource.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// All resources of a server, in its order of preference.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// Resources of all served versions; the preferred version of a group comes first.
    pub resources: Vec<Resource>,
    /// Served group versions, core first.
    pub group_versions: Vec<String>,
    /// The preferred version of each group.
    preferred: Vec<(String, String)>,
}

impl Discovery {
    /// Asks the server.
    pub async fn load(client: &Client) -> Result<Discovery> {
        let mut discovery = Discovery::default();
        for root in ["/api", "/apis"] {
            let answer = client.get_as(root, AGGREGATED).await?;
            match answer["kind"].as_str() {
                Some("APIGroupDiscoveryList") => discovery.add_aggregated(&answer),
                _ => discovery.add_plain(client, root, &answer).await?,
            }
        }
        Ok(discovery)
    }

    fn add_aggregated(&mut self, list: &Value) {
        for group in elements(&list["items"]) {
            let name = text(&group["metadata"]["name"]);
            for (at, version) in elements(&group["versions"]).enumerate() {
                let version_name = text(&version["version"]);
                if at == 0 {
                    self.preferred.push((name.clone(), version_name.clone()));
                }
                self.group_versions.push(group_version(&name, &version_name));
                for resource in elements(&version["resources"]) {
                    self.resources.push(Resource {
                        group: name.clone(),
                        version: version_name.clone(),
                        kind: text(&resource["responseKind"]["kind"]),
                        plural: text(&resource["resource"]),
                        singular: text(&resource["singularResource"]),
                        short_names: texts(&resource["shortNames"]),
                        categories: texts(&resource["categories"]),
                        namespaced: resource["scope"] == "Namespaced",
                        verbs: texts(&resource["verbs"]),
                        subresources: elements(&resource["subresources"])
                            .map(|sub| text(&sub["subresource"]))
                            .collect(),
                    });
                }
            }
        }
    }

    async fn add_plain(&mut self, client: &Client, root: &str, answer: &Value) -> Result<()> {
        let mut group_versions = Vec::new();
        for (at, version) in elements(&answer["versions"]).enumerate() {
            if at == 0 {
                self.preferred.push((String::new(), text(version)));
            }
            group_versions.push((String::new(), text(version)));
        }
        for group in elements(&answer["groups"]) {
            let name = text(&group["name"]);
            let preferred = text(&group["preferredVersion"]["version"]);
            let mut versions: Vec<String> = elements(&group["versions"]).map(|v| text(&v["version"])).collect();
            versions.sort_by_key(|version| *version != preferred);
            self.preferred.push((name.clone(), preferred));
            group_versions.extend(versions.into_iter().map(|version| (name.clone(), version)));
        }
        for (group, version) in group_versions {
            let path = format!("{root}/{}", group_version(&group, &version));
            let list = client.get(&path).await?;
            self.group_versions.push(group_version(&group, &version));
            self.add_plain_version(&group, &version, &list);
        }
        Ok(())
    }

    fn add_plain_version(&mut self, group: &str, version: &str, list: &Value) {
        let first = self.resources.len();
        for resource in elements(&list["resources"]) {
            let name = text(&resource["name"]);
            if let Some((owner, sub)) = name.split_once('/') {
                if let Some(owner) = self.resources[first..].iter_mut().find(|known| known.plural == owner) {
                    owner.subresources.push(sub.to_string());
                }
                continue;
            }
            self.resources.push(Resource {
                group: group.to_string(),
                version: version.to_string(),
                kind: text(&resource["kind"]),
                plural: name,
                singular: text(&resource["singularName"]),
                short_names: texts(&resource["shortNames"]),
                categories: texts(&resource["categories"]),
                namespaced: resource["namespaced"] == true,
                verbs: texts(&resource["verbs"]),
                subresources: Vec::new(),
            });
        }
    }

    /// The resources that people mean by default: those of each group's preferred version.
    pub fn preferred(&self) -> impl Iterator<Item = &Resource> + Clone {
        self.resources.iter().filter(|resource| {
            self.preferred.iter().any(|(group, version)| *group == resource.group && *version == resource.version)
        })
    }

    /// The resource that a word means.
    pub fn find(&self, word: &str) -> Option<&Resource> {
        let word = word.to_lowercase();
        let (name, qualifier) = match word.split_once('.') {
            Some((name, qualifier)) => (name, Some(qualifier)),
            None => (word.as_str(), None),
        };
        match qualifier {
            None => pick(self.preferred(), name),
            Some(qualifier) => {
                // `deployments.v1.apps` names a version too; `certificates.v1.example.com` could be either: version first.
                let exact = qualifier.split_once('.').unwrap_or((qualifier, ""));
                let versioned = self.resources.iter().filter(|r| r.version == exact.0 && r.group == exact.1);
                pick(versioned, name)
                    .or_else(|| pick(self.preferred().filter(|r| r.group == qualifier), name))
                    // As kubectl, let a group be abbreviated: `deploy.app` means `deploy.apps`.
                    .or_else(|| pick(self.preferred().filter(|r| r.group.starts_with(qualifier)), name))
            }
        }
    }

    /// The resource that a word means, or kubectl's complaint.
    pub fn resolve(&self, word: &str) -> Result<&Resource> {
        self.find(word).ok_or_else(|| Failure::Text(format!("the server doesn't have a resource type {word:?}")))
    }

    /// The resources that a word means: several if it names a category such as `all`.
    pub fn resolve_many(&self, word: &str) -> Result<Vec<Resource>> {
        if let Some(resource) = self.find(word) {
            return Ok(vec![resource.clone()]);
        }
        let members: Vec<Resource> = self
            .preferred()
            .filter(|resource| resource.categories.iter().any(|category| category == word) && resource.can("list"))
            .cloned()
            .collect();
        if members.is_empty() { self.resolve(word).map(|resource| vec![resource.clone()]) } else { Ok(members) }
    }

    /// The resource of an object by its `apiVersion` and `kind`.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.resources.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// Like `by_kind`, with kubectl's complaint.
    pub fn of_object(&self, object: &Value) -> Result<&Resource> {
        let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        match self.by_kind(&api_version, &kind) {
            Some(resource) => Ok(resource),
            None => fail(format!("no matches for kind {kind:?} in version {api_version:?}")),
        }
    }
}

/// Exact names first, then abbreviations; the earliest wins.
fn pick<'a>(resources: impl Iterator<Item = &'a Resource> + Clone, name: &str) -> Option<&'a Resource> {
    let mut exact =
        resources.clone().filter(|r| r.plural == name || r.singular == name || r.kind.eq_ignore_ascii_case(name));
    let mut short = resources.filter(|r| r.short_names.iter().any(|short| short == name));
    exact.next().or_else(|| short.next())
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn texts(value: &Value) -> Vec<String> {
    elements(value).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn discovery() -> Discovery {
        let mut discovery = Discovery::default();
        let resource = |plural: &str, singular: &str, kind: &str, short: &[&str], categories: &[&str]| {
            json!({"resource": plural, "singularResource": singular, "responseKind": {"kind": kind}, "scope": "Namespaced",
                   "shortNames": short, "categories": categories, "verbs": ["list"]})
        };
        discovery.add_aggregated(&json!({"items": [
            {"metadata": {"name": ""}, "versions": [{"version": "v1", "resources": [
                resource("pods", "pod", "Pod", &["po"], &["all"]),
                resource("events", "event", "Event", &["ev"], &[]),
            ]}]},
            {"metadata": {"name": "apps"}, "versions": [
                {"version": "v1", "resources": [resource("deployments", "deployment", "Deployment", &["deploy"], &["all"])]},
                {"version": "v1beta1", "resources": [resource("deployments", "deployment", "Deployment", &["deploy"], &["all"])]},
            ]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [{"version": "v1", "resources": [
                resource("events", "event", "Event", &["ev"], &[]),
            ]}]},
        ]}));
        discovery
    }

    #[test]
    fn words() {
        let discovery = discovery();
        for (word, expected) in [
            ("po", "v1 pods"),
            ("Pod", "v1 pods"),
            ("ev", "v1 events"),
            ("events.events.k8s.io", "events.k8s.io/v1 events"),
            ("deployments.apps", "apps/v1 deployments"),
            ("deploy.v1beta1.apps", "apps/v1beta1 deployments"),
            ("Deployment.v1.apps", "apps/v1 deployments"),
            ("all", "v1 pods, apps/v1 deployments"),
            ("foo", "error: the server doesn't have a resource type \"foo\""),
        ] {
            let found = match discovery.resolve_many(word) {
                Ok(found) => {
                    let names: Vec<_> = found.iter().map(|r| format!("{} {}", r.api_version(), r.plural)).collect();
                    names.join(", ")
                }
                Err(failure) => failure.message(),
            };
            assert_eq!(found, expected, "{word}");
        }
    }
}
