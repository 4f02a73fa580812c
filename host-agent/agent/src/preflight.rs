// SPDX-License-Identifier: Apache-2.0
//! What a host must have, each missing thing with its fix.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use types::{QemuVersion, Refusal};

use crate::prepare::qemu_version;

#[derive(Debug, Args)]
pub(crate) struct PreflightArgs {
    /// QEMU to check.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Checks the host for TDX guests. Exit code 2 when something is missing.
#[allow(clippy::unnecessary_wraps, reason = "all commands share one signature")]
pub(crate) fn run(args: &PreflightArgs) -> anyhow::Result<ExitCode> {
    let reasons = missing(Path::new("/"), qemu_version(&args.qemu).ok());
    if args.json {
        println!("{}", serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons }));
    } else if reasons.is_empty() {
        println!("this host can run TDX guests");
    } else {
        for reason in &reasons {
            println!("missing: {reason}");
        }
    }
    Ok(if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn missing(root: &Path, qemu: Option<QemuVersion>) -> Vec<Refusal> {
    let mut reasons = Vec::new();
    let mut need = |ok: bool, code: &str, field: &str, detail: &str, fix: &str| {
        if !ok {
            reasons.push(Refusal::new(code, field, detail, fix));
        }
    };
    need(
        root.join("dev/kvm").exists(),
        "kvm_missing",
        "/dev/kvm",
        "KVM is not available",
        "enable virtualisation in the firmware and load kvm_intel",
    );
    let tdx = std::fs::read_to_string(root.join("sys/module/kvm_intel/parameters/tdx")).unwrap_or_default();
    need(
        matches!(tdx.trim(), "Y" | "1"),
        "tdx_disabled",
        "/sys/module/kvm_intel/parameters/tdx",
        "the host kernel runs no trust domains",
        "enable TDX and TME-MT in the firmware, boot a kernel with CONFIG_KVM_INTEL_TDX, set kvm_intel.tdx=1",
    );
    need(
        root.join("dev/vhost-vsock").exists(),
        "vhost_vsock_missing",
        "/dev/vhost-vsock",
        "guests cannot be reached over vsock",
        "load vhost_vsock",
    );
    need(
        root.join("var/run/tdx-qgs/qgs.socket").exists(),
        "quote_service_missing",
        "/var/run/tdx-qgs/qgs.socket",
        "no quote generation service listens",
        "install Intel's tdx-qgs and start qgsd",
    );
    match qemu {
        None => need(
            false,
            "qemu_missing",
            "qemu",
            "QEMU cannot be run",
            "install QEMU 10.1 or newer, or name it with --qemu",
        ),
        Some(version) => need(
            version >= QemuVersion { major: 10, minor: 1 },
            "qemu_too_old",
            "qemu",
            &format!("QEMU {version} has no tdx-guest object"),
            "install QEMU 10.1 or newer",
        ),
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_thing_has_its_code() {
        let root = tempfile::tempdir().unwrap();
        let codes = |qemu| missing(root.path(), qemu).into_iter().map(|r| r.code).collect::<Vec<_>>();
        assert_eq!(
            codes(None),
            ["kvm_missing", "tdx_disabled", "vhost_vsock_missing", "quote_service_missing", "qemu_missing"]
        );
        for path in ["dev/kvm", "dev/vhost-vsock", "var/run/tdx-qgs/qgs.socket"] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let parameters = root.path().join("sys/module/kvm_intel/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        std::fs::write(parameters.join("tdx"), "Y\n").unwrap();
        assert_eq!(codes(Some(QemuVersion { major: 10, minor: 0 })), ["qemu_too_old"]);
        assert!(codes(Some(QemuVersion { major: 10, minor: 1 })).is_empty());
    }
}
