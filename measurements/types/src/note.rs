// SPDX-License-Identifier: Apache-2.0
//! Numeric notes of a boot that goes on, as they stand in the status line `5 PHASE NOTE`: the guest says them, the host names them.

/// What a provider shall know of a boot that did not halt. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoteCode {
    /// Every device was compared with its manifests.
    GpuCompared,
    /// Some manifest was not there, or not one that counts.
    GpuNotCompared,
    /// No certificate of devices and manifests is revoked.
    GpuRevocationChecked,
    /// Some answer was not there, or not one that counts.
    GpuRevocationNotChecked,
}

impl NoteCode {
    /// All notes, by number.
    pub const ALL: [Self; 4] =
        [Self::GpuCompared, Self::GpuNotCompared, Self::GpuRevocationChecked, Self::GpuRevocationNotChecked];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::GpuCompared => 1,
            Self::GpuNotCompared => 2,
            Self::GpuRevocationChecked => 3,
            Self::GpuRevocationNotChecked => 4,
        }
    }

    /// The note with this number.
    #[must_use]
    pub fn of_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|note| u64::from(note.number()) == number)
    }

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GpuCompared => "gpu_compared",
            Self::GpuNotCompared => "gpu_not_compared",
            Self::GpuRevocationChecked => "gpu_revocation_checked",
            Self::GpuRevocationNotChecked => "gpu_revocation_not_checked",
        }
    }

    /// What it says, for the documentation.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::GpuCompared => {
                "the guest compared driver and firmware of all GPUs and switches with the manifests that the host gave"
            }
            Self::GpuNotCompared => {
                "a manifest of a GPU or a switch was not there, or not signed and in its time: the service and clients compare"
            }
            Self::GpuRevocationChecked => {
                "the host's OCSP answers say that no certificate of GPUs, switches and manifests is revoked"
            }
            Self::GpuRevocationNotChecked => {
                "an OCSP answer was not there, or not signed and in its time: the service and clients look"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page;

    #[test]
    fn numbers_and_names_are_unique() {
        for note in NoteCode::ALL {
            assert_eq!(NoteCode::ALL.iter().filter(|other| other.number() == note.number()).count(), 1, "{note:?}");
            assert_eq!(NoteCode::ALL.iter().filter(|other| other.name() == note.name()).count(), 1, "{note:?}");
            assert_eq!(NoteCode::of_number(u64::from(note.number())), Some(note));
        }
        assert_eq!(NoteCode::of_number(0), None);
    }

    /// The page lists exactly these notes, one row each: `| number | name | meaning |`.
    #[test]
    fn the_page_says_the_same() {
        let expected: Vec<String> = NoteCode::ALL
            .iter()
            .map(|note| format!("| {} | `{}` | {} |", note.number(), note.name(), note.meaning()))
            .collect();
        assert_eq!(page::rows("| note | name |"), expected);
    }
}
