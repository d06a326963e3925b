//! A command with a verb for everything the black-box tests want a Wasm container to do.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let arg = |at: usize| args.get(at).map(String::as_str).unwrap_or_default();
    match arg(1) {
        "args" => println!("{:?}", &args[1..]),
        "env" => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        "cat" => io::stdout().write_all(&std::fs::read(arg(2))?)?,
        "write" => std::fs::write(arg(2), arg(3))?,
        "list" => {
            let mut names: Vec<_> = std::fs::read_dir(arg(2))?.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            println!("{names:?}");
        }
        "hear" => hear()?,
        "both" => {
            println!("to stdout");
            eprintln!("to stderr");
        }
        "terminal" => println!("{} {}", io::stdin().is_terminal(), io::stdout().is_terminal()),
        "tick" => {
            for tick in 0u64.. {
                println!("tick {tick}");
                rest(100);
            }
        }
        "long" => {
            let piece = vec![b'x'; 1 << 20];
            for _ in 0..arg(2).parse().unwrap() {
                io::stdout().write_all(&piece)?;
            }
            println!();
            println!("after it");
        }
        "http" => http(arg(2))?,
        "count" => count(arg(2))?,
        "echo" => echo(arg(2))?,
        "spin" => loop {
            std::hint::black_box(0);
        },
        "sleep" => loop {
            rest(1_000_000);
        },
        "fail" => std::process::exit(1),
        other => panic!("unknown verb {other:?}"),
    }
    Ok(())
}

fn rest(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Says back each line of its standard input, and at the end how many bytes it was.
fn hear() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let (mut line, mut bytes) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = input.read_until(b'\n', &mut line)?;
        if read == 0 {
            println!("the end after {bytes} bytes");
            return Ok(());
        }
        bytes += read;
        if line.len() < 1000 {
            println!("heard {}", String::from_utf8_lossy(&line).trim_end());
        }
    }
}

/// Plain HTTP on a port of every address. `/back/PORT/PATH` passes on what a neighbour in the pod says at that port,
/// `/at/HOST:PORT/PATH` what anybody says, and `/udp/HOST:PORT/WORD` what is answered to a datagram.
fn http(port: &str) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse().unwrap()))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        if let Err(error) = answer(&stream) {
            eprintln!("{error}");
        }
    }
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    let mut reader = io::BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (verb, rest) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let (to, what) = rest.split_once('/').unwrap_or((rest, ""));
    let asked = match verb {
        "back" => Some(ask(&format!("127.0.0.1:{to}"), what)),
        "at" => Some(ask(to, what)),
        "udp" => Some(send(to, what)),
        _ => None,
    };
    let body = match asked {
        Some(Ok(answer)) => format!("the neighbour says: {answer}"),
        Some(Err(error)) => format!("the neighbour does not answer: {error}\n"),
        None => format!("wasm answers {path}\n"),
    };
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn ask(to: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    write!(stream, "GET /{path} HTTP/1.0\r\nhost: {to}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn send(to: &str, word: &str) -> io::Result<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    let mut answer = [0; 2048];
    // datagrams get lost
    for turn in 0..200 {
        if turn % 50 == 0 {
            socket.send(word.as_bytes())?;
        }
        match socket.recv(&mut answer) {
            Ok(length) => return Ok(String::from_utf8_lossy(&answer[..length]).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => rest(10),
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Sends each datagram back to where it came from, after the word of whom it heard.
fn echo(port: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port.parse().unwrap()))?;
    println!("listening on {}", socket.local_addr()?);
    let mut heard = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut heard)?;
        let word = String::from_utf8_lossy(&heard[..length]);
        socket.send_to(format!("{word} from {}\n", from.ip()).as_bytes(), from)?;
    }
}

/// Takes what each connection has to say to its end, then answers how much it was: its client half-closes.
fn count(port: &str) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse().unwrap()))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (mut stream, _) = listener.accept()?;
        let bytes = io::copy(&mut stream, &mut io::sink())?;
        writeln!(stream, "counted {bytes}")?;
    }
}
