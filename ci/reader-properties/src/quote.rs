// SPDX-License-Identifier: Apache-2.0
//! Quotes and TD reports: what was read, written again field by field, gives the same bytes.

use tdx_spec::{
    Quote, QuoteBody, QuoteHeader, ReportMac, TdInfo, TdReport, TdReport10, TdReport15, TdReport15Ex, TeeTcbInfo,
};

/// Quotes of versions 4 and 5, and TD reports.
pub fn quote(bytes: &[u8]) -> bool {
    quote_is_rewritten(bytes) | report_is_rewritten(bytes)
}

fn quote_is_rewritten(bytes: &[u8]) -> bool {
    let Ok((quote, rest)) = Quote::parse_prefix(bytes) else {
        assert!(Quote::parse(bytes).is_err(), "parse accepts what parse_prefix refuses");
        return false;
    };
    assert_eq!(Quote::parse(bytes).is_ok(), rest.is_empty(), "parse must refuse exactly what has bytes behind it");
    let mut signed = header(&quote.header);
    if quote.header.version == [5, 0] {
        let (kind, len) = match quote.body {
            QuoteBody::Td10(_) => (2_u16, TdReport10::LEN),
            QuoteBody::Td15(_) => (3, TdReport15::LEN),
            QuoteBody::Td15Ex(_) => (4, TdReport15Ex::LEN),
        };
        signed.extend(kind.to_le_bytes());
        signed.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    }
    signed.extend(body(&quote.body));
    assert_eq!(signed, quote.signed, "the signed bytes are not header, descriptor and body");
    let signature_len = u32::try_from(quote.signature.len()).unwrap_or(u32::MAX).to_le_bytes();
    let rewritten = [signed.as_slice(), &signature_len, quote.signature, rest].concat();
    assert_eq!(rewritten, bytes, "a quote must be read without loss");
    rest.is_empty()
}

fn header(header: &QuoteHeader) -> Vec<u8> {
    let QuoteHeader { version, attestation_key_type, tee_type, reserved_1, reserved_2, qe_vendor_id, user_data } =
        header;
    [version.as_slice(), attestation_key_type, tee_type, reserved_1, reserved_2, qe_vendor_id, user_data].concat()
}

fn body(body: &QuoteBody) -> Vec<u8> {
    match body {
        QuoteBody::Td10(report) => body_10(report),
        QuoteBody::Td15(report) => body_15(report),
        QuoteBody::Td15Ex(report) => body_15_ex(report),
    }
}

fn body_10(report: &TdReport10) -> Vec<u8> {
    let TdReport10 {
        tee_tcb_svn,
        mr_seam,
        mr_signer_seam,
        seam_attributes,
        td_attributes,
        xfam,
        mr_td,
        mr_config_id,
        mr_owner,
        mr_owner_config,
        rtmr_0,
        rtmr_1,
        rtmr_2,
        rtmr_3,
        report_data,
    } = report;
    let (attributes, xfam) = (td_attributes.bits().to_le_bytes(), xfam.bits().to_le_bytes());
    let module = [tee_tcb_svn.as_slice(), mr_seam, mr_signer_seam, seam_attributes, &attributes, &xfam].concat();
    let measured = [mr_td, mr_config_id, mr_owner, mr_owner_config, rtmr_0, rtmr_1, rtmr_2, rtmr_3].map(|r| *r);
    [module.as_slice(), measured.as_flattened(), report_data].concat()
}

fn body_15(report: &TdReport15) -> Vec<u8> {
    let TdReport15 { base, tee_tcb_svn_2, mr_service_td } = report;
    [body_10(base).as_slice(), tee_tcb_svn_2, mr_service_td].concat()
}

fn body_15_ex(report: &TdReport15Ex) -> Vec<u8> {
    let TdReport15Ex {
        base,
        vm_id,
        td_id,
        device_info,
        initial_service_td_hash,
        initial_service_td_attributes,
        initial_cpu_svn,
        initial_tee_tcb_svn,
        initial_fmspc,
        current_service_td_hash,
        current_service_td_attributes,
    } = report;
    let initial = [
        initial_service_td_hash.as_slice(),
        initial_service_td_attributes,
        initial_cpu_svn,
        initial_tee_tcb_svn,
        initial_fmspc,
    ]
    .concat();
    let identity = [vm_id.as_slice(), td_id, device_info].concat();
    [body_15(base), identity, initial, current_service_td_hash.to_vec(), current_service_td_attributes.to_vec()]
        .concat()
}

fn report_is_rewritten(bytes: &[u8]) -> bool {
    let Ok(report) = TdReport::parse(bytes) else { return false };
    let TdReport { mac, tcb, reserved, td } = report;
    assert_eq!([mac_bytes(&mac), tcb_bytes(&tcb), reserved.to_vec(), td_bytes(&td)].concat(), bytes, "a TD report");
    true
}

fn mac_bytes(mac: &ReportMac) -> Vec<u8> {
    let ReportMac {
        report_type,
        subtype,
        version,
        reserved_type,
        reserved_1,
        cpu_svn,
        tee_tcb_info_hash,
        tee_info_hash,
        report_data,
        reserved_2,
        mac,
    } = mac;
    let kind = [*report_type, *subtype, *version, *reserved_type];
    let hashes = [*tee_tcb_info_hash, *tee_info_hash];
    [&kind, reserved_1.as_slice(), cpu_svn, hashes.as_flattened(), report_data, reserved_2, mac].concat()
}

fn tcb_bytes(tcb: &TeeTcbInfo) -> Vec<u8> {
    let TeeTcbInfo { valid, tee_tcb_svn, mr_seam, mr_signer_seam, seam_attributes, tee_tcb_svn_2, reserved } = tcb;
    [valid.as_slice(), tee_tcb_svn, mr_seam, mr_signer_seam, seam_attributes, tee_tcb_svn_2, reserved].concat()
}

fn td_bytes(td: &TdInfo) -> Vec<u8> {
    let TdInfo { td_attributes, xfam, mr_td, mr_config_id, mr_owner, mr_owner_config, rtmr, service_td_hash, reserved } =
        td;
    let masks = [td_attributes.bits().to_le_bytes(), xfam.bits().to_le_bytes()];
    let chosen = [mr_config_id.as_slice(), mr_owner, mr_owner_config].concat();
    [masks.as_flattened(), mr_td, &chosen, rtmr.as_flattened(), service_td_hash, reserved].concat()
}
