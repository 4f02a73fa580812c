// SPDX-License-Identifier: Apache-2.0
//! From what was collected to the GPU part of a guest's evidence.

use types::{GpuDriver, GpuEvidence, GpuReport, Hex32};

use crate::Collected;

/// Why what was collected is no evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Another number of devices than was asked for.
    #[error("{kind}: {expected} were asked for, {found} answered")]
    Count {
        /// `gpus` or `switches`.
        kind: &'static str,
        /// As asked for.
        expected: u8,
        /// As answered.
        found: usize,
    },
    /// A UUID that is none, or that two devices have.
    #[error("{0}: every device needs a UUID of its own")]
    Uuid(&'static str),
    /// A report or a chain without a byte.
    #[error("{0}: a device without a report or certificates")]
    Empty(&'static str),
    /// The driver's version is no version.
    #[error("driver.version must be 1 to 32 digits and points")]
    Version,
}

impl Collected {
    /// Sorts the reports by UUID and checks what can be checked without reading them.
    ///
    /// # Errors
    /// [`EvidenceError`] names the rule.
    pub fn into_evidence(
        self,
        epoch: u64,
        random: Hex32,
        gpus: u8,
        switches: u8,
    ) -> Result<GpuEvidence, EvidenceError> {
        let Self { gpus: found_gpus, switches: found_switches, driver } = self;
        if !GpuDriver::is_version(&driver.version) {
            return Err(EvidenceError::Version);
        }
        Ok(GpuEvidence {
            epoch,
            random,
            reports: sorted("gpus", gpus, found_gpus)?,
            switches: sorted("switches", switches, found_switches)?,
            driver: Some(driver),
        })
    }
}

fn sorted(kind: &'static str, expected: u8, mut found: Vec<GpuReport>) -> Result<Vec<GpuReport>, EvidenceError> {
    if found.len() != usize::from(expected) {
        return Err(EvidenceError::Count { kind, expected, found: found.len() });
    }
    found.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    let distinct = found.is_sorted_by(|a, b| a.uuid < b.uuid);
    if !distinct || !found.iter().all(|report| GpuReport::is_uuid(&report.uuid)) {
        return Err(EvidenceError::Uuid(kind));
    }
    if found.iter().any(|device| device.report.as_slice().is_empty() || device.chain.as_slice().is_empty()) {
        return Err(EvidenceError::Empty(kind));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use types::Base64;

    use super::*;

    fn report(uuid: &str) -> GpuReport {
        GpuReport { uuid: uuid.into(), report: Base64::new(vec![1]).unwrap(), chain: Base64::new(vec![2]).unwrap() }
    }

    fn collected(uuids: &[&str]) -> Collected {
        let driver =
            GpuDriver { version: "550.163.01".into(), confidential: true, dev_tools: false, protected_pcie: false };
        Collected { gpus: uuids.iter().map(|uuid| report(uuid)).collect(), switches: Vec::new(), driver }
    }

    fn evidence(collected: Collected, gpus: u8, switches: u8) -> Result<GpuEvidence, EvidenceError> {
        collected.into_evidence(1, Hex32::new([1; 32]), gpus, switches)
    }

    #[test]
    fn reports_are_sorted() {
        let made = evidence(collected(&["GPU-b1", "GPU-a0"]), 2, 0).unwrap();
        assert_eq!(made.reports.iter().map(|r| r.uuid.as_str()).collect::<Vec<_>>(), ["GPU-a0", "GPU-b1"]);
        assert_eq!((made.epoch, made.switches.len()), (1, 0));
        assert!(made.driver.unwrap().confidential);
        let mut switch = collected(&["GPU-a0"]);
        switch.switches = vec![report("SWX-0a")];
        assert_eq!(evidence(switch.clone(), 1, 1).unwrap().switches.len(), 1);
        assert!(matches!(evidence(switch, 1, 0), Err(EvidenceError::Count { kind: "switches", .. })));
    }

    #[test]
    fn other_numbers_names_and_empty_reports_are_refused() {
        assert!(matches!(evidence(collected(&["GPU-a0"]), 2, 0), Err(EvidenceError::Count { found: 1, .. })));
        assert!(matches!(evidence(collected(&[]), 1, 0), Err(EvidenceError::Count { found: 0, .. })));
        assert_eq!(evidence(collected(&["GPU-a0", "GPU-a0"]), 2, 0), Err(EvidenceError::Uuid("gpus")));
        for uuid in ["", "GPU-", "a0", "GPU-a\n", "GPU-x", "MIG-a0", &format!("GPU-{}", "a".repeat(65))] {
            assert_eq!(evidence(collected(&[uuid]), 1, 0), Err(EvidenceError::Uuid("gpus")), "{uuid:?}");
        }
        let mut empty = collected(&["GPU-a0"]);
        empty.gpus[0].chain = Base64::new(Vec::new()).unwrap();
        assert_eq!(evidence(empty, 1, 0), Err(EvidenceError::Empty("gpus")));
        for version in ["", "550 1", "550\n", &"1".repeat(33)] {
            let mut other = collected(&["GPU-a0"]);
            other.driver.version = version.into();
            assert_eq!(evidence(other, 1, 0), Err(EvidenceError::Version), "{version:?}");
        }
    }
}
