// SPDX-License-Identifier: Apache-2.0
//! The message that registers reference values with trustee's reference value provider service (RVPS): its extractor
//! `sample`, message version 0.1.0 (`rvps/src/lib.rs` and `rvps/src/extractors/sample` of confidential-containers/trustee).

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use types::{Sha384Digest, canonical};

use super::{ExportError, named};
use crate::statement::ReferenceValues;

#[derive(Serialize)]
struct Message {
    version: &'static str,
    r#type: &'static str,
    payload: String,
}

/// The message as JSON: for each of `mr_td`, `rtmr_0`, `rtmr_1` and `rtmr_2` the values of all listed shapes, as
/// lower-case hexadecimal digits, sorted.
///
/// RVPS keeps one flat list for each name: a policy that asks whether each register is in its list accepts the RTMR0
/// of one shape beside the RTMR1 of another. It also believes whoever may register values: the message carries no
/// signature. It lasts for twelve months, whatever the release's validity.
///
/// # Errors
/// [`ExportError::Canonical`].
pub fn message(values: &ReferenceValues) -> Result<Vec<u8>, ExportError> {
    let mut lists: BTreeMap<&str, BTreeSet<Sha384Digest>> = BTreeMap::new();
    for registers in &values.registers {
        for (name, allowed) in named(registers) {
            lists.entry(name).or_default().extend(allowed);
        }
    }
    let payload = STANDARD.encode(canonical::to_bytes(&lists)?);
    Ok(canonical::to_bytes(&Message { version: "0.1.0", r#type: "sample", payload })?)
}
