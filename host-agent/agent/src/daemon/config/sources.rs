// SPDX-License-Identifier: Apache-2.0
//! `[buckets.NAME]`, and addresses of packs that may name one.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use model_cache::{Bucket, BucketStyle, Source, SourceAddressError};
use serde::Deserialize;
use types::Refusal;

/// A bucket of an S3-compatible store, read by signed requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BucketSection {
    /// `https://HOST[:PORT]`.
    pub(crate) endpoint: String,
    /// The region that signatures are made for.
    pub(crate) region: String,
    /// A file with the key. It is never in this file.
    pub(crate) credentials: PathBuf,
    /// Its name, where it is not that of the section.
    pub(crate) bucket: Option<String>,
    /// Where the name stands in a request.
    #[serde(default)]
    pub(crate) style: Style,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Style {
    #[default]
    Path,
    VirtualHost,
}

impl BucketSection {
    fn bucket(&self, name: &str) -> Bucket {
        Bucket {
            section: format!("buckets.{name}"),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            name: self.bucket.clone().unwrap_or_else(|| name.to_owned()),
            style: match self.style {
                Style::Path => BucketStyle::Path,
                Style::VirtualHost => BucketStyle::VirtualHost,
            },
            credentials: self.credentials.clone(),
        }
    }

    /// What is wrong with the section `[buckets.NAME]`.
    pub(super) fn check(&self, name: &str) -> Option<Refusal> {
        let error = self.bucket(name).check().err()?;
        Some(refuse(&format!("buckets.{name}"), &error))
    }

    /// Whether the file of credentials can be used by who asks.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_credentials(&self, name: &str) -> Result<(), Refusal> {
        self.bucket(name).check_credentials()
    }
}

/// A source: as [`Source::parse`] reads it, or `s3://NAME[/PREFIX]` of a section of `buckets`.
///
/// # Errors
/// With `field`, or that of the bucket.
pub(crate) fn source(
    buckets: &BTreeMap<String, BucketSection>,
    address: &str,
    field: &str,
    authorities: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<Source, Refusal> {
    let Some(rest) = address.strip_prefix("s3://") else {
        return Source::parse(address, authorities).map_err(|error| refuse(field, &error));
    };
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(section) = buckets.get(name) else {
        let rule = "no section of buckets has the name behind s3://";
        return Err(Refusal::new("config_value", field, rule, "add [buckets.NAME], or correct the name"));
    };
    let bucket = section.bucket(name);
    Source::bucket(&bucket, prefix, authorities).map_err(|error| match error {
        SourceAddressError::Bucket { .. } => refuse(&bucket.section, &error),
        _ => refuse(field, &error),
    })
}

fn refuse(field: &str, error: &SourceAddressError) -> Refusal {
    let (field, fix) = match error {
        SourceAddressError::Bucket { field: inner, .. } => (format!("{field}.{inner}"), "correct the value"),
        SourceAddressError::Authorities(_) => {
            ("cache.authorities".to_owned(), "name a PEM file with certificates that https sources are judged by")
        }
        SourceAddressError::Form | SourceAddressError::Prefix => (field.to_owned(), "correct the address"),
    };
    Refusal::new("config_value", &field, error.to_string(), fix)
}
