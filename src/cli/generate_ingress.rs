//! `create ingress`: rules like `foo.com/path*=svc:8080,tls=secret`.

use serde_json::{Value, json};

use super::failure::{Result, fail};

/// Flags of `create ingress`.
#[derive(Debug, clap::Args)]
pub struct IngressArgs {
    name: String,
    /// Ingress class to be used
    #[arg(long)]
    class: Option<String>,
    /// Rule in format host/path=service:port[,tls=secretname]; paths ending in '*' are prefixes
    #[arg(long)]
    rule: Vec<String>,
    /// Default service for backend, in format of svcname:port
    #[arg(long)]
    default_backend: Option<String>,
    /// Annotation to insert in the ingress object, in the format annotation=value
    #[arg(long)]
    annotation: Vec<String>,
}

impl IngressArgs {
    /// The Ingress.
    pub fn object(&self) -> Result<Value> {
        if self.rule.is_empty() && self.default_backend.is_none() {
            return fail(
                "not enough information provided: every ingress has to either specify a default-backend (which catches all traffic) or a list of rules (which catch specific paths)",
            );
        }
        let mut spec = json!({});
        if let Some(class) = &self.class {
            spec["ingressClassName"] = class.clone().into();
        }
        if let Some(text) = &self.default_backend {
            spec["defaultBackend"] = backend(text)?;
        }
        let mut rules: Vec<Value> = Vec::new();
        let mut tls: Vec<Value> = Vec::new();
        for text in &self.rule {
            add_rule(text, &mut rules, &mut tls)?;
        }
        if !rules.is_empty() {
            spec["rules"] = rules.into();
        }
        if !tls.is_empty() {
            spec["tls"] = tls.into();
        }
        let mut metadata = json!({"name": self.name});
        for text in &self.annotation {
            let Some((key, value)) = text.split_once('=') else {
                return fail(format!("annotation {text} is invalid and should be in format key=value"));
            };
            metadata["annotations"][key] = value.into();
        }
        Ok(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec,
            "status": {"loadBalancer": {}},
        }))
    }
}

fn add_rule(text: &str, rules: &mut Vec<Value>, tls: &mut Vec<Value>) -> Result<()> {
    let (route, options) = text.split_once(',').map_or((text, None), |(route, options)| (route, Some(options)));
    let Some((location, service)) = route.split_once('=') else {
        return fail(format!(
            "rule {text} is invalid and should be in format host/path=svcname:svcport[,tls[=secret]]"
        ));
    };
    let Some((host, path)) = location.split_once('/') else {
        return fail(format!(
            "rule {text} is invalid and should be in format host/path=svcname:svcport[,tls[=secret]]"
        ));
    };
    let (path, path_type) = match path.strip_suffix('*') {
        Some(prefix) => (prefix, "Prefix"),
        None => (path, "Exact"),
    };
    let entry = json!({"path": format!("/{path}"), "pathType": path_type, "backend": backend(service)?});
    let same_host = rules.iter_mut().find(|rule| rule["host"].as_str().unwrap_or_default() == host);
    match same_host.and_then(|rule| rule["http"]["paths"].as_array_mut()) {
        Some(paths) => paths.push(entry),
        None if host.is_empty() => rules.push(json!({"http": {"paths": [entry]}})),
        None => rules.push(json!({"host": host, "http": {"paths": [entry]}})),
    }
    match options.map(|options| options.split_once('=').unwrap_or((options, ""))) {
        None => {}
        Some(("tls", secret)) => {
            let known = tls.iter_mut().find(|entry| entry["secretName"].as_str().unwrap_or_default() == secret);
            match known.and_then(|entry| entry["hosts"].as_array_mut()) {
                Some(hosts) if hosts.iter().any(|known| known == host) => {}
                Some(hosts) => hosts.push(host.into()),
                None if secret.is_empty() => tls.push(json!({"hosts": [host]})),
                None => tls.push(json!({"hosts": [host], "secretName": secret})),
            }
        }
        Some(_) => {
            return fail(format!(
                "rule {text} is invalid and should be in format host/path=svcname:svcport[,tls[=secret]]"
            ));
        }
    }
    Ok(())
}

fn backend(text: &str) -> Result<Value> {
    let Some((name, port)) = text.split_once(':').filter(|(name, port)| !name.is_empty() && !port.is_empty()) else {
        return fail(format!("backend {text} is invalid and should be in format servicename:serviceport"));
    };
    let port = port.parse::<u16>().map_or_else(|_| json!({"name": port}), |number| json!({"number": number}));
    Ok(json!({"service": {"name": name, "port": port}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let args = IngressArgs {
            name: "i".into(),
            class: None,
            rule: vec!["foo.com/a*=svc:8080,tls=sec".into(), "foo.com/=svc:http,tls=sec".into(), "/b=s:1".into()],
            default_backend: None,
            annotation: vec![],
        };
        let spec = &args.object().unwrap()["spec"];
        assert_eq!(spec["rules"][0]["http"]["paths"][0]["pathType"], "Prefix");
        assert_eq!(spec["rules"][0]["http"]["paths"][1]["path"], "/");
        assert_eq!(spec["rules"][1]["host"], Value::Null);
        assert_eq!(spec["tls"], json!([{"hosts": ["foo.com"], "secretName": "sec"}]));
        let bad = IngressArgs { rule: vec!["nonsense".into()], ..args };
        assert!(bad.object().is_err());
    }
}
