// SPDX-License-Identifier: Apache-2.0
//! Policies for appraisal, in any layout.

use appraise::Policy;
use gpu_verify::GpuPolicy;

/// A policy that is accepted, written again, is the same policy.
pub fn policy(bytes: &[u8]) -> bool {
    appraisal(bytes) | gpu(bytes)
}

fn appraisal(bytes: &[u8]) -> bool {
    let Ok(policy) = Policy::from_json(bytes) else { return false };
    assert!(bytes.len() <= appraise::MAX_POLICY_LEN, "a policy that is too large was accepted");
    let written = serde_json::to_vec(&policy).expect("a policy is JSON");
    if written.len() <= appraise::MAX_POLICY_LEN {
        assert_eq!(Policy::from_json(&written).as_ref(), Ok(&policy), "a policy written again is another");
    }
    assert!(!policy.platform.tcb.is_empty(), "a policy that accepts nothing");
    true
}

fn gpu(bytes: &[u8]) -> bool {
    let Ok(policy) = GpuPolicy::from_json(bytes) else { return false };
    let written = serde_json::to_vec(&policy).expect("a policy is JSON");
    assert!(GpuPolicy::from_json(&written).is_ok_and(|again| again == policy), "a policy written again is another");
    true
}
