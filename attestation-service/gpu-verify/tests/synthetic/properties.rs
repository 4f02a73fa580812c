// SPDX-License-Identifier: Apache-2.0
//! Hostile bytes: no panic, and nothing that changed is accepted.

use std::sync::LazyLock;

use gpu_verify::{GpuPolicy, Requirement, Rim, SpdmReport};
use proptest::prelude::*;

use crate::{
    PDI, Scenario,
    world::{Device, MAKER, Made, NOW, RimSpec},
};

static GPU: LazyLock<Made> = LazyLock::new(|| Device::gpu(PDI).make());
static DRIVER: LazyLock<Vec<u8>> = LazyLock::new(|| RimSpec::driver().xml());

fn verify(xml: &[u8]) -> bool {
    Rim::verify(xml, &MAKER.anchors(), &[], Requirement::Optional, NOW).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(SpdmReport::parse(&bytes).is_err());
        prop_assert!(!verify(&bytes));
        prop_assert!(GpuPolicy::from_json(&bytes).is_err());
        let mut scenario = Scenario::one(&Device::gpu(PDI));
        scenario.gpus = vec![Made { report: bytes.clone(), chain: bytes.clone() }];
        scenario.ocsp = vec![bytes];
        prop_assert!(!scenario.codes().is_empty());
    }

    #[test]
    fn a_changed_report_is_refused(place in any::<prop::sample::Index>(), byte in 1_u8..) {
        let mut scenario = Scenario::one(&Device::gpu(PDI));
        scenario.gpus = vec![GPU.clone()];
        let place = place.index(GPU.report.len());
        scenario.gpus[0].report[place] ^= byte;
        let codes = scenario.codes();
        let noticed = codes.contains(&"gpu_report_signature") || codes == ["gpu_report_malformed"];
        prop_assert!(noticed, "{place}: {codes:?}");
    }

    #[test]
    fn a_changed_certificate_is_refused(place in any::<prop::sample::Index>(), byte in 1_u8..) {
        let mut scenario = Scenario::one(&Device::gpu(PDI));
        scenario.gpus = vec![GPU.clone()];
        let place = place.index(GPU.chain.len());
        // Line ends may change into other white space: that changes no certificate.
        if GPU.chain[place] != b'\n' {
            scenario.gpus[0].chain[place] ^= byte;
            prop_assert!(!scenario.codes().is_empty());
        }
    }

    #[test]
    fn a_changed_value_of_a_manifest_is_refused(place in any::<prop::sample::Index>()) {
        let xml = DRIVER.clone();
        let places: Vec<_> = (0..xml.len()).filter(|at| xml[*at].is_ascii_alphanumeric()).collect();
        let place = places[place.index(places.len())];
        let mut changed = xml;
        changed[place] = if changed[place] == b'0' { b'1' } else { b'0' };
        prop_assert!(!verify(&changed), "{place}");
    }

    #[test]
    fn a_manifest_that_is_cut_is_refused(len in any::<prop::sample::Index>()) {
        // The last byte is a line end after the document.
        let len = len.index(DRIVER.len() - 1);
        prop_assert!(!verify(&DRIVER[..len]));
    }
}
