//! One run of a verb: the client, the namespace, what the server serves, and from words or files to objects.

use serde_json::Value;
use tokio::sync::OnceCell;

use super::Globals;
use super::client::{Client, with_query};
use super::discovery::{Discovery, Resource};
use super::failure::{Failure, Result, fail};
use super::files::{self, FileArgs, Manifest};
use super::words::Words;

/// How many objects a list answer carries before the next one is asked for, unless `--chunk-size` says otherwise.
pub const CHUNK_OBJECTS: u64 = 500;

/// The state of one run.
pub struct Session {
    /// The connection.
    pub client: Client,
    /// Where objects without a namespace of their own go.
    pub namespace: String,
    /// Whether the user asked for this namespace by flag, so that a manifest may not name another.
    pub namespace_is_forced: bool,
    discovery: OnceCell<Discovery>,
}

/// Which objects of a type are meant.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Label selector.
    pub selector: Option<String>,
    /// Field selector.
    pub field_selector: Option<String>,
    /// Objects of all namespaces.
    pub all_namespaces: bool,
}

/// Something the command line names: one object or a collection.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its resource.
    pub resource: Resource,
    /// Its namespace; none for cluster-wide resources and for all namespaces.
    pub namespace: Option<String>,
    /// The object's name; none for a collection.
    pub name: Option<String>,
    /// The manifest it came from.
    pub manifest: Option<Manifest>,
}

impl Target {
    /// The path of the object or collection.
    pub fn path(&self) -> String {
        match &self.name {
            Some(name) => self.resource.path(self.namespace.as_deref(), name),
            None => self.resource.collection(self.namespace.as_deref()),
        }
    }

    /// `deployment.apps/web`.
    pub fn full_name(&self) -> String {
        self.resource.full_name(self.name.as_deref().unwrap_or_default())
    }

    /// Adds the file to a failure, if there is one.
    pub fn explain(&self, failure: Failure, act: &str) -> Failure {
        match &self.manifest {
            Some(manifest) => failure.when(act, &manifest.file).located(&manifest.place()),
            None => failure,
        }
    }
}

/// An object as the server has it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it stands; the name is always given.
    pub target: Target,
    /// Its JSON.
    pub object: Value,
}

impl Session {
    /// Opens a session; nothing is sent yet.
    pub async fn open(globals: &Globals) -> Result<Session> {
        let (client, context_namespace) = Client::new(globals).await?;
        Ok(Session {
            client,
            namespace: globals.namespace.clone().filter(|name| !name.is_empty()).unwrap_or(context_namespace),
            namespace_is_forced: globals.namespace.is_some(),
            discovery: OnceCell::new(),
        })
    }

    /// What the server serves, asked for once.
    pub async fn discovery(&self) -> Result<&Discovery> {
        self.discovery.get_or_try_init(|| Discovery::load(&self.client)).await
    }

    /// The resource of a word.
    pub async fn resource(&self, word: &str) -> Result<Resource> {
        self.discovery().await?.resolve(word).cloned()
    }

    /// The targets of words like `pods a b`, `deploy/web` or `all`.
    pub async fn targets(&self, words: &[String], selection: &Selection) -> Result<Vec<Target>> {
        let discovery = self.discovery().await?;
        let scope =
            |resource: &Resource| (resource.namespaced && !selection.all_namespaces).then(|| self.namespace.clone());
        let named = |resource: &Resource, name: &str| Target {
            resource: resource.clone(),
            namespace: scope(resource),
            name: Some(name.to_string()),
            manifest: None,
        };
        let parsed = Words::parse(words)?;
        let has_names = matches!(parsed, Words::TypesAndNames(..) | Words::Pairs(..));
        if has_names && (selection.selector.is_some() || selection.field_selector.is_some()) {
            return fail("name cannot be provided when a selector is specified");
        }
        if has_names && selection.all_namespaces {
            return fail("a resource cannot be retrieved by name across all namespaces");
        }
        let mut targets = Vec::new();
        match parsed {
            Words::Nothing => {}
            Words::Types(types) => {
                for word in types {
                    for resource in discovery.resolve_many(&word)? {
                        let namespace = scope(&resource);
                        targets.push(Target { resource, namespace, name: None, manifest: None });
                    }
                }
            }
            Words::TypesAndNames(types, names) => {
                for word in types {
                    let resource = discovery.resolve(&word)?;
                    targets.extend(names.iter().map(|name| named(resource, name)));
                }
            }
            Words::Pairs(pairs) => {
                for (word, name) in pairs {
                    targets.push(named(discovery.resolve(&word)?, &name));
                }
            }
        }
        Ok(targets)
    }

    /// The targets of manifests, in the order of the files, and what could not be read or is not served.
    pub async fn file_targets(&self, args: &FileArgs) -> Result<(Vec<Target>, Vec<Failure>)> {
        let (manifests, mut failures) = files::read(args)?;
        let mut targets = Vec::new();
        for manifest in manifests {
            match self.file_target(manifest).await {
                Ok(target) => targets.push(target),
                Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
                Err(failure) => failures.push(failure),
            }
        }
        Ok((targets, failures))
    }

    async fn file_target(&self, mut manifest: Manifest) -> Result<Target> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let name = text(&manifest.object["metadata"]["name"]);
        let given = text(&manifest.object["metadata"]["namespace"]);
        let resource = match self.discovery().await?.of_object(&manifest.object) {
            Ok(resource) => resource.clone(),
            Err(Failure::Text(message)) => {
                let failure = Failure::Text(format!(
                    "resource mapping not found for name: {name:?} namespace: {given:?} from {:?}: {message}\nensure CRDs are installed first",
                    manifest.file
                ));
                return Err(failure.located(&manifest.place()));
            }
            Err(other) => return Err(other),
        };
        let namespace = if !resource.namespaced {
            None
        } else if given.is_empty() {
            if let Some(metadata) = metadata_of(&mut manifest.object) {
                metadata.insert("namespace".into(), Value::from(self.namespace.clone()));
            }
            Some(self.namespace.clone())
        } else if self.namespace_is_forced && given != self.namespace {
            return Err(Failure::Text(format!(
                "the namespace from the provided object {given:?} does not match the namespace {:?}. You must pass '--namespace={given}' to perform this operation.",
                self.namespace
            ))
            .located(&manifest.place()));
        } else {
            Some(given)
        };
        let name = (!name.is_empty()).then_some(name);
        Ok(Target { resource, namespace, name, manifest: Some(manifest) })
    }

    /// The targets of words and of files together; neither is an error that names the verb.
    pub async fn all_targets(
        &self,
        verb: &str,
        words: &[String],
        args: &FileArgs,
        selection: &Selection,
    ) -> Result<(Vec<Target>, Vec<Failure>)> {
        if !args.is_empty() {
            if !words.is_empty() {
                return fail(
                    "when paths, URLs, or stdin is provided as input, you may not specify resource arguments as well",
                );
            }
            return self.file_targets(args).await;
        }
        if words.is_empty() {
            return super::failure::usage(
                verb,
                "resource(s) must be provided: by type and name, as TYPE/NAME, or with -f",
            );
        }
        Ok((self.targets(words, selection).await?, Vec::new()))
    }

    /// Reads targets from the server, collections as their members; what fails is reported and the rest goes on.
    pub async fn fetch(&self, targets: Vec<Target>, selection: &Selection) -> Result<(Vec<Found>, Vec<Failure>)> {
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        for target in targets {
            let answer = match &target.name {
                Some(_) => self.client.get(&target.path()).await.map(|object| vec![object]),
                None => self.list(&target, selection, CHUNK_OBJECTS).await.map(|list| items_of(list, &target.resource)),
            };
            match answer {
                Ok(objects) => found.extend(objects.into_iter().map(|object| Found {
                    target: Target {
                        name: Some(name_of(&object).to_string()),
                        namespace: namespace_of(&object).map(str::to_string),
                        ..target.clone()
                    },
                    object,
                })),
                Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
                Err(failure) => failures.push(failure),
            }
        }
        Ok((found, failures))
    }

    /// Lists a collection, chunk by chunk, as one list.
    pub async fn list(&self, target: &Target, selection: &Selection, chunk: u64) -> Result<Value> {
        self.list_as(target, selection, chunk, "application/json", &[]).await
    }

    /// Lists a collection in a representation of the caller's choice; chunks are joined into the first answer.
    pub async fn list_as(
        &self,
        target: &Target,
        selection: &Selection,
        chunk: u64,
        accept: &str,
        extra: &[(&str, String)],
    ) -> Result<Value> {
        let mut whole: Option<Value> = None;
        let mut next = String::new();
        loop {
            let mut query = selection.query();
            query.extend_from_slice(extra);
            if chunk > 0 {
                query.push(("limit", chunk.to_string()));
            }
            if !next.is_empty() {
                query.push(("continue", next));
            }
            let mut answer = self.client.get_as(&with_query(&target.path(), &query), accept).await?;
            next = answer["metadata"]["continue"].as_str().unwrap_or_default().to_string();
            match &mut whole {
                None => whole = Some(answer),
                Some(whole) => {
                    for key in ["items", "rows"] {
                        if let (Some(all), Some(more)) = (whole[key].as_array_mut(), answer[key].as_array_mut()) {
                            all.append(more);
                        }
                    }
                }
            }
            if next.is_empty() {
                return Ok(whole.unwrap_or(Value::Null));
            }
        }
    }
}

impl Selection {
    /// The parameters of a list or watch request.
    pub fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        query.extend(self.selector.clone().filter(|s| !s.is_empty()).map(|s| ("labelSelector", s)));
        query.extend(self.field_selector.clone().filter(|s| !s.is_empty()).map(|s| ("fieldSelector", s)));
        query
    }
}

/// The members of a list, each with its `apiVersion` and `kind`, which lists leave out.
pub fn items_of(mut list: Value, resource: &Resource) -> Vec<Value> {
    let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    items
        .into_iter()
        .map(|mut item| {
            if let Some(map) = item.as_object_mut() {
                map.entry("apiVersion").or_insert_with(|| resource.api_version().into());
                map.entry("kind").or_insert_with(|| resource.kind.clone().into());
            }
            item
        })
        .collect()
}

/// `metadata` as a map, made if it is not there; none if the object is no object.
pub fn metadata_of(object: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    object.as_object_mut()?.entry("metadata").or_insert_with(|| serde_json::json!({})).as_object_mut()
}

/// The object's name; empty if it has none.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The object's namespace, if it has one.
pub fn namespace_of(object: &Value) -> Option<&str> {
    object["metadata"]["namespace"].as_str().filter(|name| !name.is_empty())
}
