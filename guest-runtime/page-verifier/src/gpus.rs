// SPDX-License-Identifier: Apache-2.0
//! GPUs by themselves.

use gpu_verify::{DeviceEvidence, GpuAppraisal, MAX_ANSWERS, MAX_RIMS, Rim};
use types::{Base64, Refusal};

use crate::{
    Anchors, DeviceRequest, GpusRequest,
    answer::{Answer, Decided, refuse, shown},
};

pub(crate) fn decide(request: GpusRequest, anchors: &Anchors, at: u64) -> Answer {
    let GpusRequest { gpus, switches, rims, ocsp, nonce, driver_state, policy } = request;
    let fix = "correct the policy";
    policy.check().map_err(|error| refuse("gpu_policy_malformed", "policy", error, fix))?;
    if rims.len() > MAX_RIMS {
        let rule = format!("at most {MAX_RIMS} manifests, found {}", rims.len());
        return Err(refuse("gpu_evidence_too_large", "rims", rule, "give the manifests that the reports name"));
    }
    let ocsp = answers(ocsp)?;
    let verify = |rim: &String| Rim::verify(rim.as_bytes(), &anchors.gpus, &ocsp, policy.revocation, at);
    let rims: Vec<_> = rims.iter().map(verify).collect();
    let verdict = GpuAppraisal {
        gpus: &evidence(&gpus),
        switches: &evidence(&switches),
        rims: &rims,
        ocsp: &ocsp,
        nonce: nonce.as_ref().map(types::Hex32::as_bytes),
        driver_state: driver_state.as_ref(),
        policy: &policy,
        anchors: &anchors.gpus,
        now: at,
    }
    .appraise();
    Ok(Decided { accepted: verdict.is_accepted(), reasons: verdict.reasons(), result: shown(&verdict) })
}

pub(crate) fn answers<const MAX: usize>(ocsp: Vec<Base64<MAX>>) -> Result<Vec<Vec<u8>>, Vec<Refusal>> {
    if ocsp.len() > MAX_ANSWERS {
        let rule = format!("at most {MAX_ANSWERS} OCSP answers, found {}", ocsp.len());
        return Err(refuse("gpu_evidence_too_large", "ocsp", rule, "give the answers about these devices"));
    }
    Ok(ocsp.into_iter().map(Base64::into_vec).collect())
}

fn evidence(devices: &[DeviceRequest]) -> Vec<DeviceEvidence<'_>> {
    devices
        .iter()
        .map(|device| DeviceEvidence { report: device.report.as_slice(), chain: device.chain.as_bytes() })
        .collect()
}
