// SPDX-License-Identifier: Apache-2.0
//! The keys that wrap keys: which are in use, and everything under another one.

use anyhow::Context as _;
use serde_json::json;
use store::{KeyStoreError, WrapError};

use super::{admin::refused, open_beside};
use crate::{
    cli::{KekCommand, StoreArgs},
    outcome::Outcome,
};

pub(super) fn run(command: &KekCommand) -> anyhow::Result<Outcome> {
    match command {
        KekCommand::Rotate(args) => rotate(args),
        KekCommand::Status(args) => {
            let in_use = open_beside(args)?.keks_in_use()?;
            Ok(Outcome::accepted(in_use.clone(), json!({ "keks": in_use })))
        }
    }
}

fn rotate(args: &StoreArgs) -> anyhow::Result<Outcome> {
    let store = open_beside(args)?;
    let mut shown = 0;
    let rewrapped = store.rewrap(|done| {
        if done.changed >= shown + 100 {
            shown = done.changed;
            eprintln!("{shown} rows wrapped");
        }
    });
    match rewrapped {
        Ok(done) => {
            let in_use = store.keks_in_use()?;
            let lines = vec![format!("{} rows wrapped anew, {} were already", done.changed, done.kept)];
            Ok(Outcome::accepted(lines, json!({ "changed": done.changed, "kept": done.kept, "keks": in_use })))
        }
        Err(error @ (KeyStoreError::OtherKek(_) | KeyStoreError::Wrap(WrapError::Open))) => Ok(refused(
            "kek_wrong",
            "kek",
            &error,
            "give each key that rows are wrapped by with --kek, the new one first",
        )),
        Err(error) => Err(error).context("not everything was wrapped anew; run it again"),
    }
}
