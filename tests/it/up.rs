//! The README's first command: a cluster from nothing that answers, and leaves nothing.

use crate::harness::{free_port, request, root, until};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn up_makes_the_app_answer_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (http, https) = (free_port(), free_port());
    let mut child = Command::new(env!("CARGO_BIN_EXE_coracle"))
        .args(["up", "-f", "examples/hello"])
        .args(["--ingress-http-port", &http.to_string(), "--ingress-https-port", &https.to_string()])
        .env("TMPDIR", temp.path())
        .current_dir(root())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    for line in lines {
        let is_ready = line.contains("Ctrl-C stops everything");
        said.push(line);
        if is_ready {
            break;
        }
    }
    let said = said.join("\n");
    assert!(said.contains("deployment.apps/hello is ready"), "{said}");
    assert!(said.contains("export KUBECONFIG="), "{said}");
    let reply = until("an answer", || {
        request(([127, 0, 0, 1], http).into(), "hello.localhost", "/").ok().filter(|reply| reply.status == 200)
    });
    assert!(!reply.body.is_empty());

    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}
