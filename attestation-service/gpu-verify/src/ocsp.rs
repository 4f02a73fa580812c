// SPDX-License-Identifier: Apache-2.0
//! OCSP answers that somebody fetched before (RFC 6960): is a certificate revoked?
//!
//! An answer counts when its `CertID` is that of the certificate, when the issuer itself or a responder with a
//! certificate of that issuer (section 4.2.2.2) signed it, and between its `thisUpdate` and `nextUpdate`.
//! A stored answer has no nonce: how old it may be is what `nextUpdate` says.

use der::{
    Decode as _, Encode as _, Header, Reader, SliceReader, Tag, TagNumber,
    asn1::{BitString, GeneralizedTime, ObjectIdentifier, OctetStringRef},
};
use ecdsa_verify::Hash;

use crate::certificate::{Cert, ECDSA_SHA384};

/// What the answers say of one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Good,
    Revoked,
    /// The responder does not know the certificate.
    Unknown,
    /// The answer's time is over, or has not begun.
    Expired,
    /// Not signed by the issuer or its responder.
    Signature,
    /// No answer is about this certificate.
    Absent,
}

/// What the answers say of one certificate, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) status: Status,
    /// Last second (since 1970) at which an answer says [`Status::Good`]; where none says it, there is no end.
    pub(crate) until: u64,
}

/// The worst that a properly signed and current answer says; a revocation is never forgotten for its age.
pub(crate) fn status(certificate: &Cert, issuer: &Cert, answers: &[Vec<u8>], now: u64) -> Said {
    let mut found = Vec::new();
    for bytes in answers.iter().filter(|bytes| bytes.len() <= MAX_ANSWER_LEN).take(MAX_ANSWERS) {
        if let Ok(answer) = Answer::parse(bytes) {
            found.extend(answer.judge(certificate, issuer, now));
        }
    }
    let order = [Status::Revoked, Status::Unknown, Status::Good, Status::Expired, Status::Signature];
    let says = |status: &Status| found.iter().any(|said: &Said| said.status == *status);
    let status = order.into_iter().find(says).unwrap_or(Status::Absent);
    let good = found.iter().filter(|said| said.status == Status::Good).map(|said| said.until);
    Said { status, until: good.max().unwrap_or(u64::MAX) }
}

struct Answer {
    signed: Vec<u8>,
    signature: Vec<u8>,
    responders: Vec<Cert>,
    singles: Vec<Single>,
}

struct Single {
    algorithm: Hash,
    name_hash: Vec<u8>,
    key_hash: Vec<u8>,
    serial: Vec<u8>,
    status: Status,
    this_update: u64,
    next_update: u64,
}

impl Answer {
    fn parse(bytes: &[u8]) -> der::Result<Self> {
        let mut reader = SliceReader::new(bytes)?;
        let basic = reader.sequence(|outer| {
            if outer.tlv_bytes()? != SUCCESSFUL {
                return Err(Tag::Enumerated.value_error().into());
            }
            inside(outer, context(0), |explicit| {
                explicit.sequence(|inner| {
                    if ObjectIdentifier::decode(inner)? != BASIC_RESPONSE {
                        return Err(Tag::ObjectIdentifier.value_error().into());
                    }
                    Ok(<&OctetStringRef>::decode(inner)?.as_bytes().to_vec())
                })
            })
        })?;
        reader.finish()?;
        let mut reader = SliceReader::new(&basic)?;
        let answer = reader.sequence(|inner| {
            let signed = inner.tlv_bytes()?.to_vec();
            let algorithm = x509_cert::spki::AlgorithmIdentifierOwned::decode(inner)?;
            if algorithm.oid != ECDSA_SHA384 {
                return Err(Tag::Sequence.value_error().into());
            }
            let signature = BitString::decode(inner)?.as_bytes().unwrap_or_default().to_vec();
            let responders = if inner.is_finished() { Vec::new() } else { inside(inner, context(0), certificates)? };
            let singles = response_data(&signed)?;
            Ok::<_, der::Error>(Self { signed, signature, responders, singles })
        })?;
        reader.finish()?;
        Ok(answer)
    }

    fn judge(&self, certificate: &Cert, issuer: &Cert, now: u64) -> Option<Said> {
        let single = self.singles.iter().find(|single| single.is_about(certificate, issuer))?;
        let until = single.next_update;
        if !self.is_authentic(issuer, now) {
            return Some(Said { status: Status::Signature, until });
        }
        let current = single.this_update <= now && now <= until;
        let status = if current || single.status == Status::Revoked { single.status } else { Status::Expired };
        Some(Said { status, until })
    }

    fn is_authentic(&self, issuer: &Cert, now: u64) -> bool {
        issuer.verifies_der(&self.signed, &self.signature)
            || self.responders.iter().any(|responder| {
                let (not_before, not_after) = responder.validity();
                let signs = responder.key_usage().is_none_or(|usage| usage.digital_signature());
                let usage =
                    responder.extension(EXTENDED_KEY_USAGE).and_then(|der| Vec::<ObjectIdentifier>::from_der(der).ok());
                (not_before..=not_after).contains(&now)
                    && signs
                    && usage.is_some_and(|purposes| purposes.contains(&OCSP_SIGNING))
                    && responder.tbs().issuer() == issuer.tbs().subject()
                    && responder.verifies_der(&self.signed, &self.signature)
                    && responder.is_signed_by(issuer)
            })
    }
}

impl Single {
    fn is_about(&self, certificate: &Cert, issuer: &Cert) -> bool {
        let name = issuer.tbs().subject().to_der().unwrap_or_default();
        self.serial == certificate.tbs().serial_number().as_bytes()
            && self.name_hash == self.algorithm.digest(&name)
            && self.key_hash == self.algorithm.digest(issuer.key())
    }
}

/// `ResponseData`: version, responder's name, time, answers, extensions.
fn response_data(bytes: &[u8]) -> der::Result<Vec<Single>> {
    let mut reader = SliceReader::new(bytes)?;
    let singles = reader.sequence(|inner| {
        if Tag::peek(inner)? == context(0) {
            return Err(Tag::Integer.value_error().into());
        }
        inner.tlv_bytes()?;
        GeneralizedTime::decode(inner)?;
        let singles = inner.sequence(|list| {
            let mut singles = Vec::new();
            while !list.is_finished() && singles.len() < MAX_ANSWERS {
                singles.push(list.sequence(single)?);
            }
            Ok::<_, der::Error>(singles)
        })?;
        if !inner.is_finished() {
            inside(inner, context(1), no_critical_extension)?;
        }
        Ok::<_, der::Error>(singles)
    })?;
    reader.finish()?;
    Ok(singles)
}

fn single<'r, R: Reader<'r>>(reader: &mut R) -> der::Result<Single> {
    let (algorithm, name_hash, key_hash, serial) = reader.sequence(|id| {
        let algorithm = x509_cert::spki::AlgorithmIdentifierOwned::decode(id)?;
        let (_, algorithm) =
            HASHES.iter().find(|(oid, _)| *oid == algorithm.oid).ok_or_else(|| Tag::ObjectIdentifier.value_error())?;
        let name = <&OctetStringRef>::decode(id)?.as_bytes().to_vec();
        let key = <&OctetStringRef>::decode(id)?.as_bytes().to_vec();
        let serial = x509_cert::serial_number::SerialNumber::<x509_cert::certificate::Rfc5280>::decode(id)?;
        Ok::<_, der::Error>((*algorithm, name, key, serial.as_bytes().to_vec()))
    })?;
    let tag = Tag::peek(reader)?;
    reader.tlv_bytes()?;
    let status = match tag {
        tag if tag == primitive(0) => Status::Good,
        tag if tag == context(1) => Status::Revoked,
        tag if tag == primitive(2) => Status::Unknown,
        other => return Err(other.value_error().into()),
    };
    let this_update = seconds(GeneralizedTime::decode(reader)?);
    // RFC 6960 lets it be absent; an answer without an end cannot be judged by its age.
    let next_update = inside(reader, context(0), |inner| GeneralizedTime::decode(inner).map(seconds))?;
    if !reader.is_finished() {
        inside(reader, context(1), no_critical_extension)?;
    }
    Ok(Single { algorithm, name_hash, key_hash, serial, status, this_update, next_update })
}

fn certificates<'r, R: Reader<'r>>(reader: &mut R) -> der::Result<Vec<Cert>> {
    reader.sequence(|list| {
        let mut found = Vec::new();
        while !list.is_finished() && found.len() < MAX_RESPONDERS {
            found.push(Cert::parse(list.tlv_bytes()?).map_err(|_| Tag::Sequence.value_error())?);
        }
        Ok(found)
    })
}

fn no_critical_extension<'r, R: Reader<'r>>(reader: &mut R) -> der::Result<()> {
    let extensions = x509_cert::ext::Extensions::decode(reader)?;
    if extensions.iter().any(|extension| extension.critical) {
        return Err(Tag::Sequence.value_error().into());
    }
    Ok(())
}

/// Reads what stands inside an element with tag `tag`.
fn inside<'r, R: Reader<'r>, T>(
    reader: &mut R,
    tag: Tag,
    read: impl FnOnce(&mut R) -> der::Result<T>,
) -> der::Result<T> {
    let header = Header::decode(reader)?;
    header.tag().assert_eq(tag)?;
    reader.read_nested(header.length(), read)
}

fn seconds(time: GeneralizedTime) -> u64 {
    time.to_unix_duration().as_secs()
}

const fn context(number: u32) -> Tag {
    Tag::ContextSpecific { constructed: true, number: TagNumber(number) }
}

const fn primitive(number: u32) -> Tag {
    Tag::ContextSpecific { constructed: false, number: TagNumber(number) }
}

/// Largest answer, in bytes.
pub const MAX_ANSWER_LEN: usize = 16 * 1024;
/// Most answers for one verification.
pub const MAX_ANSWERS: usize = 32;
const MAX_RESPONDERS: usize = 4;
/// ENUMERATED 0.
const SUCCESSFUL: &[u8] = &[0x0a, 0x01, 0x00];
const BASIC_RESPONSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const OCSP_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9");
/// Names of certificates in answers. SHA-1 stands in for no signature here.
static HASHES: [(ObjectIdentifier, Hash); 3] = [
    (ObjectIdentifier::new_unwrap("1.3.14.3.2.26"), Hash::Sha1),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"), Hash::Sha384),
];
