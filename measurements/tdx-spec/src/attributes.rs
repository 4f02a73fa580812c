// SPDX-License-Identifier: Apache-2.0
//! TD attributes and XFAM: the two bit masks that a TD's creator sets and that every quote carries.
//!
//! Source: Intel TDX Module v1.5 ABI Specification (348551-004US), "ATTRIBUTES" and "XFAM" in the chapter on
//! TD parameters types; Intel SDM volume 1 section 13.1 for the components behind the XFAM bits.
//! Which bits are acceptable is policy and stands elsewhere.

/// TD attributes (8 bytes, little endian).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct TdAttributes([u8; 8]);

/// Extended features allowed mask of a TD (8 bytes, little endian): the XSAVE components it may use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Xfam([u8; 8]);

macro_rules! mask_type {
    ($name:ident, $($(#[$doc:meta])* $bit:ident = $n:literal, $text:literal;)*) => {
        impl $name {
            $($(#[$doc])* pub const $bit: u64 = 1 << $n;)*

            /// Every bit that has a name here.
            pub const NAMED: u64 = 0 $(| Self::$bit)*;

            /// Wraps the bytes as they stand in a report.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 8]) -> Self {
                Self(bytes)
            }

            /// Makes the mask from its number.
            #[must_use]
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits.to_le_bytes())
            }

            /// The mask as a number.
            #[must_use]
            pub const fn bits(self) -> u64 {
                u64::from_le_bytes(self.0)
            }

            /// True when every bit of `mask` is set.
            #[must_use]
            pub const fn contains(self, mask: u64) -> bool {
                self.bits() & mask == mask
            }

            /// The bits outside `mask`: what a reader with that allow-list must refuse.
            #[must_use]
            pub const fn outside(self, mask: u64) -> u64 {
                self.bits() & !mask
            }

            /// Names of the bits that are set in `bits`, lowest first; reserved bits appear as `bit N`.
            #[must_use]
            pub fn names(bits: u64) -> Vec<String> {
                (0..u64::BITS)
                    .filter(|n| bits >> n & 1 == 1)
                    .map(|n| match n {
                        $($n => $text.to_owned(),)*
                        _ => format!("bit {n}"),
                    })
                    .collect()
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x}: {})"), self.bits(), Self::names(self.bits()).join(", "))
            }
        }
    };
}

mask_type! { TdAttributes,
    /// The TD is debuggable: the host reads and writes its memory and registers.
    DEBUG = 0, "DEBUG";
    /// The TD takes part in HGS+ profiling.
    HGS_PLUS_PROF = 4, "HGS_PLUS_PROF";
    /// The TD takes part in performance profiling.
    PERF_PROF = 5, "PERF_PROF";
    /// The TD takes part in platform telemetry.
    PMT_PROF = 6, "PMT_PROF";
    /// Defence against single-stepping, based on instruction counts.
    ICSSD = 16, "ICSSD";
    /// The report covers the service TDs' extended structure (SERVTD_EXT).
    SERVTD_EXT = 17, "SERVTD_EXT";
    /// Linear address space separation.
    LASS = 27, "LASS";
    /// EPT violations do not become #VE: without it the host can inject exceptions on page access.
    SEPT_VE_DISABLE = 28, "SEPT_VE_DISABLE";
    /// The TD may be migrated, by a service TD.
    MIGRATABLE = 29, "MIGRATABLE";
    /// Protection keys for supervisor pages.
    PKS = 30, "PKS";
    /// Key locker.
    KL = 31, "KL";
    /// The TD is a TDX Connect provisioning agent.
    TPA = 62, "TPA";
    /// The TD may use performance monitoring counters.
    PERFMON = 63, "PERFMON";
}

mask_type! { Xfam,
    /// x87 state.
    X87 = 0, "X87";
    /// SSE state.
    SSE = 1, "SSE";
    /// AVX state.
    AVX = 2, "AVX";
    /// AVX-512 mask registers.
    AVX512_OPMASK = 5, "AVX512_OPMASK";
    /// Upper halves of ZMM0 to ZMM15.
    AVX512_ZMM_HI256 = 6, "AVX512_ZMM_HI256";
    /// ZMM16 to ZMM31.
    AVX512_HI16_ZMM = 7, "AVX512_HI16_ZMM";
    /// Processor trace.
    PT = 8, "PT";
    /// User protection keys.
    PKRU = 9, "PKRU";
    /// Control-flow enforcement, user.
    CET_U = 11, "CET_U";
    /// Control-flow enforcement, supervisor.
    CET_S = 12, "CET_S";
    /// User interrupts.
    UINTR = 14, "UINTR";
    /// Last branch records.
    LBR = 15, "LBR";
    /// AMX tile configuration.
    AMX_TILECFG = 17, "AMX_TILECFG";
    /// AMX tile data.
    AMX_TILEDATA = 18, "AMX_TILEDATA";
    /// Advanced performance extensions.
    APX = 19, "APX";
}

const _: () = assert!(size_of::<TdAttributes>() == 8 && align_of::<TdAttributes>() == 1);
const _: () = assert!(size_of::<Xfam>() == 8 && align_of::<Xfam>() == 1);
const _: () = assert!(TdAttributes::NAMED == 0xC000_0000_F803_0071);
const _: () = assert!(Xfam::NAMED == 0x000E_DBE7);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_bits_stay_visible() {
        let attributes = TdAttributes::from_bytes([0x03, 0, 0, 0x10, 0, 0, 0, 0]);
        assert!(attributes.contains(TdAttributes::DEBUG | TdAttributes::SEPT_VE_DISABLE));
        assert!(!attributes.contains(TdAttributes::PKS));
        assert_eq!(attributes.outside(TdAttributes::SEPT_VE_DISABLE), 3);
        assert_eq!(TdAttributes::names(3), ["DEBUG", "bit 1"]);
    }
}
