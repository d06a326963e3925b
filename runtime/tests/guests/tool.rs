//! A command with a verb for everything a test wants a guest to do.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |at: usize| args.get(at).map(String::as_str).unwrap_or_default();
    match arg(1) {
        "show" => {
            println!("args {:?}", &args[1..]);
            println!("env {:?}", std::env::vars().collect::<Vec<_>>());
            println!("cwd {:?}", std::env::current_dir());
            eprintln!("to stderr");
        }
        "exit" => std::process::exit(arg(2).parse().unwrap()),
        "cat" => print!("{:?}", std::fs::read_to_string(arg(2)).map_err(|error| error.kind())),
        "write" => print!("{:?}", std::fs::write(arg(2), arg(3)).map_err(|error| error.kind())),
        "spin" => loop {
            std::hint::black_box(0);
        },
        "sleep" => loop {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        },
        "eat" => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1u8; 1 << 20]);
                std::hint::black_box(&eaten);
            }
        }
        "panic" => deep_inside(),
        "echo" => echo(arg(2)),
        "talk" => talk(arg(2)),
        "udp" => udp(arg(2), arg(3)),
        other => panic!("unknown verb {other:?}"),
    }
}

#[inline(never)]
fn deep_inside() {
    panic!("on purpose");
}

/// Says on which address it listens, then sends back what each connection says.
fn echo(address: &str) {
    let listener = match TcpListener::bind(address) {
        Ok(listener) => listener,
        Err(error) => {
            println!("refused {:?}", error.kind());
            return;
        }
    };
    println!("listening on {}", listener.local_addr().unwrap());
    for connection in listener.incoming() {
        let mut connection = connection.unwrap();
        let mut buffer = [0; 1024];
        loop {
            match connection.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => connection.write_all(&buffer[..read]).unwrap(),
            }
        }
    }
}

fn talk(address: &str) {
    match TcpStream::connect(address) {
        Ok(mut connection) => {
            connection.write_all(b"ping").unwrap();
            let mut answer = [0; 4];
            connection.read_exact(&mut answer).unwrap();
            println!("answered {:?}", String::from_utf8_lossy(&answer));
        }
        Err(error) => println!("failed {:?}", error.kind()),
    }
}

fn udp(address: &str, to: &str) {
    let socket = UdpSocket::bind(address).unwrap();
    if to.is_empty() {
        println!("listening on {}", socket.local_addr().unwrap());
        let mut buffer = [0; 64];
        let (read, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..read], from).unwrap();
    } else {
        socket.send_to(b"ping", to).unwrap();
        let mut buffer = [0; 64];
        let (read, _) = socket.recv_from(&mut buffer).unwrap();
        println!("answered {:?}", String::from_utf8_lossy(&buffer[..read]));
    }
}
