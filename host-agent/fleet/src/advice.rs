// SPDX-License-Identifier: Apache-2.0
//! What a provider can do about a guest that halted itself, and whether trying again soon can help.

use types::HaltCode;

/// How soon another attempt is worth it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It may pass by itself.
    Quick,
    /// Somebody has to mend something first.
    Slow,
}

/// Pace and fix for a halt code; a number of another version is tried slowly.
#[must_use]
pub fn advice(code: u32) -> (Pace, &'static str) {
    let Some(code) = HaltCode::of_number(u64::from(code)) else {
        return (Pace::Slow, "look the number up in the documentation of the image's release");
    };
    match code {
        HaltCode::ServiceUnreachable | HaltCode::ServiceTimeout => {
            (Pace::Quick, "check the service's address in the configuration and the way to it from this host")
        }
        HaltCode::ServiceProtocol => {
            (Pace::Quick, "check that the address is the attestation service's and that its version fits the image")
        }
        HaltCode::AttesterNotStarted
        | HaltCode::AttesterFailed
        | HaltCode::AttesterRefused
        | HaltCode::AttesterEnded => (
            Pace::Quick,
            "check the quote service with `host-agent preflight`; if it goes on, show it to the publisher",
        ),
        HaltCode::EngineNotStarted
        | HaltCode::ServeNotStarted
        | HaltCode::EngineEnded
        | HaltCode::ServeEnded
        | HaltCode::GpuDaemonEnded => {
            (Pace::Quick, "if it goes on, give the guest more memory or show it to the publisher")
        }
        HaltCode::MountFailed
        | HaltCode::EntropyExhausted
        | HaltCode::EntropyStuck
        | HaltCode::EntropyNotCredited
        | HaltCode::NoRandomness
        | HaltCode::NetworkFailed
        | HaltCode::LockdownFailed => (Pace::Quick, "if it goes on, show it to the image's publisher"),
        HaltCode::CommandLineUnknown | HaltCode::ConfigRole | HaltCode::ConfigMalformed => {
            (Pace::Slow, "take an agent and an image of releases that belong together")
        }
        HaltCode::EntropyNoInstruction => (Pace::Slow, "use a processor with RDSEED and a QEMU that shows it"),
        HaltCode::ConfigDiskMissing | HaltCode::ConfigDiskMalformed | HaltCode::ConfigDigestMismatch => {
            (Pace::Slow, "something changed the run directory: `host-agent restart` composes it anew")
        }
        HaltCode::RootDiskFailed | HaltCode::ModulesFailed => {
            (Pace::Slow, "fetch all files of the release again: the root disk is damaged or of another release")
        }
        HaltCode::ServiceNotPinned | HaltCode::TimeNotSigned => {
            (Pace::Slow, "correct spki_sha256 of the service: `attestation-service identity` on the service shows it")
        }
        HaltCode::TimeBeforeFloor => (Pace::Slow, "have the service's clock set"),
        HaltCode::GpuUnexpected | HaltCode::GpuCountMismatch => {
            (Pace::Slow, "give the guest exactly the GPUs that its configuration names, with the image for GPUs")
        }
        HaltCode::GpuDriverFailed | HaltCode::GpuEvidenceFailed | HaltCode::GpuFabricMissing => {
            (Pace::Slow, "check the GPUs with `host-agent preflight --gpus N --gpu-registers`, reset them")
        }
        HaltCode::GpuRefused => (Pace::Slow, "update the GPU's firmware; check its confidential mode"),
        HaltCode::GpuMeasurements => (
            Pace::Slow,
            "the driver of the image or the GPU's firmware is not what NVIDIA published, or a manifest below \
             hardware.gpu_blobs is of another board: take the release's own files, fetch the manifest anew, update the firmware",
        ),
        HaltCode::GpuRevoked => {
            (Pace::Slow, "use other GPUs, or a driver and firmware whose manifests are not revoked")
        }
        HaltCode::KeyRefused => (
            Pace::Slow,
            "ask the model's owner for the reasons in the service's audit log: release, TCB, policy or model",
        ),
        HaltCode::KeyNotOpened => (Pace::Slow, "show it to the service's operator: the released key does not open"),
        HaltCode::ModelDiskMissing => (Pace::Slow, "`host-agent restart` composes the guest anew"),
        HaltCode::ModelMalformed | HaltCode::ModelTruncated | HaltCode::ModelObjectDigest | HaltCode::ModelIo => (
            Pace::Slow,
            "the agent verifies the model's disk and fetches a damaged one anew; if it goes on, check this host's disks \
             and memory, and the pack with its owner",
        ),
        HaltCode::ModelIdentity | HaltCode::ModelKeyCommitment | HaltCode::ModelObjectDecrypt => {
            (Pace::Slow, "take the pack that the model's owner names: this one is of another model or key")
        }
        HaltCode::ModelFileDigest | HaltCode::ModelNoWeights => {
            (Pace::Slow, "show it to the model's owner: the pack is wrong")
        }
        HaltCode::ModelTooLarge => (Pace::Slow, "give the guest more memory_mib"),
    }
}

/// Whether a guest says with this code that the bytes of its model's disk are wrong. It is the guest's word alone: the
/// host looks for itself.
#[must_use]
pub fn blames_model_disk(code: u32) -> bool {
    matches!(
        HaltCode::of_number(u64::from(code)),
        Some(HaltCode::ModelMalformed | HaltCode::ModelTruncated | HaltCode::ModelObjectDigest | HaltCode::ModelIo)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_fix_and_lasting_ones_are_not_hurried() {
        for code in HaltCode::ALL {
            assert!(advice(u32::from(code.number())).1.len() > 10, "{code:?}");
        }
        assert_eq!(advice(70).0, Pace::Quick);
        for lasting in [43, 51, 71, 81, 90, 105, 108, 9_999] {
            assert_eq!(advice(lasting).0, Pace::Slow, "{lasting}");
        }
    }
}
