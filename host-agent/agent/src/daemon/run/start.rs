// SPDX-License-Identifier: Apache-2.0
//! Before the loop: what is declared is checked, and the log begins.

use std::process::ExitCode;

use types::Refusal;

use super::super::config::Config;
use super::super::declare::{Fronts, declare};
use super::super::paths::Paths;
use super::{DaemonArgs, LogForm};
use crate::claim::Claim;

pub(super) fn check(args: &DaemonArgs) -> ExitCode {
    let reasons = match Config::load(&args.config) {
        // Ports of guests that run already are held by their fronts: whoever asks for a check of a running host wants to
        // know about the rest.
        Ok(config) => {
            let fronts = config.guests.iter().map(|(name, guest)| (name.clone(), guest.listen));
            let running = Claim::holder(&Paths::new(&config.agent.state_dir).lock()).is_some();
            let fronts = if running { fronts.collect() } else { Fronts::new() };
            let declarations = declare(&config, &fronts);
            let declared = declarations.into_values().filter_map(|declaration| declaration.declared.spec.err());
            // Only asked for here: a guest whose pack is in the cache needs no key.
            let keys = config.buckets.iter().filter_map(|(name, bucket)| bucket.check_credentials(name).err());
            declared.flatten().chain(config.account().err()).chain(keys).collect()
        }
        Err(reasons) => reasons,
    };
    if reasons.is_empty() {
        println!("{}", if args.json { "{\"accepted\":true,\"reasons\":[]}" } else { "it can be run" });
        return ExitCode::SUCCESS;
    }
    refuse(&reasons, args.json)
}

pub(super) fn refuse(reasons: &[Refusal], json: bool) -> ExitCode {
    let mut distinct: Vec<&Refusal> = Vec::new();
    for reason in reasons {
        if !distinct.contains(&reason) {
            distinct.push(reason);
        }
    }
    if json {
        println!("{}", serde_json::json!({ "accepted": false, "reasons": distinct }));
    } else {
        for reason in distinct {
            eprintln!("refused: {reason}");
        }
    }
    ExitCode::from(2)
}

pub(super) fn start_log(form: LogForm) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CHRYSALIS_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second subscriber in one process is a test's matter: the first stays.
    let _ = match form {
        LogForm::Text => log.try_init(),
        LogForm::Json => log.json().try_init(),
    };
}
