// SPDX-License-Identifier: Apache-2.0
//! The two libraries say the same, above all at the edges.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use proptest::prelude::*;

use super::*;

const ALL: [Scheme; 4] = [Scheme::P256Der, Scheme::P256Fixed, Scheme::P384Der, Scheme::P384Fixed];
const MESSAGE: &[u8] = b"what was signed";
/// Order of P-256 (SEC 2, section 2.4.2) and of P-384 (section 2.5.1).
const ORDERS: [&str; 2] = [
    "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
];

/// A new key's point, and its signature over [`MESSAGE`].
fn signed(scheme: Scheme) -> (Vec<u8>, Vec<u8>) {
    let algorithm = match scheme {
        Scheme::P256Der => &ECDSA_P256_SHA256_ASN1_SIGNING,
        Scheme::P256Fixed => &ECDSA_P256_SHA256_FIXED_SIGNING,
        Scheme::P384Der => &ECDSA_P384_SHA384_ASN1_SIGNING,
        Scheme::P384Fixed => &ECDSA_P384_SHA384_FIXED_SIGNING,
    };
    let key = EcdsaKeyPair::generate(algorithm).unwrap();
    let signature = key.sign(&SystemRandom::new(), MESSAGE).unwrap();
    (key.public_key().as_ref().to_vec(), signature.as_ref().to_vec())
}

/// What both say; they must agree.
fn both(scheme: Scheme, point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    assert!(scheme.is_uncompressed(point), "only such keys reach the libraries");
    let said = native::verifies(scheme, point, message, signature);
    assert_eq!(said, portable::verifies(scheme, point, message, signature), "{scheme:?} {}", hex::encode(signature));
    assert_eq!(said, scheme.verifies(point, message, signature));
    said
}

fn number(scheme: Scheme) -> (usize, Vec<u8>) {
    match scheme {
        Scheme::P256Der | Scheme::P256Fixed => (32, hex::decode(ORDERS[0]).unwrap()),
        Scheme::P384Der | Scheme::P384Fixed => (48, hex::decode(ORDERS[1]).unwrap()),
    }
}

/// `order - value`, both big-endian and of one length.
fn minus(order: &[u8], value: &[u8]) -> Vec<u8> {
    let mut borrow = 0_i32;
    let mut digits: Vec<u8> = Vec::new();
    for (a, b) in order.iter().zip(value).rev() {
        let difference = i32::from(*a) - i32::from(*b) - borrow;
        borrow = i32::from(difference < 0);
        digits.push(u8::try_from(difference.rem_euclid(256)).unwrap());
    }
    digits.reverse();
    digits
}

/// A number in DER, in the shortest form.
fn integer(value: &[u8]) -> Vec<u8> {
    let start = value.iter().position(|byte| *byte != 0).unwrap_or(value.len() - 1);
    let mut digits = value[start..].to_vec();
    if digits[0] & 0x80 != 0 {
        digits.insert(0, 0);
    }
    [vec![2, u8::try_from(digits.len()).unwrap()], digits].concat()
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    let inner = parts.concat();
    [vec![0x30, u8::try_from(inner.len()).unwrap()], inner].concat()
}

#[test]
fn what_the_key_signed_verifies_and_nothing_else() {
    for scheme in ALL {
        let (point, signature) = signed(scheme);
        assert!(both(scheme, &point, MESSAGE, &signature), "{scheme:?}");
        assert!(!both(scheme, &point, b"another", &signature), "{scheme:?}");
        assert!(!both(scheme, &signed(scheme).0, MESSAGE, &signature), "another key: {scheme:?}");
        for at in 0..signature.len() {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert!(!both(scheme, &point, MESSAGE, &changed), "{scheme:?}: byte {at}");
            assert!(!both(scheme, &point, MESSAGE, &signature[..at]), "{scheme:?}: {at} bytes");
        }
        assert!(!both(scheme, &point, MESSAGE, &[signature.as_slice(), &[0]].concat()), "longer: {scheme:?}");
    }
}

#[test]
fn numbers_at_the_edges_are_judged_alike() {
    for (fixed, der) in [(Scheme::P256Fixed, Scheme::P256Der), (Scheme::P384Fixed, Scheme::P384Der)] {
        let (len, order) = number(fixed);
        let (point, signature) = signed(fixed);
        let (r, s) = signature.split_at(len);
        let as_der = |r: &[u8], s: &[u8]| sequence(&[integer(r), integer(s)]);
        assert!(both(der, &point, MESSAGE, &as_der(r, s)), "one signature in both forms");
        // ECDSA takes s and order - s alike; some libraries refuse the larger one.
        let other = minus(&order, s);
        assert!(both(fixed, &point, MESSAGE, &[r, &other].concat()) && both(der, &point, MESSAGE, &as_der(r, &other)));
        let (zero, one, most) = (vec![0; len], [vec![0; len - 1], vec![1]].concat(), vec![0xff; len]);
        for odd in [&zero, &one, &order, &most] {
            for (r, s) in [(r, odd.as_slice()), (odd.as_slice(), s)] {
                assert!(!both(fixed, &point, MESSAGE, &[r, s].concat()), "{fixed:?}");
                assert!(!both(der, &point, MESSAGE, &as_der(r, s)), "{der:?}");
            }
        }
    }
}

#[test]
fn only_the_shortest_der_counts() {
    for (fixed, der) in [(Scheme::P256Fixed, Scheme::P256Der), (Scheme::P384Fixed, Scheme::P384Der)] {
        let (len, _) = number(fixed);
        let (point, signature) = signed(fixed);
        let (r, s) = signature.split_at(len);
        let (r, s) = (integer(r), integer(s));
        let inner = [r.clone(), s.clone()].concat();
        let padded = [vec![2, r[1] + 1, 0], r[2..].to_vec()].concat();
        let long_length = [vec![0x30, 0x81, u8::try_from(inner.len()).unwrap()], inner.clone()].concat();
        let indefinite = [vec![0x30, 0x80], inner.clone(), vec![0, 0]].concat();
        for odd in [
            sequence(&[padded, s.clone()]),
            sequence(&[r.clone(), s.clone(), vec![2, 1, 1]]),
            sequence(std::slice::from_ref(&r)),
            long_length,
            indefinite,
            inner,
        ] {
            assert!(!both(der, &point, MESSAGE, &odd), "{der:?} {}", hex::encode(odd));
        }
    }
}

#[test]
fn keys_of_other_forms_and_off_the_curve_are_refused() {
    for scheme in ALL {
        let (point, signature) = signed(scheme);
        let half = (point.len() - 1) / 2;
        let compressed = [vec![2 + (point[2 * half] & 1)], point[1..=half].to_vec()].concat();
        for odd in [compressed, [vec![6], point[1..].to_vec()].concat(), vec![0], Vec::new(), point[1..].to_vec()] {
            assert!(!scheme.verifies(&odd, MESSAGE, &signature), "{scheme:?} {}", hex::encode(odd));
        }
        let mut off = point.clone();
        off[2 * half] ^= 1;
        assert!(!both(scheme, &off, MESSAGE, &signature), "{scheme:?}: off the curve");
        let zero = [vec![4], vec![0; 2 * half]].concat();
        assert!(!both(scheme, &zero, MESSAGE, &signature), "{scheme:?}: no point");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn digests_are_the_same(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for function in [Hash::Sha1, Hash::Sha256, Hash::Sha384] {
            prop_assert_eq!(native::digest(function, &bytes), portable::digest(function, &bytes));
        }
    }
}
