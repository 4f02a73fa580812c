// SPDX-License-Identifier: Apache-2.0
//! Signing quotes: SGX devices, Intel's quote generation service, the cache of certificates.

use vfio::NodeKind;

use super::usable_node;
use crate::host::Host;
use crate::pccs::word;
use crate::probes::{Answer, Question};
use crate::report::Finding;

pub(super) fn sgx_devices(host: &Host<'_>) -> Option<Finding> {
    let missing = "enable SGX in the firmware; the kernel needs CONFIG_X86_SGX";
    let forbidden = "apt install tdx-qgs sets groups for them: sgx, sgx_prv";
    let nodes = ["dev/sgx_enclave", "dev/sgx_provision"];
    Finding::all(nodes.map(|path| usable_node(host, path, missing, forbidden)).to_vec())
}

pub(super) fn service(host: &Host<'_>) -> Option<Finding> {
    let socket = &host.settings.quote_socket;
    let (source, path) = (socket.to_string_lossy(), socket.to_string_lossy());
    Some(match host.tree.node(path.trim_start_matches('/')) {
        None => match port_of_service(host) {
            Some(line) => Finding::fail(
                "/etc/qgs.conf",
                format!("{line}: it listens on vsock, not at {source}"),
                "remove the port from /etc/qgs.conf, systemctl restart qgsd",
            ),
            None => Finding::fail(
                &source,
                "missing",
                "install Intel's tdx-qgs, systemctl enable --now qgsd; or name its socket with --quote-socket",
            ),
        },
        Some(node) if node.kind != NodeKind::Socket => {
            Finding::fail(&source, "no socket", "name the service's socket with --quote-socket")
        }
        Some(_) => match host.ask(&Question::QuoteService(socket.clone())) {
            Answer::Given(versions) if versions.is_empty() => Finding::warn(
                &source,
                "listens, but does not say what its enclaves are: it is old, or they do not load",
                "update tdx-qgs; journalctl -u qgsd says why",
            ),
            Answer::Given(versions) => Finding::pass(&source, versions),
            Answer::Failed(reason) => Finding::fail(
                &source,
                reason,
                "systemctl restart qgsd; journalctl -u qgsd says why; if permission is missing: socket_mode = 0660 in /etc/qgs.conf and usermod -aG qgsd USER",
            ),
            Answer::Unasked => Finding::unknown(&source, "there, but not asked", "run it on the host itself"),
        },
    })
}

pub(super) fn pccs(host: &Host<'_>) -> Option<Finding> {
    let address = host.settings.pccs.clone()?;
    Some(match host.ask(&Question::Pccs(address.clone())) {
        Answer::Given(found) => Finding::pass(&address, found),
        // Quotes are made without; whoever takes the collateral from there refuses them.
        Answer::Failed(reason) if reason.starts_with(word::STALE) => {
            Finding::warn(&address, reason, pccs_refresh(&address))
        }
        Answer::Failed(reason) => {
            let fix = pccs_fix(&reason);
            Finding::fail(&address, reason, fix)
        }
        Answer::Unasked => Finding::unknown(&address, "not asked", "run it on the host itself"),
    })
}

/// What helps, by the first word of a reason and, for a status, its number.
fn pccs_fix(reason: &str) -> &'static str {
    let first = reason.split_once(':').map_or(reason, |(first, _)| first);
    let (kind, status) = first.split_once(' ').unwrap_or((first, ""));
    match (kind, status) {
        (word::NAME, _) => "name it as --pccs HOST:PORT, by a name that this machine's resolver knows",
        (word::REFUSED, _) => {
            "systemctl enable --now pccs; journalctl -u pccs says why it does not listen; PCCS has port 8081"
        }
        (word::UNREACHABLE | word::TIMEOUT, _) => {
            "check the way to it and its firewall; if it is up, journalctl -u pccs says what it waits for: Intel's service, as a rule"
        }
        (word::TLS, _) => {
            "name the port on which PCCS speaks HTTPS, 8081 as a rule; its key and certificate are below \
             /opt/intel/sgx-dcap-pccs/ssl_key (pccs-configure makes them)"
        }
        (word::STATUS, "401" | "403") => {
            "PCCS lets everybody read: something before it asks for a password, or Intel's service refused PCCS's own key (pccs-configure)"
        }
        (word::STATUS, "404") => {
            "it is no PCCS, or one from before version 4 of Intel's interface and TDX: update sgx-dcap-pccs"
        }
        (word::STATUS, "500" | "502" | "503" | "504") => {
            "PCCS does not reach Intel's service: proxy and ApiKey in /opt/intel/sgx-dcap-pccs/config/default.json (pccs-configure); \
             journalctl -u pccs"
        }
        (word::STATUS, _) => "journalctl -u pccs says why; name PCCS itself: redirections are not followed",
        _ => "something else than PCCS answers there: name PCCS's port, 8081 as a rule",
    }
}

/// The API specification for PCCS, "Refresh through HTTP request".
fn pccs_refresh(address: &str) -> String {
    format!(
        "if this machine's clock is right (`date -u`): curl -k -X POST -H 'admin-token: TOKEN' \
         https://{address}/sgx/certification/v4/refresh (with PCCS's administrator token; where it is OFFLINE, pccsadmin.py put); \
         journalctl -u pccs says why it did not by itself"
    )
}

/// The `port = …` line of the service's configuration, which makes it listen on vsock alone.
fn port_of_service(host: &Host<'_>) -> Option<String> {
    let keep = |line: &str| {
        let name = line.split_once('=')?.0.trim();
        (name == "port").then(|| line.to_owned())
    };
    host.tree.lines("etc/qgs.conf", keep).ok()?.into_iter().next()
}
