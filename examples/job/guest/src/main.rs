//! A command of WASI preview 1: prints the first digits of pi, as many as its argument says.
//!
//! `LINE_DIGITS` in the environment sets how many stand on a line. Exit code 2 means that it was called wrongly.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

const DIGITS_MAX: usize = 20_000;

fn main() -> ExitCode {
    match arguments() {
        Ok((digits, line_digits)) => match print(digits, line_digits) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &format!("cannot print: {error}")),
        },
        Err(message) => fail(2, &message),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("pi: {message}");
    ExitCode::from(code)
}

fn arguments() -> Result<(usize, usize), String> {
    let digits = std::env::args().nth(1).ok_or("usage: pi DIGITS")?;
    let line_digits = std::env::var("LINE_DIGITS").unwrap_or_else(|_| "50".to_owned());
    Ok((number("DIGITS", &digits)?, number("LINE_DIGITS", &line_digits)?))
}

fn number(name: &str, text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=DIGITS_MAX) => Ok(number),
        _ => Err(format!("{name} must be a number from 1 to {DIGITS_MAX}, not {text:?}")),
    }
}

fn print(digits: usize, line_digits: usize) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for line in pi(digits).chunks(line_digits) {
        let line: String = line.iter().map(|digit| char::from(b'0' + digit)).collect();
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{digits} digits of pi")?;
    out.flush()
}

/// The spigot of Rabinowitz and Wagon: pi in a mixed base whose digits are all 2, turned into decimals one by one.
fn pi(digits: usize) -> Vec<u8> {
    // A few digits more than asked for, because a run of nines at the end cannot be decided yet.
    let wanted = digits + 10;
    let mut cells = vec![2u64; wanted * 10 / 3 + 1];
    let mut found: Vec<u8> = Vec::with_capacity(wanted);
    for _ in 0..wanted {
        let mut carry = 0;
        for index in (1..cells.len()).rev() {
            let value = cells[index] * 10 + carry;
            let base = 2 * index as u64 + 1;
            cells[index] = value % base;
            carry = value / base * index as u64;
        }
        let value = cells[0] * 10 + carry;
        cells[0] = value % 10;
        push(&mut found, value / 10);
    }
    found.truncate(digits);
    found
}

/// Appends a digit that may be ten, which carries into those before it.
fn push(found: &mut Vec<u8>, digit: u64) {
    if digit >= 10 {
        for earlier in found.iter_mut().rev() {
            *earlier = (*earlier + 1) % 10;
            if *earlier != 0 {
                break;
            }
        }
    }
    found.push((digit % 10) as u8);
}
