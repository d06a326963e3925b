//! The two flags that decide what the server does with what it is sent: `--dry-run` and `--validate`.

use std::str::FromStr;

/// `--dry-run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DryRun {
    /// Do it.
    #[default]
    None,
    /// Send nothing that changes anything.
    Client,
    /// Have the server go all the way but persist nothing.
    Server,
}

impl FromStr for DryRun {
    type Err = String;
    fn from_str(text: &str) -> Result<DryRun, String> {
        match text {
            "none" | "false" => Ok(DryRun::None),
            "client" => Ok(DryRun::Client),
            "server" => Ok(DryRun::Server),
            // The bare flag; kubectl warns and takes it for the client's.
            "unchanged" | "true" => {
                eprintln!("W --dry-run is deprecated and can be replaced with --dry-run=client.");
                Ok(DryRun::Client)
            }
            other => Err(format!("Invalid dry-run value ({other}). Must be \"none\", \"server\", or \"client\".")),
        }
    }
}

impl DryRun {
    /// What is said after `created`.
    pub fn suffix(self) -> &'static str {
        match self {
            DryRun::None => "",
            DryRun::Client => " (dry run)",
            DryRun::Server => " (server dry run)",
        }
    }

    /// The request's parameter.
    pub fn parameter(self) -> Option<(&'static str, String)> {
        (self == DryRun::Server).then(|| ("dryRun", "All".to_string()))
    }
}

/// `--validate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Validation {
    /// Unknown and duplicate fields are refused.
    #[default]
    Strict,
    /// They are warned of.
    Warn,
    /// They are dropped.
    Ignore,
}

impl FromStr for Validation {
    type Err = String;
    fn from_str(text: &str) -> Result<Validation, String> {
        match text {
            "strict" | "true" => Ok(Validation::Strict),
            "warn" => Ok(Validation::Warn),
            "ignore" | "false" => Ok(Validation::Ignore),
            other => Err(format!(
                "invalid - validate option {other:?}; must be one of: strict (or true), warn, ignore (or false)"
            )),
        }
    }
}

impl Validation {
    /// The value of the request's parameter `fieldValidation`.
    pub fn parameter(self) -> &'static str {
        match self {
            Validation::Strict => "Strict",
            Validation::Warn => "Warn",
            Validation::Ignore => "Ignore",
        }
    }
}
