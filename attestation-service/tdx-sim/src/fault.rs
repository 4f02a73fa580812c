// SPDX-License-Identifier: Apache-2.0
//! Ways in which a platform, its collateral or its quotes can be bad.

/// One thing that is wrong. Everything else stays as on a good platform, so that a refusal has one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The PCK certificate stands on the platform CA's revocation list.
    RevokedPck,
    /// The platform CA's certificate stands on the root's revocation list.
    RevokedPlatformCa,
    /// The certificate that signs TCB info and QE identity stands on the root's revocation list.
    RevokedTcbSigner,
    /// The platform meets only a TCB level with status `OutOfDate` and an advisory.
    OutOfDateTcb,
    /// The platform meets only a TCB level with status `ConfigurationNeeded`.
    ConfigurationNeeded,
    /// The platform meets only a TCB level with status `Revoked`.
    RevokedTcb,
    /// The platform meets no TCB level at all.
    NoTcbLevel,
    /// The quoting enclave's identity has status `OutOfDate`.
    OutOfDateQe,
    /// The quoting enclave's identity has status `Revoked`.
    RevokedQe,
    /// The quoting enclave runs in debug mode and says so in its report.
    DebugQe,
    /// TCB info, QE identity and revocation lists ended before the given time.
    ExpiredCollateral,
    /// TCB info and QE identity begin after the given time.
    FutureCollateral,
    /// The TCB info was changed after it was signed.
    ForgedTcbInfo,
    /// The QE identity was changed after it was signed.
    ForgedQeIdentity,
    /// The collateral is about another FMSPC.
    OtherFmspc,
    /// Quotes come from a platform under another root with the same names.
    OtherRoot,
    /// The TD report of a quote was changed after it was signed.
    ForgedReport,
    /// The quoting enclave's report is not signed by the PCK.
    ForgedQeReport,
    /// The attestation key is not the one in the quoting enclave's report.
    ForeignAttestationKey,
    /// The TD has the DEBUG attribute.
    DebugAttribute,
    /// The TD lacks the `SEPT_VE_DISABLE` attribute.
    SeptVeEnabled,
    /// The TD can be migrated.
    MigratableAttribute,
    /// The TDX module has another signer than Intel.
    OtherModuleSigner,
    /// The two revocation lists ended before the given time.
    ExpiredLists,
    /// The TCB info ended before the given time.
    ExpiredTcbInfo,
    /// The QE identity ended before the given time.
    ExpiredQeIdentity,
    /// The PCK certificate ended before the given time.
    ExpiredPck,
    /// The collateral is about another PCE id.
    OtherPceId,
    /// The platform's TCB level is `UpToDate`, and has an advisory.
    AdvisoryUpToDate,
    /// The TCB info's levels have 15 SGX components instead of 16.
    ShortSgxComponents,
    /// The TCB info's levels have 15 TDX components instead of 16.
    ShortTdxComponents,
    /// The SGX and TDX components of the TCB info's levels are exchanged.
    SwappedComponents,
    /// The PCK certificate's array of CPU security versions has 15 bytes instead of 16.
    ShortPckSvns,
    /// The security versions of the TDX module stand in the other order in the TD report.
    SwappedTeeTcbSvns,
    /// The quote names another vendor of the quoting enclave than Intel.
    OtherQeVendor,
    /// The quoting enclave has another signer than Intel's.
    OtherQeSigner,
    /// The quoting enclave is another product of Intel's signer.
    OtherQeProduct,
    /// The TD has a reserved attribute.
    ReservedAttribute,
    /// The TD may use processor trace.
    UnexpectedXfam,
    /// The TD's XFAM lacks SSE, which every TD has.
    MissingXfam,
    /// The TDX module has attributes.
    SeamAttributes,
    /// A service TD is bound to the TD. Quotes of version 4 do not show it.
    ServiceTd,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 42] = [
        Self::RevokedPck,
        Self::RevokedPlatformCa,
        Self::RevokedTcbSigner,
        Self::OutOfDateTcb,
        Self::ConfigurationNeeded,
        Self::RevokedTcb,
        Self::NoTcbLevel,
        Self::OutOfDateQe,
        Self::RevokedQe,
        Self::DebugQe,
        Self::ExpiredCollateral,
        Self::FutureCollateral,
        Self::ForgedTcbInfo,
        Self::ForgedQeIdentity,
        Self::OtherFmspc,
        Self::OtherRoot,
        Self::ForgedReport,
        Self::ForgedQeReport,
        Self::ForeignAttestationKey,
        Self::DebugAttribute,
        Self::SeptVeEnabled,
        Self::MigratableAttribute,
        Self::OtherModuleSigner,
        Self::ExpiredLists,
        Self::ExpiredTcbInfo,
        Self::ExpiredQeIdentity,
        Self::ExpiredPck,
        Self::OtherPceId,
        Self::AdvisoryUpToDate,
        Self::ShortSgxComponents,
        Self::ShortTdxComponents,
        Self::SwappedComponents,
        Self::ShortPckSvns,
        Self::SwappedTeeTcbSvns,
        Self::OtherQeVendor,
        Self::OtherQeSigner,
        Self::OtherQeProduct,
        Self::ReservedAttribute,
        Self::UnexpectedXfam,
        Self::MissingXfam,
        Self::SeamAttributes,
        Self::ServiceTd,
    ];

    /// Its name on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RevokedPck => "revoked-pck",
            Self::RevokedPlatformCa => "revoked-platform-ca",
            Self::RevokedTcbSigner => "revoked-tcb-signer",
            Self::OutOfDateTcb => "out-of-date-tcb",
            Self::ConfigurationNeeded => "configuration-needed",
            Self::RevokedTcb => "revoked-tcb",
            Self::NoTcbLevel => "no-tcb-level",
            Self::OutOfDateQe => "out-of-date-qe",
            Self::RevokedQe => "revoked-qe",
            Self::DebugQe => "debug-qe",
            Self::ExpiredCollateral => "expired-collateral",
            Self::FutureCollateral => "future-collateral",
            Self::ForgedTcbInfo => "forged-tcb-info",
            Self::ForgedQeIdentity => "forged-qe-identity",
            Self::OtherFmspc => "other-fmspc",
            Self::OtherRoot => "other-root",
            Self::ForgedReport => "forged-report",
            Self::ForgedQeReport => "forged-qe-report",
            Self::ForeignAttestationKey => "foreign-attestation-key",
            Self::DebugAttribute => "debug-attribute",
            Self::SeptVeEnabled => "sept-ve-enabled",
            Self::MigratableAttribute => "migratable-attribute",
            Self::OtherModuleSigner => "other-module-signer",
            Self::ExpiredLists => "expired-lists",
            Self::ExpiredTcbInfo => "expired-tcb-info",
            Self::ExpiredQeIdentity => "expired-qe-identity",
            Self::ExpiredPck => "expired-pck",
            Self::OtherPceId => "other-pce-id",
            Self::AdvisoryUpToDate => "advisory-up-to-date",
            Self::ShortSgxComponents => "short-sgx-components",
            Self::ShortTdxComponents => "short-tdx-components",
            Self::SwappedComponents => "swapped-components",
            Self::ShortPckSvns => "short-pck-svns",
            Self::SwappedTeeTcbSvns => "swapped-tee-tcb-svns",
            Self::OtherQeVendor => "other-qe-vendor",
            Self::OtherQeSigner => "other-qe-signer",
            Self::OtherQeProduct => "other-qe-product",
            Self::ReservedAttribute => "reserved-attribute",
            Self::UnexpectedXfam => "unexpected-xfam",
            Self::MissingXfam => "missing-xfam",
            Self::SeamAttributes => "seam-attributes",
            Self::ServiceTd => "service-td",
        }
    }
}
