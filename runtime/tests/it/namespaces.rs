//! Guests of a pod that has a network namespace: their sockets are in it, and nothing of the node's is.
//!
//! Needs root; without it the test says so and does nothing.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use crate::common::{Log, Node, TestNetwork, spec};
use runtime::{Container, NetworkNamespace, Program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A new namespace with nothing but its loopback device, which is up.
fn namespace() -> io::Result<NetworkNamespace> {
    let made = std::thread::spawn(|| {
        enter_a_new_one()?;
        loopback_up()?;
        NetworkNamespace::open(Path::new("/proc/thread-self/ns/net"))
    });
    made.join().unwrap()
}

#[allow(unsafe_code)]
fn enter_a_new_one() -> io::Result<()> {
    // SAFETY: changes only which network this thread sees, and the thread ends soon after.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[allow(unsafe_code)]
fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros is a valid request, and the call reads no more than the request.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Pod {
    node: Node,
    program: Program,
    namespace: NetworkNamespace,
    routes: HashMap<SocketAddr, SocketAddr>,
}

impl Pod {
    fn start(&self, args: &[&str]) -> (Container, Arc<Log>) {
        let (mut spec, log) = spec(self.program.clone(), args);
        spec.network = Arc::new(TestNetwork {
            namespace: Some(self.namespace.clone()),
            routes: self.routes.clone(),
            ..TestNetwork::default()
        });
        (self.node.start(spec), log)
    }

    async fn says(&self, args: &[&str]) -> String {
        let (guest, log) = self.start(args);
        guest.exited().await;
        log.text()
    }
}

/// Sends back what one connection says.
fn echo_once(listener: TcpListener) -> std::thread::JoinHandle<()> {
    listener.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut said = [0; 4];
        connection.read_exact(&mut said).unwrap();
        connection.write_all(&said).unwrap();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_made_in_the_pods_namespace() {
    let namespace = match namespace() {
        Ok(namespace) => namespace,
        Err(error) => return println!("not run: needs root to make a network namespace ({error})"),
    };
    let home = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = home();
    let node = Node::new();
    let program = node.guest("tool.wasm").await;
    let mut pod = Pod { node, program, namespace, routes: HashMap::new() };
    let pong = "answered \"ping\"\n";

    // The guest listens: reached from inside, and not from the node's own localhost.
    let (server, log) = pod.start(&["tool", "echo", "0.0.0.0:0"]);
    let said = log.wait_for("\n").await;
    let bound: SocketAddr = said.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
    assert!(bound.ip().is_unspecified(), "{bound}");
    let inside = SocketAddr::new("127.0.0.1".parse().unwrap(), bound.port());
    let mut connection = pod.namespace.connect(inside).await.unwrap();
    connection.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    assert!(TcpStream::connect(inside).is_err());
    drop(connection);
    // Another guest of the pod finds it at localhost, by name as well.
    for to in [format!("127.0.0.1:{}", bound.port()), format!("localhost:{}", bound.port())] {
        assert_eq!(pod.says(&["tool", "talk", &to]).await, pong, "{to}");
    }
    server.kill();

    // The guest connects: to what listens inside, and not to the node's.
    let listener = pod.namespace.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = echo_once(listener);
    assert_eq!(pod.says(&["tool", "talk", &format!("127.0.0.1:{port}")]).await, pong);
    echo.join().unwrap();
    let nodes = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("127.0.0.1:{}", nodes.local_addr().unwrap().port());
    assert_eq!(pod.says(&["tool", "talk", &to]).await, "failed ConnectionRefused\n");

    // Services are still routed.
    let listener = pod.namespace.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    pod.routes.insert("10.96.0.1:80".parse().unwrap(), listener.local_addr().unwrap());
    let echo = echo_once(listener);
    assert_eq!(pod.says(&["tool", "talk", "10.96.0.1:80"]).await, pong);
    echo.join().unwrap();

    // Datagrams live there too.
    let (_server, log) = pod.start(&["tool", "udp", "127.0.0.1:5353"]);
    assert_eq!(log.wait_for("\n").await, "listening on 127.0.0.1:5353\n");
    assert_eq!(pod.says(&["tool", "udp", "127.0.0.1:0", "127.0.0.1:5353"]).await, pong);

    // No address but the namespace's can be bound.
    assert_eq!(pod.says(&["tool", "echo", "192.0.2.1:80"]).await, "refused PermissionDenied\n");
    // And no thread of the node stayed behind.
    assert_eq!(home(), before);
}
