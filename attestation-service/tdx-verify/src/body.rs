// SPDX-License-Identifier: Apache-2.0
//! Rules about a TD's own fields that no policy switches off.

use tdx_spec::{QuoteBody, TdAttributes, TdReport15, TdReport15Ex, Xfam};

use crate::fault::QuoteFault;

/// The only TD attributes that may be set.
pub const ATTRIBUTES_ALLOWED: u64 = TdAttributes::SEPT_VE_DISABLE | TdAttributes::PKS;

/// XSAVE components that every TD has (Intel TDX Module base specification: XFAM bits 0 and 1 are fixed-1).
pub const XFAM_REQUIRED: u64 = Xfam::X87 | Xfam::SSE;

/// XSAVE components that a TD may have: vector state, protection keys, control-flow enforcement and AMX.
/// Processor trace, last branch records and user interrupts are not among them.
pub const XFAM_ALLOWED: u64 = XFAM_REQUIRED
    | Xfam::AVX
    | Xfam::AVX512_OPMASK
    | Xfam::AVX512_ZMM_HI256
    | Xfam::AVX512_HI16_ZMM
    | Xfam::PKRU
    | Xfam::CET_U
    | Xfam::CET_S
    | Xfam::AMX_TILECFG
    | Xfam::AMX_TILEDATA;

/// All rules that the body breaks, in the order of the TD report.
pub(crate) fn check(body: &QuoteBody) -> Vec<QuoteFault> {
    let report = body.report();
    let mut faults = Vec::new();
    if report.mr_signer_seam != [0; 48] {
        faults.push(QuoteFault::MrSignerSeam(report.mr_signer_seam));
    }
    if report.seam_attributes != [0; 8] {
        faults.push(QuoteFault::SeamAttributes(report.seam_attributes));
    }
    check_attributes(report.td_attributes, &mut faults);
    let missing = XFAM_REQUIRED & !report.xfam.bits();
    let unexpected = report.xfam.outside(XFAM_ALLOWED);
    if missing != 0 || unexpected != 0 {
        faults.push(QuoteFault::Xfam { found: report.xfam.bits(), missing, unexpected });
    }
    if let Some(report) = body.report_15() {
        check_15(report, &mut faults);
    }
    if let Some(report) = body.report_15_ex() {
        check_15_ex(report, &mut faults);
    }
    faults
}

fn check_attributes(attributes: TdAttributes, faults: &mut Vec<QuoteFault>) {
    if attributes.contains(TdAttributes::DEBUG) {
        faults.push(QuoteFault::DebugSet);
    }
    let other = attributes.outside(ATTRIBUTES_ALLOWED | TdAttributes::DEBUG);
    if other & TdAttributes::NAMED != 0 {
        faults.push(QuoteFault::AttributesNotAllowed(other & TdAttributes::NAMED));
    }
    if other & !TdAttributes::NAMED != 0 {
        faults.push(QuoteFault::AttributesReserved(other & !TdAttributes::NAMED));
    }
    if !attributes.contains(TdAttributes::SEPT_VE_DISABLE) {
        faults.push(QuoteFault::SeptVeDisableOff);
    }
}

fn check_15(report: &TdReport15, faults: &mut Vec<QuoteFault>) {
    if report.mr_service_td != [0; 48] {
        faults.push(QuoteFault::ServiceTd { field: "mr_service_td", found: report.mr_service_td });
    }
}

fn check_15_ex(report: &TdReport15Ex, faults: &mut Vec<QuoteFault>) {
    if report.vm_id != [0] {
        faults.push(QuoteFault::Extended("vm_id"));
    }
    if report.device_info != [0; 48] {
        faults.push(QuoteFault::Extended("device_info"));
    }
    for (field, found) in [
        ("initial_service_td_hash", report.initial_service_td_hash),
        ("current_service_td_hash", report.current_service_td_hash),
    ] {
        if found != [0; 48] {
            faults.push(QuoteFault::ServiceTd { field, found });
        }
    }
}

#[cfg(test)]
mod tests {
    use tdx_spec::{Cursor, TdReport15};

    use super::*;

    fn codes(change: impl FnOnce(&mut TdReport15)) -> Vec<&'static str> {
        let mut report = TdReport15::read(&mut Cursor::new(&[0; TdReport15::LEN])).unwrap();
        report.base.td_attributes = TdAttributes::from_bits(TdAttributes::SEPT_VE_DISABLE);
        report.base.xfam = Xfam::from_bits(0x0006_1ae7);
        change(&mut report);
        check(&QuoteBody::Td15(report)).iter().map(QuoteFault::code).collect()
    }

    /// Attacks 1 to 5.
    #[test]
    fn each_rule_has_its_code() {
        let attributes =
            |bits| move |r: &mut TdReport15| r.base.td_attributes = TdAttributes::from_bits(bits | 1 << 28);
        assert_eq!(codes(|_| ()), [""; 0]);
        assert_eq!(codes(attributes(TdAttributes::PKS)), [""; 0]);
        assert_eq!(codes(attributes(TdAttributes::DEBUG)), ["tdx_debug_set"]);
        for bit in [4, 5, 6, 16, 17, 27, 29, 31, 62, 63] {
            assert_eq!(codes(attributes(1 << bit)), ["tdx_attributes"], "bit {bit}");
        }
        for bit in (1..=3).chain(7..=15).chain(18..=26).chain(32..=61) {
            assert_eq!(codes(attributes(1 << bit)), ["tdx_attributes_reserved"], "bit {bit}");
        }
        assert_eq!(codes(|r| r.base.td_attributes = TdAttributes::from_bits(0)), ["tdx_sept_ve_disable_off"]);
        for xfam in [0x0006_1ae6, 0x0006_1ae5, 1 << 8 | 3, 1 << 14 | 3, 1 << 15 | 3, 1 << 19 | 3, 1 << 63 | 3] {
            assert_eq!(codes(|r| r.base.xfam = Xfam::from_bits(xfam)), ["tdx_xfam"], "{xfam:#x}");
        }
        assert_eq!(codes(|r| r.base.mr_signer_seam[47] = 1), ["tdx_mr_signer_seam"]);
        assert_eq!(codes(|r| r.base.seam_attributes[7] = 1), ["tdx_seam_attributes"]);
        assert_eq!(codes(|r| r.mr_service_td[0] = 1), ["tdx_mr_service_td"]);
    }

    #[test]
    fn all_reasons_come_together_in_order() {
        let all = codes(|r| {
            r.base.mr_signer_seam[0] = 1;
            r.base.td_attributes = TdAttributes::from_bits(3);
            r.base.xfam = Xfam::from_bits(0);
            r.mr_service_td[0] = 1;
        });
        let expected = [
            "tdx_mr_signer_seam",
            "tdx_debug_set",
            "tdx_attributes_reserved",
            "tdx_sept_ve_disable_off",
            "tdx_xfam",
            "tdx_mr_service_td",
        ];
        assert_eq!(all, expected);
    }
}
