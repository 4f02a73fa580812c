// SPDX-License-Identifier: Apache-2.0
//! Where in a policy an error is, and what would mend it.

use appraise::{Policy, PolicyError};
use serde_path_to_error::Segment;

/// The JSON pointer of an error: empty where it is about the document as a whole.
pub(crate) fn pointer(bytes: &[u8], error: &PolicyError) -> String {
    match error {
        PolicyError::TooLarge(_) => String::new(),
        PolicyError::Schema => "/schema".to_owned(),
        PolicyError::Empty(list) => format!("/{}", list.replace('.', "/")),
        PolicyError::Gpu(_) => "/gpu".to_owned(),
        PolicyError::Rules { field, .. } => format!("/rules/{field}"),
        PolicyError::Malformed(_) => malformed(bytes),
    }
}

pub(crate) const fn fix(error: &PolicyError) -> &'static str {
    match error {
        PolicyError::TooLarge(_) => "name fewer platforms, releases or instances",
        PolicyError::Schema => "write the schema's name; `policy schema` prints the schema",
        PolicyError::Empty(_) => "leave the list out for any, or name what is accepted",
        PolicyError::Gpu(_) => "correct the part about GPUs",
        PolicyError::Rules { .. } => "correct the part about rules",
        PolicyError::Malformed(_) => "correct the policy; `policy schema` prints the schema",
    }
}

fn malformed(bytes: &[u8]) -> String {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let Err(error) = serde_path_to_error::deserialize::<_, Policy>(&mut reader) else { return String::new() };
    let segments = error.path().iter().map(|segment| match segment {
        Segment::Seq { index } => format!("/{index}"),
        Segment::Map { key } => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { variant } => format!("/{variant}"),
        Segment::Unknown => String::new(),
    });
    segments.collect()
}
