//! Deployments.

use super::cells::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, column, number};
use crate::field::{At, FieldError};
use crate::{Column, Kind, fill, labels, meta, names, numbers, pods};
use schemars::SchemaGenerator;
use serde_json::Value;

/// `Deployment`.
pub(super) const DEPLOYMENT: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "scale"],
    volatile: false,
    counts_generation: true,
    columns: &[NAME, READY, UP_TO_DATE, AVAILABLE, AGE, CONTAINERS, IMAGES, SELECTOR],
    selectable: &[],
    default,
    validate,
    schema: SchemaGenerator::subschema_for::<k8s_openapi::api::apps::v1::Deployment>,
};

const READY: Column = column("Ready", "string", "Number of the pod with ready state", |object, _| {
    format!("{}/{}", number(&object["status"]["readyReplicas"]), number(&object["spec"]["replicas"])).into()
});
const UP_TO_DATE: Column = column("Up-to-date", "string", "Replicas that have the desired template.", |object, _| {
    number(&object["status"]["updatedReplicas"]).into()
});
const AVAILABLE: Column = column("Available", "string", "Replicas that are available.", |object, _| {
    number(&object["status"]["availableReplicas"]).into()
});

fn default(value: &mut Value) {
    fill::prune(value);
    let Some(spec) = value.as_object_mut().and_then(|object| fill::object(object, "spec")) else { return };
    fill::missing(spec, "replicas", 1);
    fill::missing(spec, "revisionHistoryLimit", 10);
    fill::missing(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = fill::object(spec, "strategy") {
        fill::missing(strategy, "type", "RollingUpdate");
        if fill::says(strategy, "type", "RollingUpdate")
            && let Some(rolling) = fill::object(strategy, "rollingUpdate")
        {
            fill::missing(rolling, "maxUnavailable", "25%");
            fill::missing(rolling, "maxSurge", "25%");
        }
    }
    pods::defaults::template(spec);
}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = meta::validate(new, old, names::dns_subdomain);
    let spec = At::root(new).field("spec");
    errors.extend(spec.field("replicas").non_negative());
    errors.extend(labels::of_template(&spec));
    errors.extend(long_running(&spec.field("template")));
    errors.extend(strategy(&spec.field("strategy")));
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        errors.extend(spec.field(field).non_negative());
    }
    let deadline = spec.field("progressDeadlineSeconds");
    if deadline.int().is_some_and(|deadline| deadline <= spec.field("minReadySeconds").int().unwrap_or(0)) {
        errors.push(deadline.invalid("must be greater than minReadySeconds"));
    }
    if let Some(old) = old {
        errors.extend(meta::immutable(&spec.field("selector"), &At::root(old).field("spec").field("selector")));
    }
    errors
}

/// What is wrong with a template whose pods run for ever.
pub(super) fn long_running(template: &At<'_>) -> Vec<FieldError> {
    let mut errors = pods::spec::template(template);
    let spec = template.field("spec");
    if spec.field("restartPolicy").text() != "Always" {
        errors.push(spec.field("restartPolicy").not_supported(&["Always"]));
    }
    if spec.field("activeDeadlineSeconds").is_set() {
        errors.push(
            spec.field("activeDeadlineSeconds").forbidden("activeDeadlineSeconds in ReplicaSet is not Supported"),
        );
    }
    errors
}

fn strategy(strategy: &At<'_>) -> Vec<FieldError> {
    let rolling = strategy.field("rollingUpdate");
    let mut errors: Vec<FieldError> =
        strategy.field("type").one_of(&["Recreate", "RollingUpdate"]).into_iter().collect();
    if strategy.field("type").text() == "Recreate" {
        if rolling.is_set() {
            errors.push(rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"));
        }
        return errors;
    }
    if !rolling.is_set() {
        return errors;
    }
    let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
    errors.extend(numbers::positive_int_or_percent(&unavailable));
    errors.extend(numbers::positive_int_or_percent(&surge));
    if numbers::is_zero(&unavailable) && numbers::is_zero(&surge) {
        errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
    }
    if numbers::percent(unavailable.value).is_some_and(|percent| percent > 100) {
        errors.push(unavailable.invalid("must not be greater than 100%"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let mut value = json!({"metadata": {"name": "a", "creationTimestamp": null}, "spec": {
            "template": {"spec": {"containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1000m"}}, "livenessProbe": {"httpGet": {"port": 80}}}]}},
        }});
        default(&mut value);
        let once = value.clone();
        default(&mut value);
        assert_eq!(value, once);
        expect_test::expect![[r#"
            metadata:
              name: a
            spec:
              progressDeadlineSeconds: 600
              replicas: 1
              revisionHistoryLimit: 10
              strategy:
                rollingUpdate:
                  maxSurge: 25%
                  maxUnavailable: 25%
                type: RollingUpdate
              template:
                spec:
                  containers:
                  - image: b
                    imagePullPolicy: Always
                    livenessProbe:
                      failureThreshold: 3
                      httpGet:
                        path: /
                        port: 80
                        scheme: HTTP
                      periodSeconds: 10
                      successThreshold: 1
                      timeoutSeconds: 1
                    name: a
                    ports:
                    - containerPort: 80
                      protocol: TCP
                    resources:
                      limits:
                        cpu: "1"
                    terminationMessagePath: /dev/termination-log
                    terminationMessagePolicy: File
                  dnsPolicy: ClusterFirst
                  restartPolicy: Always
                  schedulerName: default-scheduler
                  securityContext: {}
                  terminationGracePeriodSeconds: 30
        "#]]
        .assert_eq(&crate::yaml::to_string(&value));
    }
}
