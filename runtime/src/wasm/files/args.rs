//! The command lines `kubectl cp` uses, and what they ask for. Pure.

/// What the node does itself.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::wasm) enum Act {
    /// `tar cf - PATH...`, from byte `skip_bytes` of the archive on.
    Pack { paths: Vec<String>, dir: Option<String>, skip_bytes: u64 },
    /// `tar xf -`.
    Unpack(Unpack),
    /// `test -d PATH`, `-e`, `-f`.
    Test { kind: Kind, path: String },
    /// Not among what is supported.
    Refused { text: String, code: i32 },
}

/// How an archive is taken in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::wasm) struct Unpack {
    /// Where to.
    pub(super) dir: Option<String>,
    /// `m`: files get the time of now.
    pub(super) touch: bool,
    /// Modes as in the archive, instead of what a umask of 022 leaves of them.
    pub(super) same_modes: bool,
}

/// What [`Act::Test`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::wasm) enum Kind {
    Anything,
    Directory,
    File,
}

const RESUMED_BEGIN: &str = "tar cf - ";
const RESUMED_MIDDLE: &str = " | tail -c+";

/// What the node does for this argv instead of the program; `None` is the program's own.
pub(in crate::wasm) fn recognise(argv: &[String]) -> Option<Act> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tar", rest @ ..] => Some(tar(rest)),
        ["test", rest @ ..] => Some(test(rest)),
        ["sh", "-c", line] => resumed(line),
        _ => None,
    }
}

fn test(words: &[&str]) -> Act {
    let kind = match words {
        ["-d", _] => Kind::Directory,
        ["-e", _] => Kind::Anything,
        ["-f", _] => Kind::File,
        _ => {
            let text = "test: in a Wasm container only -d, -e and -f with one path are supported\n";
            return Act::Refused { text: text.into(), code: 2 };
        }
    };
    Act::Test { kind, path: words[1].to_owned() }
}

/// The archive from some byte on: how `kubectl cp --retries` goes on after a broken connection.
fn resumed(line: &str) -> Option<Act> {
    let (path, from) = line.strip_prefix(RESUMED_BEGIN)?.rsplit_once(RESUMED_MIDDLE)?;
    let from: u64 = from.trim().parse().ok()?;
    // Nothing a shell would do something with; kubectl does not quote.
    if path.is_empty() || path.contains(['|', ';', '&', '$', '`', '<', '>', '\n', '"', '\'']) {
        return None;
    }
    Some(Act::Pack { paths: vec![path.to_owned()], dir: None, skip_bytes: from.saturating_sub(1) })
}

fn tar(words: &[&str]) -> Act {
    parse_tar(words).unwrap_or_else(|problem| Act::Refused {
        text: format!(
            "tar: {problem}\ntar: in a Wasm container only `tar cf - PATH...' and `tar xf -' are supported\n"
        ),
        code: 2,
    })
}

fn parse_tar(words: &[&str]) -> Result<Act, String> {
    let (mut create, mut extract, mut standard) = (false, false, false);
    let mut options = Unpack { same_modes: true, ..Unpack::default() };
    let mut paths = Vec::new();
    let mut words = words.iter().enumerate();
    let mut only_paths = false;
    while let Some((at, word)) = words.next() {
        let mut value =
            |name: &str| words.next().map(|(_, word)| *word).ok_or(format!("option requires an argument -- '{name}'"));
        let letters = match word.strip_prefix("--") {
            _ if only_paths => {
                paths.push((*word).to_owned());
                continue;
            }
            Some("") => {
                only_paths = true;
                continue;
            }
            Some(long) => {
                match long {
                    "no-same-permissions" => options.same_modes = false,
                    "same-permissions" | "preserve-permissions" => options.same_modes = true,
                    // Everything belongs to the node's agent anyway.
                    "no-same-owner" | "numeric-owner" => {}
                    "touch" => options.touch = true,
                    "create" => create = true,
                    "extract" => extract = true,
                    "directory" => options.dir = Some(value("directory")?.to_owned()),
                    _ if long.starts_with("directory=") => options.dir = Some(long["directory=".len()..].to_owned()),
                    _ => return Err(format!("unrecognized option '--{long}'")),
                }
                continue;
            }
            None => match word.strip_prefix('-') {
                Some(letters) if !letters.is_empty() => letters,
                None if at == 0 => word,
                _ => {
                    paths.push((*word).to_owned());
                    continue;
                }
            },
        };
        for letter in letters.chars() {
            match letter {
                'c' => create = true,
                'x' => extract = true,
                'm' => options.touch = true,
                'p' => options.same_modes = true,
                'o' => {}
                'f' => standard = value("f")? == "-",
                'C' => options.dir = Some(value("C")?.to_owned()),
                other => return Err(format!("invalid option -- '{other}'")),
            }
        }
    }
    match (create, extract) {
        _ if !standard => Err("the archive must be `-'".into()),
        (true, false) if paths.is_empty() => Err("Cowardly refusing to create an empty archive".into()),
        (true, false) => Ok(Act::Pack { paths, dir: options.dir, skip_bytes: 0 }),
        (false, true) if !paths.is_empty() => Err("extracting single members is not supported".into()),
        (false, true) => Ok(Act::Unpack(options)),
        _ => Err("You must specify one of the '-c' and '-x' options".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> String {
        let argv: Vec<String> = line.split('~').map(str::to_owned).collect();
        match recognise(&argv) {
            None => "the program".into(),
            Some(Act::Refused { text, code }) => format!("{code}: {}", text.lines().next().unwrap_or_default()),
            Some(act) => format!("{act:?}"),
        }
    }

    #[test]
    fn what_kubectl_cp_says_is_understood() {
        let cases = [
            ("tar~cf~-~/data/x", r#"Pack { paths: ["/data/x"], dir: None, skip_bytes: 0 }"#),
            ("tar~-cf~-~-C~/data~a~b", r#"Pack { paths: ["a", "b"], dir: Some("/data"), skip_bytes: 0 }"#),
            ("tar~xmf~-~-C~/data", r#"Unpack(Unpack { dir: Some("/data"), touch: true, same_modes: true })"#),
            ("tar~-xmf~-", r#"Unpack(Unpack { dir: None, touch: true, same_modes: true })"#),
            (
                "tar~--no-same-permissions~--no-same-owner~-xmf~-~-C~/d",
                r#"Unpack(Unpack { dir: Some("/d"), touch: true, same_modes: false })"#,
            ),
            ("sh~-c~tar cf - /data/x | tail -c+1025", r#"Pack { paths: ["/data/x"], dir: None, skip_bytes: 1024 }"#),
            ("sh~-c~tar cf - /a b | tail -c+1", r#"Pack { paths: ["/a b"], dir: None, skip_bytes: 0 }"#),
            ("test~-d~/data", r#"Test { kind: Directory, path: "/data" }"#),
            ("tar~czf~-~x", "2: tar: invalid option -- 'z'"),
            ("tar~cf~/tmp/x~y", "2: tar: the archive must be `-'"),
            ("tar~cf~-", "2: tar: Cowardly refusing to create an empty archive"),
            ("tar~cf", "2: tar: option requires an argument -- 'f'"),
            ("tar", "2: tar: the archive must be `-'"),
            ("tar~--checkpoint-action=exec=sh~-xf~-", "2: tar: unrecognized option '--checkpoint-action=exec=sh'"),
            ("test~-x~/data", "2: test: in a Wasm container only -d, -e and -f with one path are supported"),
            ("sh~-c~ls", "the program"),
            ("sh~-c~tar cf - $(id) | tail -c+1", "the program"),
            ("sh", "the program"),
            ("tool~tar", "the program"),
        ];
        for (line, want) in cases {
            assert_eq!(asked(line), want, "{line}");
        }
    }
}
