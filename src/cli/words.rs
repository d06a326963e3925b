//! The resource words of a command line, before any of them has a meaning: `po`, `pods web`, `deploy/web svc/api`, `rs,svc`.

use super::failure::{Failure, Result, fail};

/// What a command line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Words {
    /// Nothing.
    Nothing,
    /// Types without names: `pods,services`.
    Types(Vec<String>),
    /// Types with names, each name of each type: `pods a b`.
    TypesAndNames(Vec<String>, Vec<String>),
    /// Pairs: `pod/a service/b`.
    Pairs(Vec<(String, String)>),
}

impl Words {
    /// Takes the words of a command line apart.
    pub fn parse(words: &[String]) -> Result<Words> {
        let Some((first, names)) = words.split_first() else { return Ok(Words::Nothing) };
        if words.iter().any(|word| word.contains('/')) {
            return words.iter().map(|word| pair(word)).collect::<Result<Vec<_>>>().map(Words::Pairs);
        }
        let types: Vec<String> = first.split(',').map(str::to_string).collect();
        if types.iter().any(|word| word.is_empty()) {
            return fail("arguments must consist of a resource or a resource and name");
        }
        if names.is_empty() { Ok(Words::Types(types)) } else { Ok(Words::TypesAndNames(types, names.to_vec())) }
    }
}

fn pair(word: &str) -> Result<(String, String)> {
    let Some((kind, name)) = word.split_once('/') else {
        return fail(
            "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'kubectl get resource/<resource_name>' instead of 'kubectl get resource resource/<resource_name>'",
        );
    };
    if name.contains('/') {
        return fail("arguments in resource/name form may not have more than one slash");
    }
    if kind.is_empty() || name.is_empty() || kind.contains(',') {
        return Err(Failure::Text("arguments in resource/name form must have a single resource and name".into()));
    }
    Ok((kind.to_string(), name.to_string()))
}

/// Splits `key=value` pairs and `key-` removals from the end of a list of words (`label pods a x=1 y-`).
pub fn split_changes(words: &[String]) -> (Vec<String>, Vec<String>) {
    let start = words
        .iter()
        .position(|word| word.contains('=') || (word.len() > 1 && word.ends_with('-') && !word.contains(',')));
    let (targets, changes) = words.split_at(start.unwrap_or(words.len()));
    (targets.to_vec(), changes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: &str) {
        let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
        let found = Words::parse(&words).map_or_else(|failure| failure.message(), |words| format!("{words:?}"));
        assert!(found.starts_with(expected), "{line}: {found}");
    }

    #[test]
    fn command_lines() {
        check("", "Nothing");
        check("po", r#"Types(["po"])"#);
        check("po,svc", r#"Types(["po", "svc"])"#);
        check("po a b", r#"TypesAndNames(["po"], ["a", "b"])"#);
        check("po/a svc/b", r#"Pairs([("po", "a"), ("svc", "b")])"#);
        check("po po/a", "error: there is no need to specify a resource type as a separate argument");
        check("po/a/b", "error: arguments in resource/name form may not have more than one slash");
        check("po/", "error: arguments in resource/name form must have a single resource and name");
        check("po,", "error: arguments must consist of");
    }

    #[test]
    fn changes() {
        let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        assert_eq!(split_changes(&words("pods a x=1 y-")), (words("pods a"), words("x=1 y-")));
        assert_eq!(split_changes(&words("pods a b")), (words("pods a b"), words("")));
    }
}
