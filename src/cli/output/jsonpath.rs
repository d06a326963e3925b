//! kubectl's JSONPath templates: literal text with `{...}` actions, `range`/`end`, filters, unions, slices and quoted text.
//!
//! `Template::parse` reads one, `Template::render` prints what it finds in an object. It is the language of client-go, with
//! its habits: `$` and `@` both mean the current object, a missing key is nothing (or an error, if the caller wants to
//! know), and several results stand side by side with a space between. Deliberately absent: script expressions.

use std::cmp::Ordering;

use serde_json::Value;

use super::gojson;

/// How deep templates may nest (unions and filters hold templates); more is refused instead of overflowing the stack.
const NESTING_DEPTH_MAX: usize = 32;

/// Why a template cannot be read, or not be applied to an object; the text is what kubectl prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonPathError(String);

type Result<T> = std::result::Result<T, JsonPathError>;

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(JsonPathError(message.into()))
}

/// A parsed template.
#[derive(Debug, Clone)]
pub struct Template {
    nodes: Vec<Node>,
    missing_is_error: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    /// One `{...}`: its steps applied one after the other to the current object.
    Action(Vec<Step>),
    Range(Vec<Step>, Vec<Node>),
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Recursive,
    Slice { from: Option<i64>, to: Bound, step: Option<i64> },
    Filter { left: Vec<Step>, operator: String, right: Vec<Step> },
    Union(Vec<Vec<Step>>),
    Literal(Value),
}

/// The end of a slice: open (`[1:]`), given (`[1:3]`), or one after the start, because only an index stood there (`[1]`).
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    Open,
    At(i64),
    AfterStart(i64),
}

impl Template {
    /// Reads a template such as `{range .items[*]}{.metadata.name}{"\n"}{end}`.
    pub fn parse(text: &str) -> Result<Template> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut open: Vec<(Vec<Step>, Vec<Node>)> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let Some(start) = rest.find('{') else {
                nodes.push(Node::Text(rest.to_string()));
                break;
            };
            if start > 0 {
                nodes.push(Node::Text(rest[..start].to_string()));
            }
            let (inside, after) = split_action(&rest[start + 1..])?;
            rest = after;
            match keyword(inside) {
                Some(("end", _)) => {
                    let Some((over, outer)) = open.pop() else { return fail("not in range, nothing to end") };
                    let body = std::mem::replace(&mut nodes, outer);
                    nodes.push(Node::Range(over, body));
                }
                Some(("range", path)) => {
                    let over = steps(path, 0)?;
                    if open.len() >= NESTING_DEPTH_MAX {
                        return fail("too many nested ranges");
                    }
                    open.push((over, std::mem::take(&mut nodes)));
                }
                _ => nodes.push(Node::Action(steps(inside, 0)?)),
            }
        }
        if !open.is_empty() {
            return fail("unterminated range, expecting end");
        }
        Ok(Template { nodes, missing_is_error: false })
    }

    /// Reads the short forms that columns, `--sort-by` and `wait` allow: `.a.b`, `a.b`, `{.a.b}`, `{a.b}`.
    pub fn relaxed(text: &str) -> Result<Template> {
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        if inner.contains(['{', '}']) {
            return fail(format!(
                "unexpected path string, expected a 'name1.name2' or '.name1.name2' or '{{name1.name2}}' or '{{.name1.name2}}', got '{text}'"
            ));
        }
        let inner = inner.strip_prefix('.').unwrap_or(inner);
        Template::parse(&if inner.is_empty() { "{}".to_string() } else { format!("{{.{inner}}}") })
    }

    /// Makes a key that is not there an error instead of nothing.
    pub fn strict(mut self) -> Template {
        self.missing_is_error = true;
        self
    }

    /// What the template prints for an object.
    pub fn render(&self, object: &Value) -> Result<String> {
        let mut out = String::new();
        self.render_nodes(&self.nodes, object, &mut out)?;
        Ok(out)
    }

    /// The values that the template's actions find, in order, whatever text is between them.
    pub fn find<'a>(&'a self, object: &'a Value) -> Result<Vec<&'a Value>> {
        let mut found = Vec::new();
        self.find_nodes(&self.nodes, object, &mut found)?;
        Ok(found)
    }

    fn render_nodes(&self, nodes: &[Node], current: &Value, out: &mut String) -> Result<()> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Action(path) => {
                    let found: Vec<String> = self.walk(path, vec![current])?.into_iter().map(text_of).collect();
                    out.push_str(&found.join(" "));
                }
                Node::Range(over, body) => {
                    for element in self.walk(over, vec![current])? {
                        self.render_nodes(body, element, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn find_nodes<'a>(&'a self, nodes: &'a [Node], current: &'a Value, found: &mut Vec<&'a Value>) -> Result<()> {
        for node in nodes {
            match node {
                Node::Text(_) => {}
                Node::Action(path) => found.extend(self.walk(path, vec![current])?),
                Node::Range(over, body) => {
                    for element in self.walk(over, vec![current])? {
                        self.find_nodes(body, element, found)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn walk<'a>(&self, path: &'a [Step], mut current: Vec<&'a Value>) -> Result<Vec<&'a Value>> {
        for step in path {
            let mut next = Vec::new();
            match step {
                Step::Literal(value) => next.push(value),
                Step::Union(paths) => {
                    for path in paths {
                        next.extend(self.walk(path, current.clone())?);
                    }
                }
                _ => {
                    for value in &current {
                        self.step(step, value, &mut next)?;
                    }
                    if let Step::Field(name) = step
                        && next.is_empty()
                        && self.missing_is_error
                    {
                        return fail(format!("{name} is not found"));
                    }
                }
            }
            current = next;
        }
        Ok(current)
    }

    fn step<'a>(&self, step: &'a Step, value: &'a Value, next: &mut Vec<&'a Value>) -> Result<()> {
        match step {
            Step::Field(name) if name.is_empty() => next.push(value),
            Step::Field(name) => next.extend(value.get(name.as_str())),
            Step::Wildcard => match value {
                Value::Array(items) => next.extend(items),
                Value::Object(map) => next.extend(map.values()),
                _ => {}
            },
            Step::Recursive => descend(value, next),
            Step::Slice { from, to, step } => slice(value, *from, *to, *step, next)?,
            Step::Filter { left, operator, right } => {
                let Value::Array(items) = value else {
                    if value.is_null() {
                        return Ok(());
                    }
                    return fail(format!("{} is not array or slice and cannot be filtered", text_of(value)));
                };
                for item in items {
                    if self.holds(left, operator, right, item)? {
                        next.push(item);
                    }
                }
            }
            Step::Union(_) | Step::Literal(_) => {}
        }
        Ok(())
    }

    fn holds(&self, left: &[Step], operator: &str, right: &[Step], item: &Value) -> Result<bool> {
        let lenient = Template { nodes: Vec::new(), missing_is_error: false };
        let lefts = lenient.walk(left, vec![item])?;
        if operator == "exists" {
            return Ok(!lefts.is_empty());
        }
        let rights = lenient.walk(right, vec![item])?;
        if lefts.len() > 1 || rights.len() > 1 {
            return fail("can only compare one element at a time");
        }
        let (Some(a), Some(b)) = (lefts.first(), rights.first()) else { return Ok(false) };
        let Some(order) = compare(a, b) else {
            return match operator {
                "==" => Ok(false),
                "!=" => Ok(true),
                _ => fail("incompatible types for comparison"),
            };
        };
        match operator {
            "==" => Ok(order == Ordering::Equal),
            "!=" => Ok(order != Ordering::Equal),
            "<" => Ok(order == Ordering::Less),
            ">" => Ok(order == Ordering::Greater),
            "<=" => Ok(order != Ordering::Greater),
            ">=" => Ok(order != Ordering::Less),
            _ => fail(format!("unrecognized filter operator {operator}")),
        }
    }
}

/// Orders two scalars of one type; `None` if they cannot be compared.
pub fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        _ => None,
    }
}

/// A value as a template prints it: a string bare, an object or list as JSON, null as nothing.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => gojson::compact(other),
    }
}

fn descend<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| descend(item, found)),
        Value::Object(map) => map.values().for_each(|item| descend(item, found)),
        _ => {}
    }
}

fn slice<'a>(
    value: &'a Value,
    from: Option<i64>,
    to: Bound,
    step: Option<i64>,
    next: &mut Vec<&'a Value>,
) -> Result<()> {
    let Value::Array(items) = value else {
        // `[*]` of an object means its values, as client-go has it.
        if let (Value::Object(map), None, Bound::Open) = (value, from, to) {
            next.extend(map.values());
            return Ok(());
        }
        if value.is_null() {
            return Ok(());
        }
        return fail(format!("{} is not array or slice", text_of(value)));
    };
    let length = items.len() as i64;
    let wrap = |index: i64| if index < 0 { index.saturating_add(length) } else { index };
    let from = wrap(from.unwrap_or(0));
    let to = match to {
        Bound::Open => length,
        Bound::At(to) => wrap(to),
        Bound::AfterStart(to) => {
            if to <= 0 {
                to.saturating_add(length)
            } else {
                to
            }
        }
    };
    if from == to {
        return Ok(());
    }
    if from >= length || from < 0 {
        return fail(format!("array index out of bounds: index {from}, length {length}"));
    }
    if to > length || to < 0 {
        return fail(format!("array index out of bounds: index {}, length {length}", to.saturating_sub(1)));
    }
    if from > to {
        return fail(format!("starting index {from} is greater than ending index {to}"));
    }
    let stride = step.unwrap_or(1);
    if stride <= 0 {
        return fail("step must be > 0");
    }
    next.extend(items[from as usize..to as usize].iter().step_by(stride as usize));
    Ok(())
}

/// Splits what follows an opening brace into the action and what stands after its closing brace. Braces in quotes do not count.
fn split_action(text: &str) -> Result<(&str, &str)> {
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (c, quote) {
            _ if escaped => escaped = false,
            ('\\', _) => escaped = true,
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(c),
            ('}', None) => return Ok((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    fail(if quote.is_some() { "unterminated quoted string" } else { "unclosed action" })
}

fn keyword(inside: &str) -> Option<(&str, &str)> {
    let inside = inside.trim_start();
    let end = inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len());
    (end > 0).then(|| (&inside[..end], &inside[end..]))
}

fn ends_a_field(c: char) -> bool {
    c.is_whitespace() || matches!(c, '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

/// Reads the inside of an action.
fn steps(text: &str, depth: usize) -> Result<Vec<Step>> {
    if depth > NESTING_DEPTH_MAX {
        return fail("expression is nested too deeply");
    }
    let mut path = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("..") {
            path.push(Step::Recursive);
            // `..name` is every object below, then the field; `..[0]` and `..*` bring their own step.
            rest = if after.starts_with(|c: char| ends_a_field(c)) { after } else { field(after, &mut path) };
        } else if rest.starts_with("[?(") {
            rest = filter(rest, &mut path, depth)?;
        } else if c == ' ' || c == '@' || c == '$' {
            rest = &rest[1..];
        } else if c == '[' {
            rest = array(rest, &mut path, depth)?;
        } else if c == '"' || c == '\'' {
            let end = closing_quote(rest, c)?;
            path.push(Step::Literal(Value::String(unquote(&rest[1..end]))));
            rest = &rest[end + 1..];
        } else if c == '.' {
            rest = field(&rest[1..], &mut path);
        } else if c == '+' || c == '-' || c.is_ascii_digit() {
            rest = number(rest, &mut path)?;
        } else if c.is_alphanumeric() || c == '_' {
            rest = identifier(rest, &mut path)?;
        } else {
            return fail(format!("unrecognized character in action: U+{:04X} '{c}'", c as u32));
        }
    }
    Ok(path)
}

fn field<'t>(text: &'t str, path: &mut Vec<Step>) -> &'t str {
    let mut escaped = false;
    let mut end = text.len();
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if ends_a_field(c) {
            end = at;
            break;
        }
    }
    let name = &text[..end];
    path.push(if name == "*" { Step::Wildcard } else { Step::Field(name.replace('\\', "")) });
    &text[end..]
}

fn number<'t>(text: &'t str, path: &mut Vec<Step>) -> Result<&'t str> {
    let end = text[1..]
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-')))
        .map_or(text.len(), |at| at + 1);
    let word = text[..end].strip_prefix('+').unwrap_or(&text[..end]);
    let value = if let Ok(integer) = word.parse::<i64>() {
        Value::from(integer)
    } else if let Ok(float) = word.parse::<f64>() {
        Value::from(float)
    } else {
        return fail(format!("cannot parse number {}", &text[..end]));
    };
    path.push(Step::Literal(value));
    Ok(&text[end..])
}

fn identifier<'t>(text: &'t str, path: &mut Vec<Step>) -> Result<&'t str> {
    let end = text.find(ends_a_field).unwrap_or(text.len());
    match &text[..end] {
        "true" => path.push(Step::Literal(Value::Bool(true))),
        "false" => path.push(Step::Literal(Value::Bool(false))),
        other => return fail(format!("unrecognized identifier {other}")),
    }
    Ok(&text[end..])
}

fn closing_quote(text: &str, quote: char) -> Result<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Ok(at),
            _ => {}
        }
    }
    fail("unterminated quoted string")
}

fn unquote(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('v') => out.push('\u{b}'),
            Some('u') => {
                let code: String = chars.by_ref().take(4).collect();
                out.extend(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

fn array<'t>(text: &'t str, path: &mut Vec<Step>, depth: usize) -> Result<&'t str> {
    let mut quote: Option<char> = None;
    let mut end = None;
    for (at, c) in text.char_indices().skip(1) {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(c),
            (']', None) => {
                end = Some(at);
                break;
            }
            _ => {}
        }
    }
    let Some(end) = end else { return fail("unterminated array") };
    let inside = text[1..end].trim();
    let parts: Vec<&str> = inside.split(',').map(str::trim).collect();
    if parts.len() > 1 {
        let mut union = Vec::new();
        for part in parts {
            union.push(steps(&format!("[{part}]"), depth + 1)?);
        }
        path.push(Step::Union(union));
    } else if let Some(key) = quoted(inside) {
        path.extend(steps(&format!(".{key}"), depth + 1)?);
    } else {
        path.push(slice_step(inside)?);
    }
    Ok(&text[end + 1..])
}

fn quoted(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

fn slice_step(inside: &str) -> Result<Step> {
    let text = if inside == "*" { ":" } else { inside };
    let parts: Vec<&str> = text.split(':').collect();
    let wrong = || JsonPathError(format!("invalid array index {inside}"));
    if parts.len() > 3 || text.is_empty() {
        return Err(wrong());
    }
    let integer = |part: &str| -> Result<Option<i64>> {
        if part.is_empty() { Ok(None) } else { part.parse::<i64>().map(Some).map_err(|_| wrong()) }
    };
    let from = integer(parts[0])?;
    let to = match parts.get(1) {
        None => from.map_or(Bound::Open, |from| Bound::AfterStart(from.saturating_add(1))),
        Some(part) => integer(part)?.map_or(Bound::Open, Bound::At),
    };
    let step = parts.get(2).map(|part| integer(part)).transpose()?.flatten();
    Ok(Step::Slice { from, to, step })
}

fn filter<'t>(text: &'t str, path: &mut Vec<Step>, depth: usize) -> Result<&'t str> {
    let mut quote: Option<char> = None;
    let mut escaped = false;
    let mut parentheses = 0;
    let mut end = None;
    for (at, c) in text.char_indices().skip(3) {
        match (c, quote) {
            _ if escaped => escaped = false,
            ('\\', _) => escaped = true,
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(c),
            ('(', None) => parentheses += 1,
            (')', None) if parentheses > 0 => parentheses -= 1,
            (')', None) => {
                end = Some(at);
                break;
            }
            _ => {}
        }
    }
    let Some(end) = end else { return fail("unterminated filter") };
    let Some(after) = text[end + 1..].strip_prefix(']') else { return fail("unclosed array expect ]") };
    let inside = &text[3..end];
    let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
    let step = match inside.find(is_operator) {
        Some(at) if at > 0 => {
            let length = inside[at..].find(|c| !is_operator(c)).unwrap_or(inside.len() - at);
            Step::Filter {
                left: steps(&inside[..at], depth + 1)?,
                operator: inside[at..at + length].to_string(),
                right: steps(&inside[at + length..], depth + 1)?,
            }
        }
        _ => Step::Filter { left: steps(inside, depth + 1)?, operator: "exists".to_string(), right: Vec::new() },
    };
    path.push(step);
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> Value {
        serde_json::json!({
            "kind": "List",
            "items": [
                {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}}, "n": 1, "ports": [80, 81, 82]},
                {"metadata": {"name": "b"}, "n": 2, "ports": [90], "ready": true},
            ],
            "empty": {},
        })
    }

    fn check(template: &str, expected: &str) {
        let rendered = Template::parse(template).and_then(|parsed| parsed.render(&world()));
        let text = rendered.unwrap_or_else(|error| format!("error: {error}"));
        assert_eq!(text, expected, "{template}");
    }

    #[test]
    fn paths() {
        check("{.kind}", "List");
        check("kind is {.kind}!", "kind is List!");
        check("{.items[*].metadata.name}", "a b");
        check("{$.items[0].n}", "1");
        check("{.items[-1].metadata.name}", "b");
        check("{.items[0].ports[0:2]}", "80 81");
        check("{.items[0].ports[::2]}", "80 82");
        check("{.items[0].ports[1,2]}", "81 82");
        check("{.items[0]['metadata','n']}", r#"{"labels":{"app.kubernetes.io/name":"x"},"name":"a"} 1"#);
        check(r"{.items[0].metadata.labels.app\.kubernetes\.io/name}", "x");
        check(r"{.items[0].metadata.labels['app\.kubernetes\.io/name']}", "x");
        check("{..name}", "a b");
        check("{.nothing.there}", "");
        check("{.empty}", "{}");
        check("{.items[0].ports}", "[80,81,82]");
        check("{.items[7].n}", "error: array index out of bounds: index 7, length 2");
        check("{.kind[0]}", "error: List is not array or slice");
    }

    #[test]
    fn ranges_and_literals() {
        check(r#"{range .items[*]}{.metadata.name}{"\t"}{.n}{"\n"}{end}"#, "a\t1\nb\t2\n");
        check("{range .items[*]}{range .ports[*]}{@},{end};{end}", "80,81,82,;90,;");
        check("{'single'}{\"}\"}", "single}");
        check("{range .items[*]}x", "error: unterminated range, expecting end");
        check("x{end}", "error: not in range, nothing to end");
    }

    #[test]
    fn filters() {
        check(r#"{.items[?(@.metadata.name=="b")].n}"#, "2");
        check("{.items[?(@.metadata.name!='b')].n}", "1");
        check("{.items[?(@.n>1)].metadata.name}", "b");
        check("{.items[?(@.n<=2)].metadata.name}", "a b");
        check("{.items[?(@.ready)].metadata.name}", "b");
        check("{.items[?(@.ready==true)].metadata.name}", "b");
        check(r#"{.items[?(@.metadata.name==")")].n}"#, "");
    }

    #[test]
    fn malformed() {
        check("{.items", "error: unclosed action");
        check("{.items[0}", "error: unterminated array");
        check("{.items[x]}", "error: invalid array index x");
        check("{foo}", "error: unrecognized identifier foo");
        check("{.items[?(@.n==1}", "error: unterminated filter");
        check(r#"{"abc}"#, "error: unterminated quoted string");
        let deep = format!("{{{}{}}}", "[?(@".repeat(500), ")]".repeat(500));
        assert!(Template::parse(&deep).is_err());
    }

    #[test]
    fn relaxed_forms() {
        for text in [".metadata.name", "metadata.name", "{.metadata.name}", "{metadata.name}"] {
            let template = Template::relaxed(text).unwrap();
            assert_eq!(template.render(&world()["items"][0]).unwrap(), "a", "{text}");
        }
        assert!(Template::relaxed("{.a}{.b}").is_err());
        assert!(Template::relaxed(".a").unwrap().strict().render(&world()).is_err());
    }
}
