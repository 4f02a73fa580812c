// SPDX-License-Identifier: Apache-2.0
//! Names of guests.

use serde::{Deserialize, Serialize};

/// A guest's name: part of file names, metrics and messages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

/// The name breaks the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a guest's name has 1 to 24 characters of a-z, 0-9 and -, and begins with a letter")]
pub struct GuestNameError;

impl GuestName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl core::str::FromStr for GuestName {
    type Err = GuestNameError;

    fn from_str(text: &str) -> Result<Self, GuestNameError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let ok = (1..=24).contains(&text.len())
            && text.bytes().all(allowed)
            && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if ok { Ok(Self(text.to_owned())) } else { Err(GuestNameError) }
    }
}

impl TryFrom<String> for GuestName {
    type Error = GuestNameError;

    fn try_from(text: String) -> Result<Self, GuestNameError> {
        text.parse()
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> Self {
        name.0
    }
}

impl core::fmt::Display for GuestName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "smol-1", &"a".repeat(24)] {
            assert_eq!(good.parse::<GuestName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "1a", "A", "a/b", "..", "a b", "é", &"a".repeat(25)] {
            assert_eq!(bad.parse::<GuestName>(), Err(GuestNameError), "{bad:?}");
        }
    }
}
