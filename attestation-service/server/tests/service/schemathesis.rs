// SPDX-License-Identifier: Apache-2.0
//! Schemathesis reads the service's own OpenAPI description and holds the running program against it: statuses, types
//! and schemas of answers, refusal of what is malformed, 405 for other methods, never a 500.

use crate::world;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use store::{AuditEntry, RefusalEntry, Store};
use types::Document as _;
use world::World;

/// Ends the service when the test ends, however it does.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn schemathesis_finds_nothing() {
    let Some(python) = std::env::var_os("CHRYSALIS_SCHEMATHESIS").filter(|path| !path.is_empty()) else {
        eprintln!("SKIPPED: schemathesis (run `cargo xtask schemathesis`)");
        return;
    };
    let world = World::stopped(release::Hardware::Simulated);
    // One entry behind those of three changes: the log has the tiles that the hooks ask for.
    let entry = RefusalEntry {
        schema: RefusalEntry::SCHEMA.to_owned(),
        unix: world::NOW,
        model: None,
        evidence: None,
        challenge: None,
        codes: vec!["register_mismatch".to_owned()],
    };
    Store::open(&world.store_dir()).unwrap().append_audit(&AuditEntry::Refusal(entry)).unwrap();

    let (service, address) = serve(&world);
    // It leaves files where it runs.
    let (settings, work) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/schemathesis"), world.dir.path());
    for name in ["schemathesis.toml", "hooks.py"] {
        std::fs::copy(settings.join(name), work.join(name)).unwrap();
    }
    let url = format!("https://{address}");
    let output = Command::new("python3")
        .args(["-c", "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"])
        .args(["--config-file", "schemathesis.toml", "run"])
        .arg(format!("{url}/v1/openapi.json"))
        .current_dir(work)
        .env("PYTHONPATH", python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("CHRYSALIS_SCHEMATHESIS_URL", &url)
        .env("CHRYSALIS_SCHEMATHESIS_RELEASE", world.release.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    // That it did something: some cases of each operation.
    let generated = said.lines().find_map(|line| line.trim().split_once(" generated, ")).expect(&said).0;
    assert!(generated.parse::<u32>().unwrap() >= 100, "{said}");
    eprintln!("{}", said.lines().find(|line| line.contains(" generated, ")).unwrap());
    drop(service);
}

/// The program itself, over the world's store.
fn serve(world: &World) -> (Service, String) {
    let collateral = world.dir.path().join("collateral");
    std::fs::create_dir(&collateral).unwrap();
    let ready = world.dir.path().join("ready");
    let mut command = Command::new(env!("CARGO_BIN_EXE_attestation-service"));
    command.arg("serve").arg("--store").arg(world.store_dir()).args(["--listen", "127.0.0.1:0"]);
    command.arg("--collateral-dir").arg(collateral).arg("--ready-file").arg(&ready).args(["--client-rate", "100000"]);
    let service = Service(command.env("CHRYSALIS_LOG", "warn").stdout(Stdio::null()).spawn().unwrap());
    let started = Instant::now();
    loop {
        match std::fs::read_to_string(&ready) {
            Ok(address) => return (service, address),
            Err(_) if started.elapsed() < Duration::from_secs(60) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("the service did not start: {error}"),
        }
    }
}
