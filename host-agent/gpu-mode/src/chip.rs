// SPDX-License-Identifier: Apache-2.0
//! What differs between generations.

use serde::Serialize;

/// A generation with a confidential computing mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chip {
    /// H100, H200, H20 (GH100).
    Hopper,
    /// B200, B300 (GB10x, GB11x).
    Blackwell100,
    /// RTX PRO 6000 (GB20x).
    Blackwell200,
    /// The third generation of NVSwitches, on boards with eight Hopper GPUs.
    NvSwitch3,
}

impl Chip {
    /// How much of BAR0 is mapped, in bytes.
    #[must_use]
    pub fn register_bytes(self) -> u32 {
        match self {
            Self::NvSwitch3 => 32 << 20,
            Self::Hopper | Self::Blackwell100 | Self::Blackwell200 => 16 << 20,
        }
    }

    /// Whether it has a mode in which NVLink is protected by leaving the switches to the same guest (Protected PCIe).
    #[must_use]
    pub fn has_ppcie(self) -> bool {
        matches!(self, Self::Hopper | Self::NvSwitch3)
    }

    /// Whether it has a confidential computing mode of its own.
    #[must_use]
    pub fn has_cc(self) -> bool {
        self != Self::NvSwitch3
    }

    /// Where its security processor says that it has started ([`BOOTED`]).
    pub(crate) fn boot_register(self) -> u32 {
        match self {
            Self::Hopper | Self::Blackwell100 => 0x2_00bc,
            Self::Blackwell200 => 0xad_00bc,
            Self::NvSwitch3 => 0x6_60bc,
        }
    }

    /// Where the mode that is in force stands.
    pub(crate) fn mode_register(self) -> u32 {
        match self {
            Self::Hopper => 0x11_82cc,
            Self::Blackwell100 | Self::Blackwell200 => 0x590,
            Self::NvSwitch3 => 0x2_8c50,
        }
    }

    /// The bit of [`Self::mode_register`] for Protected PCIe.
    pub(crate) fn ppcie_bit(self) -> Option<u32> {
        match self {
            Self::Hopper => Some(1 << 5),
            Self::NvSwitch3 => Some(1),
            Self::Blackwell100 | Self::Blackwell200 => None,
        }
    }
}

/// What [`Chip::boot_register`] reads once the security processor has started.
pub(crate) const BOOTED: u32 = 0xff;
