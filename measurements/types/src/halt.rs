// SPDX-License-Identifier: Apache-2.0
//! Numeric codes of a halted boot, as they stand in the status line `2 PHASE CODE`: the guest says them, the host names them.

macro_rules! codes {
    ($($variant:ident = $number:literal $name:literal $meaning:literal;)*) => {
        /// Why the guest halted. Numbers are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum HaltCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl HaltCode {
            /// All codes, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$variant => $number),* }
            }

            /// The code with this number.
            #[must_use]
            pub fn of_number(number: u64) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| u64::from(code.number()) == number)
            }

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What happened, for the documentation.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }
        }
    };
}

codes! {
    MountFailed = 10 "mount_failed" "a pseudo file system or a directory of the guest could not be made";
    CommandLineUnknown = 11 "command_line_unknown" "the measured command line has a word of chrysalis. that this image does not know, or has one twice";
    EntropyNoInstruction = 20 "entropy_no_instruction" "the processor has no RDSEED";
    EntropyExhausted = 21 "entropy_exhausted" "the processor gave no random value in the allowed number of tries";
    EntropyStuck = 22 "entropy_stuck" "the processor's random values repeat";
    EntropyNotCredited = 23 "entropy_not_credited" "the kernel did not take the seed";
    AttesterNotStarted = 30 "attester_not_started" "the attester could not be started";
    AttesterFailed = 31 "attester_failed" "the attester or its quote device failed";
    AttesterRefused = 32 "attester_refused" "the attester refused a request of the boot";
    ConfigDiskMissing = 40 "config_disk_missing" "no disk has the serial chrysalis-config, or more than one";
    ConfigDiskMalformed = 41 "config_disk_malformed" "the configuration disk has another form";
    ConfigMalformed = 42 "config_malformed" "the configuration breaks a rule of its type";
    ConfigDigestMismatch = 43 "config_digest_mismatch" "SHA-384 of the configuration is not MRCONFIGID";
    ConfigRole = 44 "config_role" "the configuration asks for a role that this image has not";
    LockdownFailed = 50 "lockdown_failed" "a kernel interface could not be closed";
    RootDiskFailed = 51 "root_disk_failed" "the verified root's disk is missing, is not the one that the command line names, or could not be mounted";
    ModulesFailed = 52 "modules_failed" "a kernel module could not be loaded, or module loading could not be closed";
    NetworkFailed = 60 "network_failed" "there is not exactly one network interface, or it did not take its address";
    ServiceUnreachable = 70 "service_unreachable" "no connection to the attestation service through the host";
    ServiceNotPinned = 71 "service_not_pinned" "the service's TLS key is not the one pinned in the configuration";
    ServiceProtocol = 72 "service_protocol" "the service's answer breaks the protocol";
    ServiceTimeout = 73 "service_timeout" "the service did not answer in time";
    TimeNotSigned = 74 "time_not_signed" "the service's time is not signed by the pinned key for our nonce";
    TimeBeforeFloor = 75 "time_before_floor" "the service's time lies before the image was built";
    GpuUnexpected = 80 "gpu_unexpected" "an NVIDIA device is present, and this image has no driver for it";
    GpuCountMismatch = 81 "gpu_count_mismatch" "the machine does not have the number of NVIDIA GPUs that the configuration names";
    GpuDriverFailed = 82 "gpu_driver_failed" "the NVIDIA driver or one of its libraries failed, or the process that asks them";
    GpuEvidenceFailed = 83 "gpu_evidence_failed" "a GPU or a switch gave no report or certificates, or ones that break a limit";
    GpuRefused = 84 "gpu_refused" "the guest's own appraisal refused the evidence of a GPU";
    GpuFabricMissing = 85 "gpu_fabric_missing" "the machine has NVSwitches, and this image has no fabric manager or no library that reads their reports";
    GpuMeasurements = 86 "gpu_measurements_differ" "a measurement of a GPU or a switch is not the one in the manifest that NVIDIA signed";
    GpuRevoked = 87 "gpu_revoked" "a certificate of a GPU, a switch or a manifest is revoked, or its issuer does not know it";
    KeyRefused = 90 "key_refused" "the service refused to release the model key; its log and audit log have the reasons";
    KeyNotOpened = 91 "key_not_opened" "the released key does not open, or its audit proof does not verify";
    NoRandomness = 92 "no_randomness" "the kernel's generator gave nothing";
    ModelDiskMissing = 100 "model_disk_missing" "no disk has the serial chrysalis-model, or more than one";
    ModelMalformed = 101 "model_pack_malformed" "the model pack or its manifest breaks a rule of its format";
    ModelTruncated = 102 "model_pack_truncated" "the model disk ends too early";
    ModelIdentity = 103 "model_identity_mismatch" "the pack is of another model than the configuration names";
    ModelKeyCommitment = 104 "model_key_commitment_mismatch" "the released key is not the pack's key";
    ModelObjectDigest = 105 "model_object_digest_mismatch" "a byte of the encrypted model was changed";
    ModelObjectDecrypt = 106 "model_object_decrypt_failed" "an object of the model does not decrypt in its place";
    ModelFileDigest = 107 "model_file_digest_mismatch" "a decrypted file is not the one of the manifest";
    ModelTooLarge = 108 "model_too_large" "the model does not fit into the guest's memory";
    ModelIo = 109 "model_io_failed" "reading the model disk or writing to memory failed";
    ModelNoWeights = 110 "model_no_weights" "the model has neither exactly one GGUF file nor weights in safetensors in one directory (one `model.safetensors`, or several files with their index and `generation_config.json`), or has both";
    EngineNotStarted = 120 "engine_not_started" "the engine could not be started or did not bind its socket in time";
    ServeNotStarted = 121 "serve_not_started" "the API could not be started or did not listen in time";
    AttesterEnded = 122 "attester_ended" "the attester ended";
    EngineEnded = 123 "engine_ended" "the engine ended";
    ServeEnded = 124 "serve_ended" "the API process ended";
    GpuDaemonEnded = 125 "gpu_daemon_ended" "a daemon of the GPUs ended";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page;

    #[test]
    fn numbers_and_names_are_unique_and_ordered() {
        assert!(HaltCode::ALL.windows(2).all(|pair| pair[0].number() < pair[1].number()));
        for code in HaltCode::ALL {
            assert_eq!(HaltCode::ALL.iter().filter(|other| other.name() == code.name()).count(), 1, "{code:?}");
        }
    }

    /// The page lists exactly these codes, one row each: `| number | name | meaning |`.
    #[test]
    fn the_page_says_the_same() {
        let expected: Vec<String> = HaltCode::ALL
            .iter()
            .map(|code| format!("| {} | `{}` | {} |", code.number(), code.name(), code.meaning()))
            .collect();
        assert_eq!(page::rows("| code | name |"), expected);
    }
}
