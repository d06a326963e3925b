//! Which Ingress rule a request meets. Hosts: exact before wildcard before none; paths: the exact one, then the longest prefix,
//! element by element; then default backends. The first of two equal rules wins.

use std::collections::HashMap;
use std::sync::Arc;

use crate::balance::Port;
use crate::routes::{Backend, BackendPort, IngressRoute, PathKind};

/// A rule's backend; None: there is no such Service or port.
pub(crate) type Target = Option<Arc<Port>>;

/// All rules.
#[derive(Default)]
pub(crate) struct Matcher {
    exact: HashMap<String, Paths>,
    /// By what follows the `*`.
    wildcard: HashMap<String, Paths>,
    any: Paths,
    default: Option<Target>,
}

/// Rules of one host.
#[derive(Default)]
struct Paths {
    exact: HashMap<String, Target>,
    /// Without the trailing slash, longest first.
    prefix: Vec<(String, Target)>,
    default: Option<Target>,
}

impl Matcher {
    pub(crate) fn build(
        ingresses: &[IngressRoute],
        resolve: impl Fn(&str, &str, &BackendPort) -> Option<Arc<Port>>,
    ) -> Self {
        let mut matcher = Self::default();
        for ingress in ingresses {
            let target = |backend: &Backend| resolve(&ingress.namespace, &backend.service, &backend.port);
            for rule in &ingress.rules {
                matcher.host(rule.host.as_deref()).add(&rule.path, rule.kind, target(&rule.backend));
            }
            let Some(default) = &ingress.default_backend else { continue };
            for host in ingress.rules.iter().filter_map(|rule| rule.host.as_deref()) {
                matcher.host(Some(host)).default.get_or_insert_with(|| target(default));
            }
            if ingress.rules.iter().all(|rule| rule.host.is_none()) {
                matcher.default.get_or_insert_with(|| target(default));
            }
        }
        let hosts = matcher.exact.values_mut().chain(matcher.wildcard.values_mut()).chain([&mut matcher.any]);
        hosts.for_each(|paths| paths.prefix.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len())));
        matcher
    }

    fn host(&mut self, host: Option<&str>) -> &mut Paths {
        let host = host.unwrap_or_default().to_ascii_lowercase();
        match host.strip_prefix('*') {
            _ if host.is_empty() => &mut self.any,
            Some(suffix) => self.wildcard.entry(suffix.to_owned()).or_default(),
            None => self.exact.entry(host).or_default(),
        }
    }

    /// The backend for a host (without port) and path. None: no rule and no default.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&Target> {
        let lower;
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            &lower
        } else {
            host
        };
        // A wildcard stands for exactly one label.
        let suffix = host.find('.').filter(|dot| *dot > 0).map(|dot| &host[dot..]);
        self.exact
            .get(host)
            .and_then(|paths| paths.find(path))
            .or_else(|| self.wildcard.get(suffix?)?.find(path))
            .or_else(|| self.any.find(path))
            .or(self.default.as_ref())
    }
}

impl Paths {
    fn add(&mut self, path: &str, kind: PathKind, target: Target) {
        if kind == PathKind::Exact {
            self.exact.entry(path.to_owned()).or_insert(target);
            return;
        }
        let prefix = path.trim_end_matches('/');
        if !self.prefix.iter().any(|(other, _)| other == prefix) {
            self.prefix.push((prefix.to_owned(), target));
        }
    }

    fn find(&self, path: &str) -> Option<&Target> {
        let by_prefix = || {
            self.prefix.iter().find_map(|(prefix, target)| {
                let rest = path.strip_prefix(prefix.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then_some(target)
            })
        };
        self.exact.get(path).or_else(by_prefix).or(self.default.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Backends;
    use crate::routes::IngressRule;

    fn rule(line: &str) -> IngressRule {
        let mut words = line.split_whitespace();
        let (host, path, kind) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        IngressRule {
            host: (host != "-").then(|| host.to_owned()),
            path: path.to_owned(),
            kind: match kind {
                "exact" => PathKind::Exact,
                "prefix" => PathKind::Prefix,
                _ => PathKind::ImplementationSpecific,
            },
            backend: Backend { service: words.next().unwrap().to_owned(), port: BackendPort::Number(80) },
        }
    }

    fn port(name: &str) -> Arc<Port> {
        Port::new(name.to_owned(), Backends::default(), 1)
    }

    #[test]
    fn rules_meet_requests_as_kubernetes_documents() {
        let rules = "
            foo.com     /           prefix  root
            foo.com     /aaa        prefix  aaa
            foo.com     /aaa/bbb    prefix  bbb
            foo.com     /aaa/ccc    exact   ccc
            foo.com     /slash/     prefix  slash
            foo.com     /both       prefix  by-prefix
            foo.com     /both       exact   by-exact
            *.foo.com   /           prefix  wild
            a.foo.com   /only       exact   exact-host
            -           /anyhost    prefix  any
            Upper.org   /           impl    upper
            gone.org    /           prefix  missing";
        let rules = rules.lines().filter(|line| !line.trim().is_empty()).map(rule).collect();
        let ingress = IngressRoute { rules, ..IngressRoute::default() };
        let fallback = IngressRoute {
            default_backend: Some(Backend { service: "default".into(), port: BackendPort::Number(80) }),
            ..IngressRoute::default()
        };
        let matcher = Matcher::build(&[ingress, fallback], |_, name, _| (name != "missing").then(|| port(name)));
        for (url, expected) in [
            ("foo.com /", "root"),
            ("foo.com /zzz", "root"),
            ("FOO.com /aaa", "aaa"),
            ("foo.com /aaa/", "aaa"),
            ("foo.com /aaabbb", "root"),
            ("foo.com /aaa/bbb/x", "bbb"),
            ("foo.com /aaa/ccc", "ccc"),
            ("foo.com /aaa/ccc/", "aaa"),
            ("foo.com /slash", "slash"),
            ("foo.com /slash/x", "slash"),
            ("foo.com /both", "by-exact"),
            ("foo.com /both/x", "by-prefix"),
            ("bar.foo.com /x", "wild"),
            ("a.foo.com /only", "exact-host"),
            ("a.foo.com /other", "wild"),
            ("b.a.foo.com /x", "default"),
            (".foo.com /x", "default"),
            ("other.org /anyhost/x", "any"),
            ("other.org /else", "default"),
            ("upper.ORG /x", "upper"),
            ("gone.org /", "none"),
        ] {
            let (host, path) = url.split_once(' ').unwrap();
            let found =
                matcher.find(host, path).map(|target| target.as_ref().map_or("none", |port| port.name.as_str()));
            assert_eq!(found, Some(expected), "{url}");
        }
    }
}
