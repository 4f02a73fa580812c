// SPDX-License-Identifier: Apache-2.0
//! Which makers of GPUs are trusted.

use types::Sha256Digest;

/// Digests of the root certificates. Nothing reads them from a file, a flag or the environment, and this type is not
/// deserialisable: what a program trusts is fixed when it is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuAnchors {
    device_root: Sha256Digest,
    rim_root: Sha256Digest,
    genuine: bool,
}

impl GpuAnchors {
    /// NVIDIA's "Device Identity CA" and "CoRIM signing Root CA", by SHA-256 of their certificates (DER).
    #[must_use]
    pub const fn nvidia() -> Self {
        Self {
            device_root: Sha256Digest::from_bytes(DEVICE_ROOT),
            rim_root: Sha256Digest::from_bytes(RIM_ROOT),
            genuine: true,
        }
    }

    /// Other roots, by SHA-256 of their certificates (DER). Only for tests and binaries of development-only crates:
    /// everything verified under them says `simulated`.
    #[must_use]
    pub const fn custom(device_root: Sha256Digest, rim_root: Sha256Digest) -> Self {
        Self { device_root, rim_root, genuine: false }
    }

    /// `nvidia` or `simulated`.
    #[must_use]
    pub const fn hardware(&self) -> &'static str {
        if self.genuine { "nvidia" } else { "simulated" }
    }

    pub(crate) const fn device_root(&self) -> &Sha256Digest {
        &self.device_root
    }

    pub(crate) const fn rim_root(&self) -> &Sha256Digest {
        &self.rim_root
    }
}

/// CN "NVIDIA Device Identity CA", serial 2D3670B1CA100411C1FEC0E82A065B54, valid from 2021-11-05.
const DEVICE_ROOT: [u8; 32] = [
    0x10, 0x2b, 0xf6, 0x59, 0xd5, 0x41, 0x96, 0x14, 0xc9, 0xd8, 0xe6, 0xae, 0xce, 0xbc, 0x80, 0x45, 0x4e, 0xb2, 0x6b,
    0x1d, 0xf6, 0xa7, 0x69, 0xac, 0x72, 0x0b, 0x9a, 0x69, 0x0b, 0x16, 0x7b, 0x48,
];
/// CN "NVIDIA CoRIM signing Root CA", serial 45DAE3A00E5037BDDF875375ECB5E270, valid from 2023-03-16.
const RIM_ROOT: [u8; 32] = [
    0x12, 0x97, 0x7b, 0x51, 0x15, 0xac, 0xb0, 0x38, 0x11, 0x79, 0x27, 0x9f, 0xff, 0xeb, 0x5a, 0x8c, 0x4d, 0x26, 0x49,
    0x71, 0xeb, 0xb3, 0x22, 0x98, 0x02, 0x3a, 0x46, 0x5f, 0xa4, 0x1d, 0xf5, 0xd1,
];
