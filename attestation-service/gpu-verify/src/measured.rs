// SPDX-License-Identifier: Apache-2.0
//! Golden values of manifests against the measurements of a report.

use std::collections::BTreeMap;

use subtle::ConstantTimeEq as _;

use crate::{
    rim::{Rim, RimRefused},
    spdm::Measurement,
    verdict::{Checks, Rule},
};

/// Values that are allowed at one index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Golden {
    pub(crate) name: String,
    /// Never empty.
    pub(crate) values: Vec<Vec<u8>>,
}

/// Which manifest a device needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// `driver` or `vbios`.
    pub(crate) part: &'static str,
    pub(crate) edition: &'a str,
    pub(crate) version: &'a str,
    /// Names of the chip.
    pub(crate) products: &'a [String],
    /// Name under which NVIDIA's service has it.
    pub(crate) id: &'a str,
}

/// Finds the manifest. `None` was said why, or is said by the refusal of a manifest that claims to be the one.
pub(crate) fn find<'r>(
    wanted: Wanted<'_>,
    device: &str,
    rims: &'r [Result<Rim, RimRefused>],
    checks: &mut Checks,
) -> Option<&'r Rim> {
    let field = format!("{device}.rim.{}", wanted.part);
    let identities = rims.iter().filter_map(|rim| match rim {
        Ok(rim) => Some(&rim.identity),
        Err(refused) => refused.claims.as_ref(),
    });
    let good = rims.iter().filter_map(|rim| rim.as_ref().ok()).filter(|rim| rim.identity.version == wanted.version);
    let mut of_version = good.peekable();
    if of_version.peek().is_some() {
        let mut others = String::new();
        for rim in of_version {
            if rim.identity.edition == wanted.edition && wanted.products.contains(&rim.identity.product) {
                checks.add(
                    true,
                    MISSING,
                    field,
                    wanted.id,
                    format!("{} {}", rim.identity.product, rim.identity.version),
                );
                return Some(rim);
            }
            others = format!("{} {}", rim.identity.edition, rim.identity.product);
        }
        checks.add(false, PRODUCT, field, format!("{} {}", wanted.edition, wanted.products.join(" or ")), others);
        return None;
    }
    let mut others = Vec::new();
    for identity in identities {
        if identity.version == wanted.version {
            // Refused, with its own check; this one only says that nothing took its place.
            checks.add(false, REFUSED, field, wanted.id, "only a manifest that was refused");
            return None;
        }
        if is_firmware(&identity.version) == is_firmware(wanted.version) {
            others.push(format!("{} {}", identity.product, identity.version));
        }
    }
    if others.is_empty() {
        checks.add(false, MISSING, field, wanted.id, "none");
    } else {
        checks.add(false, VERSION, field, wanted.id, others.join(", "));
    }
    None
}

/// Compares all active values of one manifest; gives how many there are, or nothing when one differs or there is none.
///
/// The index of a manifest is the report's less one. Index 35 measures the video decoder and is left out where the
/// device says that it has none.
pub(crate) fn compare(
    part: &str,
    device: &str,
    golden: &BTreeMap<u8, Golden>,
    report: &BTreeMap<u8, Measurement>,
    decoder: bool,
    checks: &mut Checks,
) -> Option<usize> {
    let judged = || golden.iter().filter(|(index, _)| decoder || **index != DECODER);
    let (mut matched, mut good) = (0_usize, true);
    for (index, golden) in judged() {
        let found = index.checked_add(1).and_then(|index| report.get(&index));
        let matches =
            found.is_some_and(|found| golden.values.iter().any(|value| bool::from(value.ct_eq(&found.value))));
        if matches {
            matched = matched.saturating_add(1);
            continue;
        }
        good = false;
        let found = found.map_or_else(|| "none".to_owned(), |found| hex::encode(&found.value));
        let expected = golden.values.iter().map(hex::encode).collect::<Vec<_>>().join(" or ");
        let field = format!("{device}.measurements.{part}[{index}]");
        checks.add(false, MISMATCH, field, format!("{expected} ({})", golden.name), found);
    }
    let total = judged().count();
    if good {
        // A manifest that leaves nothing to compare says nothing of the device.
        let expected = if total == 0 { "one or more match".to_owned() } else { format!("{total} match") };
        let field = format!("{device}.measurements.{part}");
        good = checks.add(total > 0, MISMATCH, field, expected, format!("{matched} match"));
    }
    (good && matched == total).then_some(matched)
}

/// Five pairs of hexadecimal digits: the version of a VBIOS or of a switch's firmware. Drivers have decimal numbers.
fn is_firmware(version: &str) -> bool {
    let mut groups = version.split('.');
    let pairs = groups.by_ref().take(5).filter(|g| g.len() == 2 && g.bytes().all(|b| b.is_ascii_hexdigit())).count();
    pairs == 5 && groups.next().is_none()
}

const DECODER: u8 = 35;
const MISSING: Rule = ("rim_missing", "fetch the manifest of that name from NVIDIA's RIM service and give it");
const VERSION: Rule = ("rim_version", "give the manifest of the version that the report names");
const PRODUCT: Rule = ("rim_product", "give the manifest of the device's own chip");
const REFUSED: Rule = ("rim_refused", "see the reason of the manifest itself");
const MISMATCH: Rule =
    ("measurement_mismatch", "run the driver and firmware that NVIDIA published, unchanged, and reset the device");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_and_driver_versions_differ_in_form() {
        for version in ["96.00.5E.00.01", "96.10.55.00.01"] {
            assert!(is_firmware(version), "{version}");
        }
        for version in ["545.00", "550.144.03", "96.00.5E.00", "96.00.5E.00.01.02", "96.00.5G.00.01", ""] {
            assert!(!is_firmware(version), "{version}");
        }
    }
}
