//! Which objects are meant: label selectors and field selectors, read from a query and matched.

mod fields;
mod labels;

pub use fields::FieldSelector;
pub use labels::{LabelSelector, Operator, Requirement};

/// Longest selector that is read.
pub const SELECTOR_BYTES_MAX: usize = 64 * 1024;

/// Why a selector is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text is longer than any honest one.
    #[error("selector is longer than {SELECTOR_BYTES_MAX} bytes")]
    TooLong,
    /// The text does not parse.
    #[error("{0}")]
    Syntax(String),
    /// A label's key or value is malformed.
    #[error("{0}")]
    Label(String),
    /// The kind cannot be selected by this field.
    #[error("field label not supported: {0}")]
    Field(String),
}
