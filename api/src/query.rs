//! A request's query: Kubernetes' options, read with Kubernetes' leniency and refused with its words.

use crate::status::Status;
use serde_json::json;
use state::Revision;

/// The decoded pairs of a query, in order.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

/// How strictly fields that a kind does not have are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Say nothing.
    Ignore,
    /// Say it in a `Warning` header.
    Warn,
    /// Refuse.
    Strict,
}

/// What `resourceVersionMatch` says of `resourceVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionMatch {
    /// Exactly that one.
    Exact,
    /// That one or a later one.
    NotOlderThan,
}

impl Query {
    /// Of a URI's query part.
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self { pairs: pairs.into_owned().collect() }
    }

    /// The first value of a name; an empty one counts as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A boolean as Kubernetes reads it: there and neither `false` nor `0`. `None` when it is not there.
    pub fn flag_given(&self, name: &str) -> Option<bool> {
        let value = self.all(name).next()?;
        Some(!(value == "0" || value.eq_ignore_ascii_case("false")))
    }

    /// As [`Query::flag_given`]; not there is false.
    pub fn flag(&self, name: &str) -> bool {
        self.flag_given(name).unwrap_or(false)
    }

    /// A whole number.
    ///
    /// # Errors
    /// 400 when it is there and is none.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let parsed = value.parse().map_err(|_| {
            Status::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax (parameter {name})"))
        });
        parsed.map(Some)
    }

    /// `resourceVersion` as a revision.
    ///
    /// # Errors
    /// 400 when it is no number.
    pub fn revision(&self) -> Result<Option<Revision>, Status> {
        let Some(value) = self.get("resourceVersion") else { return Ok(None) };
        let parsed = value.parse().map(Revision);
        parsed.map(Some).map_err(|_| {
            Status::bad_request(format!(
                "invalid resource version {value:?}: strconv.ParseUint: parsing {value:?}: invalid syntax"
            ))
        })
    }

    /// `resourceVersionMatch`.
    ///
    /// # Errors
    /// 422 when it does not fit the other options.
    pub fn revision_match(&self) -> Result<Option<RevisionMatch>, Status> {
        let Some(value) = self.get("resourceVersionMatch") else { return Ok(None) };
        let field = "resourceVersionMatch";
        if self.get("resourceVersion").is_none() && self.flag_given("sendInitialEvents").is_none() {
            let why = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(invalid_option("ListOptions", field, "FieldValueForbidden", why));
        }
        if self.get("continue").is_some() {
            let why = "Forbidden: resourceVersionMatch is forbidden when continue is provided";
            return Err(invalid_option("ListOptions", field, "FieldValueForbidden", why));
        }
        match value {
            "Exact" if self.get("resourceVersion") == Some("0") => {
                let why = r#"Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0""#;
                Err(invalid_option("ListOptions", field, "FieldValueForbidden", why))
            }
            "Exact" => Ok(Some(RevisionMatch::Exact)),
            "NotOlderThan" => Ok(Some(RevisionMatch::NotOlderThan)),
            other => {
                let why = format!(r#"Unsupported value: {other:?}: supported values: "Exact", "NotOlderThan", """#);
                Err(invalid_option("ListOptions", field, "FieldValueNotSupported", &why))
            }
        }
    }

    /// `fieldValidation`; Kubernetes' default is to warn.
    ///
    /// # Errors
    /// 422 for a word it does not have.
    pub fn field_validation(&self, options: &str) -> Result<FieldValidation, Status> {
        match self.get("fieldValidation") {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => {
                let why = format!(r#"Unsupported value: {other:?}: supported values: "Ignore", "Strict", "Warn""#);
                Err(invalid_option(options, "fieldValidation", "FieldValueNotSupported", &why))
            }
        }
    }

    /// Whether everything is to be done but the commit. `options` is the kind that refusals name: `CreateOptions`.
    ///
    /// # Errors
    /// 422 for anything but `All`.
    pub fn dry_run(&self, options: &str) -> Result<bool, Status> {
        let mut asked = false;
        for value in self.all("dryRun") {
            if value != "All" {
                return Err(not_dry_run(options, value));
            }
            asked = true;
        }
        Ok(asked)
    }
}

/// The refusal of a `dryRun` that is not `All`.
pub fn not_dry_run(options: &str, value: &str) -> Status {
    let why = format!(r#"Unsupported value: {value:?}: supported values: "All""#);
    invalid_option(options, "dryRun", "FieldValueNotSupported", &why)
}

/// 422 about an option, as Kubernetes' `meta.k8s.io` kinds say it.
pub fn invalid_option(options: &str, field: &str, reason: &str, why: &str) -> Status {
    let message = format!(r#"{options}.meta.k8s.io "" is invalid: {field}: {why}"#);
    let mut status = Status::new(422, "Invalid", message);
    let causes = json!([{"reason": reason, "message": why, "field": field}]);
    status.details = Some(json!({"group": "meta.k8s.io", "kind": options, "causes": causes}));
    status
}
