// SPDX-License-Identifier: Apache-2.0
//! Collateral files, and a source's answers from which they are made.

use collateral::{Answers, Signed};
use serde_json::Value;
use tdx_verify::{Collateral, TrustAnchors};

/// `j` and a file, or `p` and seven parts of answers with 0xff between them.
pub fn collateral(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((b'j', file)) => is_file(file),
        Some((b'p', parts)) => answers(parts),
        _ => false,
    }
}

fn is_file(bytes: &[u8]) -> bool {
    let Ok(collateral) = Collateral::from_json(bytes) else { return false };
    // Nothing that Intel signed is among the inputs.
    for now in [0, 1_750_000_000, u64::MAX] {
        assert!(collateral.check(&TrustAnchors::intel(), now).is_err(), "collateral that Intel did not issue");
    }
    true
}

fn answers(parts: &[u8]) -> bool {
    let mut parts = parts.split(|byte| *byte == 0xff);
    let mut next = || parts.next().unwrap_or_default();
    let answers = Answers {
        pck_crl: Signed { body: next(), chain: Some(next()) },
        root_ca_crl: next(),
        tcb_info: Signed { body: next(), chain: Some(next()) },
        qe_identity: Signed { body: next(), chain: Some(next()) },
    };
    let Ok(file) = answers.assemble() else { return false };
    let file: Value = serde_json::from_slice(&file).expect("a file is JSON");
    let text = |field: &str| file[field].as_str().expect("every field is text");
    for (field, body) in [("tcb_info", answers.tcb_info.body), ("qe_identity", answers.qe_identity.body)] {
        // The signature goes over the bytes as they were served.
        let signed = text(field).as_bytes();
        assert!(body.windows(signed.len()).any(|window| window == signed), "{field} is not what was served");
    }
    for field in ["root_ca_crl", "pck_crl"] {
        let hex = text(field);
        assert!(hex.len() % 2 == 0 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{field} is not hexadecimal");
        assert!(hex.starts_with("30"), "{field} is no DER sequence");
    }
    true
}
