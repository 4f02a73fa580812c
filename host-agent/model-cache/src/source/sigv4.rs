// SPDX-License-Identifier: Apache-2.0
//! AWS Signature Version 4 in a header, for GET without a body: "Authenticating Requests: Using the Authorization Header"
//! in the API reference of Amazon S3.

use core::fmt::Write as _;

use aws_lc_rs::hmac;
use types::Sha256Digest;
use zeroize::Zeroizing;

/// A key of a store. Both secrets are overwritten when it goes; of the token, which is sent, the request has copies.
#[derive(PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: Zeroizing<String>,
    /// Of temporary keys: sent along with each request.
    pub(crate) token: Option<Zeroizing<String>>,
}

/// For what a signature holds, beside its day.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    /// `s3`, but for published examples.
    pub(crate) service: &'a str,
}

/// A moment as signatures write it: `20130524T000000Z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(String);

impl Stamp {
    /// Of seconds since 1970; years 0 to 9999.
    pub(crate) fn of(seconds: i64) -> Option<Self> {
        let at = time::OffsetDateTime::from_unix_timestamp(seconds).ok()?;
        let year = u16::try_from(at.year()).ok().filter(|year| *year <= 9999)?;
        let (month, day) = (u8::from(at.month()), at.day());
        Some(Self(format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", at.hour(), at.minute(), at.second())))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn day(&self) -> &str {
        self.0.split('T').next().unwrap_or_default()
    }
}

/// The value of `Authorization`. `path` is encoded as by [`encode`] and is sent as it is, without a query; `headers` have
/// names in small letters and are all that is signed.
pub(crate) fn authorization(
    keys: &Keys,
    scope: Scope<'_>,
    stamp: &Stamp,
    path: &str,
    headers: &[(&str, &str)],
) -> String {
    let mut headers = headers.to_vec();
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let signed = names.join(";");
    let mut canonical = format!("GET\n{path}\n\n");
    for (name, value) in &headers {
        let words: Vec<&str> = value.split_ascii_whitespace().collect();
        // Writing to a text does not fail.
        let _ = writeln!(canonical, "{name}:{}", words.join(" "));
    }
    let _ = write!(canonical, "\n{signed}\n{EMPTY_SHA256}");
    let within = format!("{}/{}/{}/aws4_request", stamp.day(), scope.region, scope.service);
    let text = format!("{ALGORITHM}\n{}\n{within}\n{}", stamp.0, Sha256Digest::of(canonical.as_bytes()));
    let signature = mac(signing_key(keys, scope, stamp).as_slice(), text.as_bytes());
    let signature = Sha256Digest::from_bytes(*signature);
    format!("{ALGORITHM} Credential={}/{within}, SignedHeaders={signed}, Signature={signature}", keys.id)
}

/// A key of an object as it stands in a request: everything but letters, digits, `-._~` and `/` as `%XX`.
pub(crate) fn encode(key: &str) -> String {
    let mut encoded = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn signing_key(keys: &Keys, scope: Scope<'_>, stamp: &Stamp) -> Zeroizing<[u8; 32]> {
    let first = Zeroizing::new(["AWS4", keys.secret.as_str()].concat());
    let mut key = mac(first.as_bytes(), stamp.day().as_bytes());
    for part in [scope.region, scope.service, "aws4_request"] {
        key = mac(key.as_slice(), part.as_bytes());
    }
    key
}

/// AWS-LC overwrites the state of its keys.
fn mac(key: &[u8], text: &[u8]) -> Zeroizing<[u8; 32]> {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let mut bytes = Zeroizing::new([0; 32]);
    bytes.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    bytes
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// SHA-256 of nothing: the body of a GET.
pub(crate) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(keys: &Keys, service: &str, at: i64, path: &str, headers: &[(&str, &str)]) -> String {
        let stamp = Stamp::of(at).unwrap();
        let mut headers = headers.to_vec();
        headers.push(("x-amz-date", stamp.as_str()));
        let scope = Scope { region: "us-east-1", service };
        let value = authorization(keys, scope, &stamp, &encode(path), &headers);
        value.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    fn keys(id: &str, secret: &str) -> Keys {
        Keys { id: id.to_owned(), secret: Zeroizing::new(secret.to_owned()), token: None }
    }

    /// "Example: GET Object" of the S3 reference.
    #[test]
    fn the_example_of_the_s3_reference() {
        let keys = keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let stamp = Stamp::of(1_369_353_600).unwrap();
        assert_eq!(stamp.as_str(), "20130524T000000Z");
        let headers = [
            ("range", "bytes=0-9"),
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-date", stamp.as_str()),
            ("x-amz-content-sha256", EMPTY_SHA256),
        ];
        let scope = Scope { region: "us-east-1", service: "s3" };
        assert_eq!(
            authorization(&keys, scope, &stamp, "/test.txt", &headers),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// The cases of AWS's test suite for Signature Version 4 that are a GET without a query.
    #[test]
    fn the_cases_of_the_test_suite() {
        let keys = keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let case = |path: &str, more: &[(&str, &str)]| {
            let headers = [&[("host", "example.amazonaws.com")], more].concat();
            signature(&keys, "service", 1_440_938_160, path, &headers)
        };
        let unreserved = "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let trimmed = [("my-header1", " value1"), ("my-header2", " \"a   b   c\"")];
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: [Case<'_>; 5] = [
            ("/", &[], "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            (unreserved, &[], "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"),
            ("/\u{1234}", &[], "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
            ("/example space/", &[], "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"),
            ("/", &trimmed, "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"),
        ];
        for (path, more, expected) in cases {
            assert_eq!(case(path, more), expected, "{path} {more:?}");
        }
    }

    #[test]
    fn moments_are_written_in_the_calendar_and_absurd_ones_not_at_all() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (1_709_251_199, "20240229T235959Z"),
        ] {
            assert_eq!(Stamp::of(seconds).unwrap().as_str(), text);
        }
        assert_eq!((Stamp::of(i64::MAX), Stamp::of(-62_198_755_200)), (None, None));
    }

    #[test]
    fn keys_of_objects_are_encoded_once_and_slashes_stay() {
        assert_eq!(encode("packs/a b+c%20/*'(é)"), "packs/a%20b%2Bc%2520/%2A%27%28%C3%A9%29");
    }
}
