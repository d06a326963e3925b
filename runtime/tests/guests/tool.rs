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
        "recurse" => println!("{}", recurse(1)),
        "lines" => lines(),
        "terminal" => {
            use std::io::IsTerminal;
            let terminal = (std::io::stdin().is_terminal(), std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
            println!("terminal {terminal:?}");
            eprintln!("to stderr");
        }
        "flood" => {
            if arg(3) == "wait" {
                std::io::stdin().read_line(&mut String::new()).unwrap();
            }
            flood(arg(2).parse().unwrap())
        }
        "poke" => poke(arg(2)),
        "link" => println!("{:?}", link(arg(2), arg(3)).map_err(|error| error.kind())),
        "race" => race(arg(2), arg(3)),
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

#[inline(never)]
#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    recurse(depth + 1) + frame[(depth % 64) as usize]
}

/// Answers each line of standard input, and its end.
fn lines() {
    for line in std::io::stdin().lines() {
        println!("got {:?}", line.unwrap());
    }
    println!("end");
}

/// Prints this many megabytes, then where it stands.
fn flood(megabytes: usize) {
    let piece = [b'x'; 1 << 16];
    for _ in 0..megabytes * 16 {
        if std::io::stdout().write_all(&piece).is_err() {
            eprintln!("nobody listens");
            return;
        }
    }
    eprintln!("flooded");
}

/// Tries everything that would change a directory, and says what came of it.
fn poke(dir: &str) {
    let file = format!("{dir}/file");
    let say = |act: &str, done: std::io::Result<()>| println!("{act} {:?}", done.map_err(|error| error.kind()));
    say("create", std::fs::write(format!("{dir}/new"), "x"));
    say("append", std::fs::OpenOptions::new().append(true).open(&file).map(drop));
    say("truncate", std::fs::OpenOptions::new().write(true).truncate(true).open(&file).map(drop));
    say("mkdir", std::fs::create_dir(format!("{dir}/dir")));
    say("rename", std::fs::rename(&file, format!("{dir}/renamed")));
    say("unlink", std::fs::remove_file(&file));
    say("rmdir", std::fs::remove_dir(format!("{dir}/empty")));
    say("hard link", std::fs::hard_link(&file, format!("{dir}/hard")));
    say("symlink", link("file", &format!("{dir}/soft")));
    say("length", std::fs::File::open(&file).and_then(|file| file.set_len(0)));
    let touch = |file: std::fs::File| file.set_modified(std::time::UNIX_EPOCH);
    say("touch", std::fs::File::open(&file).and_then(touch));
    println!("read {:?}", std::fs::read_to_string(&file).map_err(|error| error.kind()));
}

fn link(target: &str, path: &str) -> std::io::Result<()> {
    #[allow(deprecated)]
    std::fs::soft_link(target, path)
}

/// Opens a path again and again while somebody changes what it leads to; says what it ever read, until `stop` is there.
fn race(path: &str, stop: &str) {
    let mut seen = std::collections::BTreeMap::<String, u64>::new();
    while std::fs::metadata(stop).is_err() {
        for _ in 0..64 {
            let found = std::fs::read_to_string(path).unwrap_or_else(|error| format!("{:?}", error.kind()));
            *seen.entry(found).or_default() += 1;
        }
    }
    println!("seen {:?}", seen.keys().collect::<Vec<_>>());
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
