//! What a terminal does between a person and a program: lines are edited before the program sees them, typed
//! characters are shown, and line ends are translated. Pure.
//!
//! Deliberately absent: raw mode, job control and the window's size, for which WASI has no words.

/// Bytes of one line being typed; more are not taken, as in Linux.
const LINE_BYTES_MAX: usize = 4095;

const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15;
const DELETE: u8 = 0x7f;

/// The line being typed.
#[derive(Default)]
pub(super) struct Line(Vec<u8>);

/// What comes of some typed bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    /// For the program.
    pub(super) input: Vec<u8>,
    /// For the screen, line ends translated already.
    pub(super) echo: Vec<u8>,
    /// Ctrl-D at the start of a line: the input ends.
    pub(super) end: bool,
    /// Ctrl-C: the program ends.
    pub(super) interrupt: bool,
}

impl Line {
    /// Takes what was typed. What follows an end or an interrupt is dropped.
    pub(super) fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for byte in bytes {
            match *byte {
                b'\r' | b'\n' => {
                    self.0.push(b'\n');
                    typed.input.append(&mut self.0);
                    typed.echo.extend_from_slice(b"\r\n");
                }
                INTERRUPT => {
                    self.0.clear();
                    typed.echo.extend_from_slice(b"^C");
                    typed.interrupt = true;
                }
                END if self.0.is_empty() => typed.end = true,
                END => typed.input.append(&mut self.0),
                BACKSPACE | DELETE => {
                    self.erase(&mut typed.echo);
                }
                KILL_LINE => while self.erase(&mut typed.echo) {},
                _ if self.0.len() >= LINE_BYTES_MAX => {}
                byte => {
                    self.0.push(byte);
                    match byte {
                        0..0x20 if byte != b'\t' => typed.echo.extend_from_slice(&[b'^', byte + b'@']),
                        _ => typed.echo.push(byte),
                    }
                }
            }
            if typed.end || typed.interrupt {
                break;
            }
        }
        typed
    }

    /// Takes the last character back; whether there was one.
    fn erase(&mut self, echo: &mut Vec<u8>) -> bool {
        // The bytes of a UTF-8 character after its first all begin with 10.
        while self.0.last().is_some_and(|byte| byte & 0xc0 == 0x80) {
            self.0.pop();
        }
        let Some(byte) = self.0.pop() else { return false };
        let columns = if byte < 0x20 && byte != b'\t' { 2 } else { 1 };
        echo.extend_from_slice(&b"\x08 \x08".repeat(columns));
        true
    }
}

/// What a program prints as a terminal shows it: a line end also returns to the first column.
pub(super) fn printed(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for byte in bytes {
        if *byte == b'\n' {
            shown.push(b'\r');
        }
        shown.push(*byte);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_edited_and_shown() {
        /// Typed, for the program, for the screen, end, interrupt.
        type Case = (&'static [u8], &'static [u8], &'static [u8], bool, bool);
        let cases: &[Case] = &[
            (b"ls", b"", b"ls", false, false),
            (b"ls\r", b"ls\n", b"ls\r\n", false, false),
            (b"a\nb\r", b"a\nb\n", b"a\r\nb\r\n", false, false),
            (b"ab\x7f\x08c\r", b"c\n", b"ab\x08 \x08\x08 \x08c\r\n", false, false),
            (b"\x7f\r", b"\n", b"\r\n", false, false),
            ("\u{e9}\u{20ac}\x7f\r".as_bytes(), "\u{e9}\n".as_bytes(), "é€\x08 \x08\r\n".as_bytes(), false, false),
            (b"abc\x15x\r", b"x\n", b"abc\x08 \x08\x08 \x08\x08 \x08x\r\n", false, false),
            (b"\x04rest", b"", b"", true, false),
            (b"ab\x04\x04", b"ab", b"ab", true, false),
            (b"a\r\x04", b"a\n", b"a\r\n", true, false),
            (b"ab\x03cd\r", b"", b"ab^C", false, true),
            (b"\x1b[A\t\x7f\r", b"\x1b[A\n", b"^[[A\t\x08 \x08\r\n", false, false),
            (b"\x1b\x7f\r", b"\n", b"^[\x08 \x08\x08 \x08\r\n", false, false),
        ];
        for (typed, input, echo, end, interrupt) in cases {
            let want = Typed { input: input.to_vec(), echo: echo.to_vec(), end: *end, interrupt: *interrupt };
            assert_eq!(Line::default().typed(typed), want, "{:?}", String::from_utf8_lossy(typed));
        }
    }

    #[test]
    fn a_line_is_typed_in_pieces_and_bounded() {
        let mut line = Line::default();
        assert_eq!(line.typed(b"he").input, b"");
        assert_eq!(line.typed(b"llo\r").input, b"hello\n");
        let long = vec![b'x'; LINE_BYTES_MAX + 10];
        assert_eq!(line.typed(&long).echo.len(), LINE_BYTES_MAX);
        assert_eq!(line.typed(b"\r").input.len(), LINE_BYTES_MAX + 1);
    }

    #[test]
    fn line_ends_return() {
        assert_eq!(printed(b"a\nb\r\n"), b"a\r\nb\r\r\n");
        assert_eq!(printed(b""), b"");
    }
}
