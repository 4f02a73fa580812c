// SPDX-License-Identifier: Apache-2.0
//! Signing quotes: SGX devices, Intel's quote generation service, the cache of certificates.

use vfio::NodeKind;

use super::usable_node;
use crate::host::Host;
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
    let fix = "systemctl restart pccs; it needs its own key for Intel's service (pccs-configure)";
    Some(match host.ask(&Question::Tcp(address.clone())) {
        Answer::Given(_) => Finding::pass(&address, "takes connections"),
        Answer::Failed(reason) => Finding::fail(&address, reason, fix),
        Answer::Unasked => Finding::unknown(&address, "not asked", "run it on the host itself"),
    })
}

/// The `port = …` line of the service's configuration, which makes it listen on vsock alone.
fn port_of_service(host: &Host<'_>) -> Option<String> {
    let keep = |line: &str| {
        let name = line.split_once('=')?.0.trim();
        (name == "port").then(|| line.to_owned())
    };
    host.tree.lines("etc/qgs.conf", keep).ok()?.into_iter().next()
}
