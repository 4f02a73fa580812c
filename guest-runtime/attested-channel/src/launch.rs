// SPDX-License-Identifier: Apache-2.0
//! What was launched, as one digest: the name that a receipt has for it.

use tdx_spec::{Quote, QuoteError};
use types::{Registers, Sha256Digest, Sha384Digest};

/// SHA-256("chrysalis/launch/v1" ‖ MRTD ‖ RTMR0 ‖ RTMR1 ‖ RTMR2), 48 bytes each: the registers that a release explains for
/// a machine shape. It establishes nothing of the boot (RTMR3) or of the configuration (MRCONFIGID).
#[must_use]
pub fn launch_digest(registers: &Registers) -> Sha256Digest {
    let Registers { mr_td, rtmr_0, rtmr_1, rtmr_2, .. } = registers;
    of_parts(mr_td, rtmr_0, rtmr_1, rtmr_2)
}

/// What a quote says. Nobody has verified its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// As [`launch_digest`] gives it.
    pub launch: Sha256Digest,
    /// REPORTDATA.
    pub report_data: [u8; 64],
}

impl Quoted {
    /// Reads a quote, with or without padding behind it.
    ///
    /// # Errors
    /// [`QuoteError`] names rule and field.
    pub fn read(quote: &[u8]) -> Result<Self, QuoteError> {
        let (quote, _) = Quote::parse_prefix(quote)?;
        let report = quote.body.report();
        let [mr_td, rtmr_0, rtmr_1, rtmr_2] =
            [report.mr_td, report.rtmr_0, report.rtmr_1, report.rtmr_2].map(Sha384Digest::from_bytes);
        Ok(Self { launch: of_parts(&mr_td, &rtmr_0, &rtmr_1, &rtmr_2), report_data: report.report_data })
    }
}

fn of_parts(mr_td: &Sha384Digest, rtmr_0: &Sha384Digest, rtmr_1: &Sha384Digest, rtmr_2: &Sha384Digest) -> Sha256Digest {
    Sha256Digest::of_parts(&[
        b"chrysalis/launch/v1",
        mr_td.as_bytes(),
        rtmr_0.as_bytes(),
        rtmr_1.as_bytes(),
        rtmr_2.as_bytes(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quote of version 4 whose registers are each full of one byte, without a signature.
    fn quote(mr_td: u8, rtmrs: [u8; 4], report_data: u8) -> Vec<u8> {
        let mut bytes = vec![0; 48 + 584 + 4];
        bytes[0] = 4;
        bytes[4] = 0x81;
        // Offsets in the body of TDX 1.0 (appendix A.3.2): MRTD 136, RTMR0 328, REPORTDATA 520.
        bytes[48 + 136..48 + 184].fill(mr_td);
        for (place, value) in (0..).zip(rtmrs) {
            let start = 48 + 328 + 48 * place;
            bytes[start..start + 48].fill(value);
        }
        bytes[48 + 520..48 + 584].fill(report_data);
        bytes
    }

    #[test]
    fn the_launch_is_four_registers_and_no_other() {
        let of = |mr_td, rtmrs| Quoted::read(&quote(mr_td, rtmrs, 9)).unwrap().launch;
        let base = of(1, [2, 3, 4, 5]);
        let same = |byte| Sha384Digest::from_bytes([byte; 48]);
        let registers = Registers {
            mr_td: same(1),
            rtmr_0: same(2),
            rtmr_1: same(3),
            rtmr_2: same(4),
            rtmr_3: same(7),
            mr_config_id: same(7),
            mr_owner: same(7),
            mr_owner_config: same(7),
        };
        assert_eq!(launch_digest(&registers), base);
        for other in [of(0, [2, 3, 4, 5]), of(1, [0, 3, 4, 5]), of(1, [2, 0, 4, 5]), of(1, [2, 3, 0, 5])] {
            assert_ne!(other, base);
        }
        assert_eq!(of(1, [2, 3, 4, 0]), base);
        assert_eq!(Quoted::read(&quote(1, [2, 3, 4, 5], 9)).unwrap().report_data, [9; 64]);
    }

    #[test]
    fn what_is_no_quote_has_no_launch() {
        let good = quote(1, [2, 3, 4, 5], 9);
        assert!(Quoted::read(&good[..good.len() - 1]).is_err());
        assert!(Quoted::read(b"").is_err());
        assert!(Quoted::read(&[good.as_slice(), &[0; 100]].concat()).is_ok());
    }
}
