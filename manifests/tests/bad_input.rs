//! What people get wrong in manifests, and the words they get back: each text takes the way that an object of a request
//! takes, from YAML over the schema and the defaults to validation.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use expect_test::{Expect, expect};
use manifests::{by_kind, schema, yaml};
use serde_json::Value;

/// Reads, checks and defaults one object, or says why not.
fn read(text: &str) -> Result<Value, Vec<String>> {
    let documents = yaml::documents(text).map_err(|error| vec![error.to_string()])?;
    let mut value = documents.into_iter().next().map(|document| document.value).unwrap_or_default();
    let said = |field: &str| value[field].as_str().unwrap_or_default();
    let Some(kind) = by_kind(said("apiVersion"), said("kind")) else {
        return Err(vec![format!("no matches for kind {:?} in version {:?}", said("kind"), said("apiVersion"))]);
    };
    let checked = schema::check(kind, &value);
    let mut faults: Vec<String> = checked.unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    faults.extend(checked.wrong.iter().map(|wrong| wrong.to_string()));
    if !faults.is_empty() {
        return Err(faults);
    }
    (kind.default)(&mut value);
    let once = value.clone();
    (kind.default)(&mut value);
    assert_eq!(value, once, "defaulting twice changes nothing");
    if kind.kind == "Job" {
        value["metadata"]["uid"] = "1".into();
        manifests::claim_pods(&mut value);
    }
    Ok(value)
}

fn errors(new: &Value, old: Option<&Value>) -> Vec<String> {
    let kind = by_kind(new["apiVersion"].as_str().unwrap(), new["kind"].as_str().unwrap()).unwrap();
    (kind.validate)(new, old).iter().map(ToString::to_string).collect()
}

fn expect_create(text: &str, wanted: &Expect) {
    let faults = read(text).map_or_else(|faults| faults, |value| errors(&value, None));
    wanted.assert_eq(&faults.join("\n"));
}

/// Changes an object by setting a JSON pointer to a value.
fn expect_update(text: &str, pointer: &str, value: Value, wanted: &Expect) {
    let old = read(text).unwrap();
    assert_eq!(errors(&old, None), Vec::<String>::new());
    let mut new = old.clone();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    match new.pointer_mut(parent).unwrap() {
        Value::Array(items) => items.push(value),
        parent => parent[field] = value,
    }
    wanted.assert_eq(&errors(&new, Some(&old)).join("\n"));
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: 'file://web.wasm'}
";
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec:
  containers:
  - {name: web, image: 'file://web.wasm'}
";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {selector: {app: web}, clusterIP: 10.43.0.9, ports: [{port: 80}]}
";
const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: sum, namespace: default}
spec:
  template:
    spec: {restartPolicy: Never, containers: [{name: sum, image: 'file://sum.wasm'}]}
";
const CONFIG_MAP: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default}
data: {a: b}
immutable: true
";

#[test]
fn what_is_no_object_is_refused() {
    expect_create("a: [1", &expect!["yaml: line 2: while parsing a flow sequence, expected ',' or ']'"]);
    expect_create(
        "apiVersion: apps/v9\nkind: Deployment\n",
        &expect![[r#"no matches for kind "Deployment" in version "apps/v9""#]],
    );
    expect_create("- 1", &expect![[r#"no matches for kind "" in version """#]]);
    expect_create(
        "apiVersion: v1\nkind: Pod\nspec: {containers: {a: 1}, replica: 3}",
        &expect![[r#"
        unknown field "spec.replica"
        json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"#]],
    );
}

#[test]
fn names_are_checked() {
    let long = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}", "a".repeat(64));
    expect_create(
        &long,
        &expect![[
            r#"metadata.name: Invalid value: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": must be no more than 63 bytes"#
        ]],
    );
    expect_create(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Web_1}",
        &expect![[
            r#"metadata.name: Invalid value: "Web_1": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#
        ]],
    );
    expect_create(
        "apiVersion: v1\nkind: Service\nmetadata: {name: 1web}\nspec: {ports: [{port: 80}]}",
        &expect![[
            r#"metadata.name: Invalid value: "1web": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"#
        ]],
    );
    expect_create(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: web-}",
        &expect!["metadata.name: Required value: name or generateName is required"],
    );
    let labels = "{name: a, labels: {'a b': x, ok: 'not ok'}, annotations: {a/b/c: x}}";
    expect_create(
        &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {labels}"),
        &expect![[r#"
        metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        metadata.labels: Invalid value: "not ok": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        metadata.annotations: Invalid value: "a/b/c": a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"#]],
    );
    let big = "x".repeat(256 * 1024);
    expect_create(
        &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a, annotations: {{a: {big}}}}}"),
        &expect!["metadata.annotations: Too long: may not be more than 262144 bytes"],
    );
}

#[test]
fn deployments_are_checked() {
    expect_create(DEPLOYMENT, &expect![""]);
    expect_create(
        &DEPLOYMENT.replace("labels: {app: web}", "labels: {app: api}"),
        &expect![[
            r#"spec.template.metadata.labels: Invalid value: {"app":"api"}: `selector` does not match template `labels`"#
        ]],
    );
    expect_create(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: -1}",
        &expect![[r#"
        spec.replicas: Invalid value: -1: must be greater than or equal to 0
        spec.selector: Required value
        spec.template.spec.containers: Required value"#]],
    );
    let never = DEPLOYMENT.replace("      containers:", "      restartPolicy: Never\n      containers:");
    expect_create(
        &never,
        &expect![[r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#]],
    );
    let strategy = |strategy: &str| DEPLOYMENT.replace("  selector:", &format!("  strategy: {strategy}\n  selector:"));
    expect_create(
        &strategy("{rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}"),
        &expect![[
            r#"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#
        ]],
    );
    expect_create(
        &strategy("{rollingUpdate: {maxSurge: a%, maxUnavailable: 101%}}"),
        &expect![[r#"
        spec.strategy.rollingUpdate.maxSurge: Invalid value: "a%": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')
        spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%"#]],
    );
    expect_create(
        &strategy("{type: Recreate, rollingUpdate: {maxSurge: 1}}"),
        &expect!["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    expect_create(
        &strategy("{type: BlueGreen}"),
        &expect![[
            r#"spec.strategy.type: Unsupported value: "BlueGreen": supported values: "Recreate", "RollingUpdate""#
        ]],
    );
    expect_update(
        DEPLOYMENT,
        "/spec/selector",
        serde_json::json!({"matchLabels": {"app": "web", "b": "c"}}),
        &expect![[r#"
        spec.template.metadata.labels: Invalid value: {"app":"web"}: `selector` does not match template `labels`
        spec.selector: Invalid value: {"matchLabels":{"app":"web","b":"c"}}: field is immutable"#]],
    );
}

#[test]
fn pods_are_checked() {
    expect_create(POD, &expect![""]);
    expect_create(
        "
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  restartPolicy: Sometimes
  nodeSelector: {'a b': c}
  tolerations: [{value: x}, {key: a, operator: Exists, value: b, effect: Never}]
  volumes: [{name: data}, {name: data, configMap: {}}, {name: host, hostPath: {path: /a/../b}, emptyDir: {}}]
  containers:
  - name: web
    image: ' web'
    ports: [{containerPort: 80, name: http}, {containerPort: 99999, name: http}, {name: TOOLONGANDUPPERCASE}]
    env: [{name: ''}, {name: a=b}, {name: c, value: x, valueFrom: {fieldRef: {fieldPath: spec.foo}}}, {name: d, valueFrom: {}}]
    envFrom: [{prefix: x}, {configMapRef: {name: ''}}]
    volumeMounts: [{name: data, mountPath: /a}, {name: nope, mountPath: /a, subPath: ../b}, {name: data}]
    resources: {requests: {cpu: 2, memory: -1, foo: 1}, limits: {cpu: 1500m, example.com/gpu: 500m}}
    livenessProbe: {httpGet: {port: 0}, exec: {command: [a]}, successThreshold: 2, periodSeconds: -1}
    readinessProbe: {}
  - {name: web, image: x, imagePullPolicy: Maybe}
  - {name: Web}
  initContainers: [{name: web, image: x, readinessProbe: {tcpSocket: {port: http}}}]
",
        &expect![[r#"
            spec.volumes[1].name: Duplicate value: "data"
            spec.volumes[1].configMap.name: Required value
            spec.volumes[2].hostPath: Forbidden: may not specify more than 1 volume type
            spec.containers[0].image: Invalid value: " web": must not have leading or trailing whitespace
            spec.containers[0].ports[1].name: Duplicate value: "http"
            spec.containers[0].ports[1].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive
            spec.containers[0].ports[2].name: Invalid value: "TOOLONGANDUPPERCASE": must be no more than 15 bytes
            spec.containers[0].ports[2].name: Invalid value: "TOOLONGANDUPPERCASE": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
            spec.containers[0].ports[2].name: Invalid value: "TOOLONGANDUPPERCASE": must contain at least one letter (a-z)
            spec.containers[0].ports[2].containerPort: Required value
            spec.containers[0].env[0].name: Required value
            spec.containers[0].env[1].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='
            spec.containers[0].env[2].valueFrom: Invalid value: "": may not be specified when `value` is not empty
            spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.foo": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"
            spec.containers[0].env[3].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`
            spec.containers[0].envFrom[0]: Invalid value: "": must specify one of: `configMapRef` or `secretRef`
            spec.containers[0].envFrom[1].configMapRef.name: Required value
            spec.containers[0].volumeMounts[1].name: Not found: "nope"
            spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/a": must be unique
            spec.containers[0].volumeMounts[1].subPath: Invalid value: "../b": must not contain '..'
            spec.containers[0].volumeMounts[2].mountPath: Required value
            spec.containers[0].resources.limits[example.com/gpu]: Invalid value: "500m": must be an integer
            spec.containers[0].resources.requests[example.com/gpu]: Invalid value: "500m": must be an integer
            spec.containers[0].resources.requests[foo]: Invalid value: "foo": must be a standard resource for containers
            spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0
            spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1500m
            spec.containers[0].livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type
            spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0
            spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1
            spec.containers[0].readinessProbe: Required value: must specify a handler type
            spec.containers[1].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"
            spec.containers[1].name: Duplicate value: "web"
            spec.containers[2].name: Invalid value: "Web": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.containers[2].image: Required value
            spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always
            spec.initContainers[0].name: Duplicate value: "web"
            spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"
            spec.nodeSelector: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.tolerations[0].operator: Invalid value: "": operator must be Exists when `key` is empty, which means "match all values and all keys"
            spec.tolerations[1].operator: Invalid value: "b": value must be empty when `operator` is 'Exists'
            spec.tolerations[1].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#]],
    );
    expect_create(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}",
        &expect!["spec.containers: Required value"],
    );
    expect_update(POD, "/spec/containers/0/image", "file://other.wasm".into(), &expect![""]);
    expect_update(
        POD,
        "/spec/containers/0/command",
        serde_json::json!(["a"]),
        &expect![[r#"
        spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)
          changed: containers"#]],
    );
    expect_update(
        POD,
        "/spec/containers/-",
        serde_json::json!({"name": "b", "image": "c"}),
        &expect![[r#"
        spec.containers[1].imagePullPolicy: Required value
        spec.containers[1].terminationMessagePolicy: Required value
        spec.containers: Forbidden: pod updates may not add or remove containers"#]],
    );
    expect_update(POD, "/spec/nodeName", "node".into(), &expect![""]);
    expect_update(
        POD,
        "/metadata/name",
        "other".into(),
        &expect![[r#"metadata.name: Invalid value: "other": field is immutable"#]],
    );
}

#[test]
fn services_are_checked() {
    expect_create(SERVICE, &expect![""]);
    let spec = |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}");
    expect_create(&spec("{}"), &expect!["spec.ports: Required value"]);
    expect_create(
        &spec("{ports: [{port: 80}, {port: 80}]}"),
        &expect![[r#"
        spec.ports[0].name: Required value
        spec.ports[1].name: Required value
        spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#]],
    );
    expect_create(
        &spec("{ports: [{port: 0, nodePort: 30000, targetPort: A, protocol: HTTP}]}"),
        &expect![[r#"
        spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
        spec.ports[0].protocol: Unsupported value: "HTTP": supported values: "TCP", "UDP"
        spec.ports[0].targetPort: Invalid value: "A": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
        spec.ports[0].targetPort: Invalid value: "A": must contain at least one letter (a-z)
        spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"#]],
    );
    expect_create(
        &spec("{type: Internal, sessionAffinity: Sticky, ports: [{port: 80}]}"),
        &expect![[r#"
        spec.type: Unsupported value: "Internal": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"
        spec.sessionAffinity: Unsupported value: "Sticky": supported values: "ClientIP", "None""#]],
    );
    expect_create(
        &spec(
            "{ports: [{port: 80, protocol: SCTP}], externalTrafficPolicy: Local, internalTrafficPolicy: Near, \
             trafficDistribution: Close, healthCheckNodePort: 30001, allocateLoadBalancerNodePorts: true, \
             loadBalancerClass: a/b, loadBalancerSourceRanges: [10.0.0.0/8, ' 10.0.0.0/33']}",
        ),
        &expect![[r#"
        spec.ports[0].protocol: Unsupported value: "SCTP": supported values: "TCP", "UDP"
        spec.internalTrafficPolicy: Unsupported value: "Near": supported values: "Cluster", "Local"
        spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services
        spec.trafficDistribution: Unsupported value: "Close": supported values: "PreferClose", "PreferSameNode", "PreferSameZone"
        spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'
        spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'
        spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'
        spec.loadBalancerSourceRanges[1]: Invalid value: " 10.0.0.0/33": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)
        spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"#]],
    );
    expect_create(&spec("{ports: [{port: 80}], externalIPs: [192.0.2.1], externalTrafficPolicy: Local}"), &expect![""]);
    expect_create(&spec("{type: ExternalName}"), &expect!["spec.externalName: Required value"]);
    expect_create(&spec("{clusterIP: None}"), &expect![""]);
    expect_update(
        SERVICE,
        "/spec/clusterIP",
        "10.43.0.10".into(),
        &expect![[r#"spec.clusterIPs[0]: Invalid value: ["10.43.0.10"]: may not change once set"#]],
    );
}

#[test]
fn data_is_checked() {
    expect_create(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {'a/b': x, ..: z}",
        &expect![[r#"
        data[..]: Invalid value: "..": must not be '..'
        data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#]],
    );
    let big = "x".repeat(1024 * 1024 + 1);
    expect_create(
        &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{a: {big}}}"),
        &expect!["[]: Too long: may not be more than 1048576 bytes"],
    );
    expect_create(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {a: '%'}",
        &expect!["illegal base64 data at input byte 0"],
    );
    expect_create(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ntype: kubernetes.io/tls",
        &expect![[r#"
        data[tls.crt]: Required value
        data[tls.key]: Required value"#]],
    );
    expect_update(
        CONFIG_MAP,
        "/data/a",
        "c".into(),
        &expect!["data: Forbidden: field is immutable when `immutable` is set"],
    );
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {a: b}";
    assert_eq!(read(secret).unwrap()["data"]["a"], "Yg==");
    expect_update(secret, "/type", "other".into(), &expect![[r#"type: Invalid value: "other": field is immutable"#]]);
}

#[test]
fn jobs_are_checked() {
    expect_create(JOB, &expect![""]);
    expect_create(
        &JOB.replace("restartPolicy: Never, ", ""),
        &expect![[r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#]],
    );
    expect_create(
        &JOB.replace("spec:\n  template", "spec:\n  completions: -1\n  completionMode: Odd\n  template"),
        &expect![[r#"
        spec.completions: Invalid value: -1: must be greater than or equal to 0
        spec.completionMode: Unsupported value: "Odd": supported values: "Indexed", "NonIndexed""#]],
    );
    expect_update(
        JOB,
        "/spec/completions",
        5.into(),
        &expect!["spec.completions: Invalid value: 5: field is immutable"],
    );
}

#[test]
fn cron_jobs_are_checked() {
    let cron = |name: &str, spec: &str, job: &str| {
        format!(
            "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: {name}}}\nspec: {{{spec}, jobTemplate: {{spec: {{{job} \
             template: {{spec: {{restartPolicy: Never, containers: [{{name: a, image: x}}]}}}}}}}}}}"
        )
    };
    expect_create(&cron("a", "schedule: '*/5 * * * mon-fri', timeZone: Etc/UTC", ""), &expect![""]);
    expect_create(
        &cron("a", "schedule: '* * * *', timeZone: Mars/Base, concurrencyPolicy: Perhaps", ""),
        &expect![[r#"
            spec.schedule: Invalid value: "* * * *": expected exactly 5 fields, found 4: [* * * *]
            spec.timeZone: Invalid value: "Mars/Base": unknown time zone Mars/Base
            spec.concurrencyPolicy: Unsupported value: "Perhaps": supported values: "Allow", "Forbid", "Replace""#]],
    );
    expect_create(
        &cron(&"a".repeat(53), "schedule: 'TZ=UTC * * * * *', startingDeadlineSeconds: -1", "selector: {},"),
        &expect![[r#"
            metadata.name: Invalid value: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": must be no more than 52 characters
            spec.schedule: Invalid value: "TZ=UTC * * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead
            spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0
            spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated"#]],
    );
    expect_create(
        &cron("a", "schedule: '@daily'", "").replace("Never", "Always"),
        &expect![[
            r#"spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#
        ]],
    );
}

#[test]
fn ingresses_are_checked() {
    let rules = |rules: &str| {
        format!("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: web}}\nspec: {{rules: {rules}}}")
    };
    expect_create(
        &rules("[]"),
        &expect![[r#"spec: Invalid value: {"rules":[]}: either `defaultBackend` or `rules` must be specified"#]],
    );
    let path = |path: &str| rules(&format!("[{{http: {{paths: [{path}]}}}}]"));
    expect_create(
        &path("{pathType: Prefix, path: /, backend: {service: {name: web, port: {number: 80}}}}"),
        &expect![""],
    );
    expect_create(
        &path("{path: a}"),
        &expect![[r#"
        spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified
        spec.rules[0].http.paths[0].backend: Required value: must specify either a resource or service backend"#]],
    );
    expect_create(
        &path("{path: a//b, pathType: Exact, backend: {service: {port: {}}}}"),
        &expect![[r#"
        spec.rules[0].http.paths[0].path: Invalid value: "a//b": must be an absolute path
        spec.rules[0].http.paths[0].path: Invalid value: "a//b": must not contain '//'
        spec.rules[0].http.paths[0].backend.service.name: Required value
        spec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required"#]],
    );
    expect_create(
        &rules("[{host: 10.0.0.1}, {host: '*.*.a'}, {host: UP}]"),
        &expect![[r#"
        spec.rules[0].host: Invalid value: "10.0.0.1": must be a DNS name, not an IP address
        spec.rules[1].host: Invalid value: "*.*.a": a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        spec.rules[2].host: Invalid value: "UP": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#]],
    );
}
