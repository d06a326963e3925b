//! The page and its form.

use web::Entry;

/// The page with its entries, the latest first.
pub fn render(title: &str, welcome: &str, pod: &str, entries: &[Entry]) -> String {
    let (title, welcome, pod) = (escape(title), escape(welcome), escape(pod));
    let items: String = entries
        .iter()
        .rev()
        .map(|entry| {
            let name = if entry.name.is_empty() { "somebody" } else { &entry.name };
            format!("<li><b>{}</b>: {}</li>\n", escape(name), escape(&entry.message))
        })
        .collect();
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ font: 1.1rem/1.5 sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}</style>
<h1>{title}</h1>
<p>{welcome}</p>
<form method="post" action="/entries">
<input name="name" placeholder="your name" maxlength="100">
<input name="message" placeholder="your message" maxlength="1000" required>
<button>write</button>
</form>
<ul>
{items}</ul>
<p><small>from pod {pod}</small></p>
</html>
"#
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Reads the form's fields; those it does not know it passes over.
pub fn form(body: &[u8]) -> Entry {
    let mut entry = Entry { id: String::new(), name: String::new(), message: String::new() };
    for field in body.split(|&byte| byte == b'&') {
        let (name, value) = match field.iter().position(|&byte| byte == b'=') {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &[][..]),
        };
        match decode(name).as_str() {
            "name" => entry.name = decode(value),
            "message" => entry.message = decode(value),
            _ => {}
        }
    }
    entry
}

fn decode(text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'+', _) => decoded.push(b' '),
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(nibble(*high) << 4 | nibble(*low));
                rest = after;
            }
            _ => decoded.push(*first),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit.to_ascii_lowercase() - b'a' + 10,
    }
}
