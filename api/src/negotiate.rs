//! What a client wants to get: the `Accept` header. Protobuf is passed over: those who ask for it take JSON
//! too.

use crate::status::Status;
use http::HeaderMap;
use http::header::ACCEPT;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    #[default]
    Json,
    /// `application/yaml`
    Yaml,
}

/// What objects are turned into before they are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Nothing: the object itself.
    #[default]
    Whole,
    /// `PartialObjectMetadata` (`List`).
    Metadata,
    /// `Table`.
    Table,
}

/// A wanted answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// How it is written.
    pub format: Format,
    /// What of the object.
    pub shape: Shape,
}

/// One entry of an `Accept` header.
#[derive(Debug, Default)]
pub struct MediaRange<'a> {
    /// `application/json`
    pub media_type: &'a str,
    /// `as`
    pub kind: &'a str,
    /// `g`
    pub group: &'a str,
    /// `v`
    pub version: &'a str,
    quality_permille: u16,
}

/// The entries of the `Accept` headers, the most wanted first. None at all means anything.
pub fn accepted(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges: Vec<_> = values.flat_map(|value| value.split(',')).filter_map(range).collect();
    if ranges.is_empty() {
        ranges.push(MediaRange { media_type: "*/*", quality_permille: 1000, ..MediaRange::default() });
    }
    ranges.retain(|range| range.quality_permille > 0);
    ranges.sort_by_key(|range| std::cmp::Reverse(range.quality_permille));
    ranges
}

fn range(text: &str) -> Option<MediaRange<'_>> {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().filter(|media_type| !media_type.is_empty())?;
    let mut range = MediaRange { media_type, quality_permille: 1000, ..MediaRange::default() };
    for part in parts {
        match part.split_once('=') {
            Some(("as", kind)) => range.kind = kind,
            Some(("g", group)) => range.group = group,
            Some(("v", version)) => range.version = version,
            Some(("q", quality)) => {
                let quality: f32 = quality.parse().unwrap_or(1.0);
                range.quality_permille = (quality.clamp(0.0, 1.0) * 1000.0) as u16;
            }
            _ => {}
        }
    }
    Some(range)
}

/// What the client wants most of what there is.
///
/// # Errors
/// 406 when it takes neither JSON nor YAML in any of the shapes.
pub fn wanted(headers: &HeaderMap) -> Result<Wanted, Status> {
    for range in accepted(headers) {
        let format = match range.media_type {
            "application/json" | "*/*" | "application/*" => Format::Json,
            "application/yaml" => Format::Yaml,
            _ => continue,
        };
        let shape = match (range.kind, range.group, range.version) {
            ("", _, _) => Shape::Whole,
            ("Table", "meta.k8s.io", "v1") => Shape::Table,
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => Shape::Metadata,
            _ => continue,
        };
        return Ok(Wanted { format, shape });
    }
    Err(Status::not_acceptable("application/json, application/yaml"))
}
