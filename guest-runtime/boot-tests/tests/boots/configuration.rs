// SPDX-License-Identifier: Apache-2.0
//! Attacks 22, 25 and 26 at boot: the image's own init, a host that plays with command line and configuration. What the guest
//! says is its numeric status lines over vsock (docs/status-codes.md).

use serde_json::{Value, json};
use types::{EventName, HaltCode};

use crate::{
    host::{Host, configuration, halted},
    need,
};

#[test]
fn a_word_that_the_image_does_not_know_halts() {
    let host = need!(Host::find(), "a boot with another command line");
    let line = host.last_line(" chrysalis.shell=1", &configuration(0));
    assert_eq!(line, halted(EventName::Mounts, HaltCode::CommandLineUnknown));
}

#[test]
fn an_unknown_field_of_the_configuration_halts() {
    let host = need!(Host::find(), "a boot with an unknown field");
    let mut config: Value = serde_json::from_slice(&configuration(0)).unwrap();
    config["debug"] = json!(true);
    let line = host.last_line("", config.to_string().as_bytes());
    assert_eq!(line, halted(EventName::Configuration, HaltCode::ConfigMalformed));
}

#[test]
fn a_name_that_is_a_path_with_a_line_break_halts() {
    let host = need!(Host::find(), "a boot with a path in the configuration");
    let mut config: Value = serde_json::from_slice(&configuration(0)).unwrap();
    assert_eq!(config["model"]["name"], "model");
    config["model"]["name"] = json!("../../run/model\n--socket");
    let line = host.last_line("", config.to_string().as_bytes());
    assert_eq!(line, halted(EventName::Configuration, HaltCode::ConfigMalformed));
}

/// That the checks can fail: with a good configuration the boot goes on, to the network card that this machine lacks. By then
/// the attester, confined, has read MRCONFIGID and extended three events.
#[test]
fn a_good_configuration_is_taken() {
    let host = need!(Host::find(), "a boot with a good configuration");
    let line = host.last_line("", &configuration(0));
    assert_eq!(line, halted(EventName::Network, HaltCode::NetworkFailed));
}
