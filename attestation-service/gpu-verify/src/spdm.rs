// SPDX-License-Identifier: Apache-2.0
//! The report of a device: an SPDM 1.1 `GET_MEASUREMENTS` request and its `MEASUREMENTS` response, as they went
//! over the wire (DMTF DSP0274 1.1, clause "`GET_MEASUREMENTS` request and `MEASUREMENTS` response messages").
//!
//! The form only: that a device signed it is shown by [`crate::VerifiedGpu`] alone.

use std::collections::BTreeMap;

use crate::{
    cursor::{Cursor, Parsed, ReportMalformed},
    opaque::Opaque,
};

/// A parsed report. Every byte of it belongs to exactly one field.
#[derive(Debug, Clone)]
pub struct SpdmReport {
    /// The requester's nonce.
    pub nonce: [u8; 32],
    /// The responder's own nonce.
    pub responder_nonce: [u8; 32],
    /// Values by SPDM index, from 1.
    pub measurements: BTreeMap<u8, Measurement>,
    /// What the device says of itself.
    pub(crate) opaque: Opaque,
    /// Number of bytes that the signature covers: request and response up to the signature.
    signed_len: usize,
    /// r and s, 48 bytes each, big-endian.
    pub(crate) signature: [u8; SIGNATURE_LEN],
}

/// One measurement block (DSP0274 1.1, tables "Measurement block format" and "DMTF measurement specification format").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// `DMTFSpecMeasurementValueType`: bit 7 for raw bytes, the rest for what is measured.
    pub value_type: u8,
    /// The value, at most [`MAX_VALUE_LEN`] bytes.
    pub value: Vec<u8>,
}

impl SpdmReport {
    /// Parses exactly the bytes of a report.
    ///
    /// # Errors
    /// [`ReportMalformed`] names the field. Trailing bytes, blocks out of order or twice, and values that the
    /// document reserves are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportMalformed> {
        if bytes.len() > MAX_REPORT_LEN {
            return Err(ReportMalformed::new("report", format!("has more than {MAX_REPORT_LEN} bytes")));
        }
        let mut input = Cursor::new(bytes);
        let (nonce, slot) = request(&mut input)?;
        let (blocks, record) = response_header(&mut input, slot)?;
        let measurements = measurements(record, blocks)?;
        let responder_nonce = input.array("response.nonce")?;
        let opaque_len = usize::from(input.u16("response.opaque_length")?);
        if opaque_len > MAX_OPAQUE_LEN {
            return Err(ReportMalformed::new("response.opaque_length", format!("more than {MAX_OPAQUE_LEN}")));
        }
        let opaque = Opaque::parse(input.take(opaque_len, "response.opaque_data")?)?;
        let signature = input.array("response.signature")?;
        input.finish("report")?;
        let signed_len = bytes.len().saturating_sub(SIGNATURE_LEN);
        Ok(Self { nonce, responder_nonce, measurements, opaque, signed_len, signature })
    }

    /// The part of `bytes` (those that were parsed) that the signature covers.
    pub(crate) fn signed<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(..self.signed_len).unwrap_or_default()
    }
}

/// Table "`GET_MEASUREMENTS` request message format": all measurements, signed.
fn request(input: &mut Cursor<'_>) -> Parsed<([u8; 32], u8)> {
    input.exactly(SPDM_1_1, "request.spdm_version")?;
    input.exactly(GET_MEASUREMENTS, "request.code")?;
    input.exactly(SIGNATURE_REQUESTED, "request.param1")?;
    input.exactly(ALL_MEASUREMENTS, "request.param2")?;
    let nonce = input.array("request.nonce")?;
    let slot = input.u8("request.slot_id")?;
    if slot > MAX_SLOT {
        return Err(ReportMalformed::new("request.slot_id", format!("must be at most {MAX_SLOT}, found {slot}")));
    }
    Ok((nonce, slot))
}

/// Table "Successful `MEASUREMENTS` response message format", up to the measurement record.
fn response_header<'a>(input: &mut Cursor<'a>, slot: u8) -> Parsed<(u8, &'a [u8])> {
    input.exactly(SPDM_1_1, "response.spdm_version")?;
    input.exactly(MEASUREMENTS, "response.code")?;
    input.exactly(0, "response.param1")?;
    input.exactly(slot, "response.param2")?;
    let blocks = input.u8("response.number_of_blocks")?;
    let len = input.u24("response.measurement_record_length")?;
    Ok((blocks, input.take(len, "response.measurement_record")?))
}

fn measurements(record: &[u8], blocks: u8) -> Parsed<BTreeMap<u8, Measurement>> {
    let mut input = Cursor::new(record);
    let mut found = BTreeMap::new();
    let mut last = 0;
    for _ in 0..blocks {
        let index = input.u8("measurement.index")?;
        if index <= last {
            let rule = format!("indices rise from 1, found {index} after {last}");
            return Err(ReportMalformed::new("measurement.index", rule));
        }
        last = index;
        found.insert(index, block(&mut input, index)?);
    }
    input.finish("response.measurement_record")?;
    if found.is_empty() {
        return Err(ReportMalformed::new("response.number_of_blocks", "must not be 0"));
    }
    Ok(found)
}

fn block(input: &mut Cursor<'_>, index: u8) -> Parsed<Measurement> {
    let field = |name: &str| format!("measurement[{index}].{name}");
    input.exactly(DMTF_MEASUREMENT, &field("specification"))?;
    let len = usize::from(input.u16(&field("size"))?);
    let mut inner = Cursor::new(input.take(len, &field("value"))?);
    let value_type = inner.u8(&field("value_type"))?;
    let value_len = usize::from(inner.u16(&field("value_size"))?);
    if value_len == 0 || value_len > MAX_VALUE_LEN {
        let rule = format!("must be 1 to {MAX_VALUE_LEN}, found {value_len}");
        return Err(ReportMalformed::new(field("value_size"), rule));
    }
    let value = inner.take(value_len, &field("value"))?.to_vec();
    inner.finish(&field("size"))?;
    Ok(Measurement { value_type, value })
}

/// Largest report, in bytes. Real ones have about 4,300.
pub const MAX_REPORT_LEN: usize = 32 * 1024;
/// Largest value of one measurement.
pub const MAX_VALUE_LEN: usize = 64;
/// ECDSA with P-384: r and s as they are, 48 bytes each.
pub(crate) const SIGNATURE_LEN: usize = 96;
/// DSP0274: `OpaqueLength` is at most 1,024.
const MAX_OPAQUE_LEN: usize = 1024;
const SPDM_1_1: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
const SIGNATURE_REQUESTED: u8 = 1;
const ALL_MEASUREMENTS: u8 = 0xff;
const MAX_SLOT: u8 = 7;
const DMTF_MEASUREMENT: u8 = 1;
