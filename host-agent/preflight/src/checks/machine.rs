// SPDX-License-Identifier: Apache-2.0
//! Disk, time, ports.

use std::net::SocketAddr;

use crate::host::Host;
use crate::probes::{Answer, Question};
use crate::report::Finding;

pub(super) fn disk(host: &Host<'_>) -> Option<Finding> {
    let directory = &host.settings.state_dir;
    let source = directory.to_string_lossy();
    let free = match host.ask(&Question::FreeBytes(directory.clone())) {
        Answer::Given(text) => text.parse::<u64>().ok(),
        Answer::Failed(_) | Answer::Unasked => None,
    };
    let fix = "free disk space, or name another directory with --state-dir";
    Some(match free {
        None => Finding::unknown(&source, "the free space is not known", fix),
        Some(bytes) => {
            let found = format!("{} GiB free", bytes >> 30);
            match bytes >> 30 {
                0..5 => Finding::fail(&source, found, fix),
                5..50 => Finding::warn(&source, format!("{found}: too little for large models"), fix),
                _ => Finding::pass(&source, found),
            }
        }
    })
}

/// Certificates and revocation lists are judged by the time: a wrong clock looks like an expired machine.
pub(super) fn clock(host: &Host<'_>) -> Option<Finding> {
    let keepers =
        ["run/systemd/timesync/synchronized", "run/chrony", "run/ntpd.pid", "run/ntpsec", "run/openntpd.sock"];
    Some(match keepers.into_iter().find(|path| host.tree.exists(path)) {
        Some(path) => Finding::pass(&format!("/{path}"), "there"),
        None => Finding::warn("/run", "no service that keeps the time is running", "apt install chrony"),
    })
}

pub(super) fn clock_source(host: &Host<'_>) -> Option<Finding> {
    const PATH: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let (source, value) = (format!("/{PATH}"), host.text(PATH)?);
    Some(if value == "tsc" {
        Finding::pass(&source, value)
    } else {
        let fix = "the kernel found the processors' time unreliable: update the firmware; see dmesg | grep -i tsc";
        Finding::warn(&source, value, fix)
    })
}

pub(super) fn port(host: &Host<'_>) -> Option<Finding> {
    let listen = host.settings.listen?;
    let taken = ["proc/net/tcp", "proc/net/tcp6"].into_iter().find(|path| is_taken(host, path, listen.port()));
    Some(match taken {
        Some(path) => Finding::fail(
            &format!("/{path}"),
            format!("somebody listens at port {}", listen.port()),
            format!("find who: ss -ltnp 'sport = :{}'; or take another port", listen.port()),
        ),
        None => Finding::pass("/proc/net/tcp", format!("nobody listens at port {}", shown(listen))),
    })
}

fn shown(listen: SocketAddr) -> String {
    listen.port().to_string()
}

/// A line of `/proc/net/tcp` is `sl local:port remote:port state …`; 0A is a listener. Only the listeners' ports are kept.
fn is_taken(host: &Host<'_>, path: &str, port: u16) -> bool {
    let keep = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (index, local, _, state) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let port = local.rsplit_once(':')?.1;
        (state == "0A").then(|| format!("{index} 0:{port} 0:0000 0A"))
    };
    let lines = host.tree.lines(path, keep).unwrap_or_default();
    let ending = format!(" 0:{port:04X} 0:0000 0A");
    lines.iter().any(|line| line.ends_with(&ending))
}
