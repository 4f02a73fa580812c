// SPDX-License-Identifier: Apache-2.0
//! The real collector against libraries that replay evidence and failures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::symlink, net::UnixStream, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use gpu_protocol::{CallError, Collected, FailureKind, GpuFailure, SET_READY, collect, set_ready};
use gpu_standin::{Attempt, Device, FILE, Script};
use gpu_verify::{Architecture, DeviceEvidence, GpuAnchors, GpuAppraisal, GpuPolicy, Requirement, Rim};
use types::{GpuDriver, Hex32};

const NONCE: [u8; 32] = [7; 32];

/// A collector with libraries of its own.
struct World {
    directory: tempfile::TempDir,
    process: Child,
    socket: UnixStream,
}

impl World {
    fn of(script: &Script) -> Self {
        Self::with(script, &[("libnvidia-ml.so.1", standin()), ("libnvidia-nscq.so.2", standin())])
    }

    /// The process that lets the GPUs work.
    fn ready(script: &Script) -> Self {
        Self::start(script, &[("libnvidia-ml.so.1", standin())], SET_READY)
    }

    fn with(script: &Script, libraries: &[(&str, PathBuf)]) -> Self {
        Self::start(script, libraries, "")
    }

    fn start(script: &Script, libraries: &[(&str, PathBuf)], argument: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, target) in libraries {
            symlink(target, directory.path().join(name)).unwrap();
        }
        let ready = directory.path().join("ready");
        fs::write(&ready, "").unwrap();
        let script = Script { ready: Some(ready), ..script.clone() };
        let file = directory.path().join("script.json");
        fs::write(&file, serde_json::to_vec(&script).unwrap()).unwrap();
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // The socket arrives as standard input and becomes descriptor 3, as init hands it over.
        let process = Command::new("sh")
            .args(["-c", "exec \"$0\" $1 3<&0 </dev/null", env!("CARGO_BIN_EXE_gpu-collector"), argument])
            .env_clear()
            .env("LD_LIBRARY_PATH", directory.path())
            .env(FILE, &file)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        Self { directory, process, socket }
    }

    fn collect(&mut self, gpus: u8, switches: u8) -> Result<Collected, CallError> {
        collect(&mut self.socket, Hex32::new(NONCE), gpus, switches)
    }

    fn failure(&mut self, gpus: u8, switches: u8) -> GpuFailure {
        match self.collect(gpus, switches) {
            Err(CallError::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// What the driver was told, line by line.
    fn told(&self) -> String {
        fs::read_to_string(self.directory.path().join("ready")).unwrap()
    }

    /// Closes the socket; the process must end by itself and well.
    fn end(mut self) {
        drop(self.socket);
        assert!(self.process.wait().unwrap().success());
    }
}

/// Built beside the program: cargo gives libraries of this kind no hash.
fn standin() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_gpu-collector"));
    let found = program.parent().unwrap().join("deps/libgpu_standin.so");
    assert!(found.exists(), "{}", found.display());
    found
}

fn device(uuid: &str) -> Device {
    Device {
        uuid: uuid.into(),
        report: format!("report of {uuid}").into(),
        chain: format!("chain of {uuid}").into(),
        architecture: 9,
        report_size: None,
        chain_size: None,
    }
}

fn good(gpus: usize) -> Script {
    Script {
        gpus: (0..gpus).rev().map(|number| device(&format!("GPU-{number:08x}"))).collect(),
        switches: Vec::new(),
        driver_version: "550.163.01".into(),
        state: [1, 0],
        settings: [1, 0, 0],
        fail: BTreeMap::new(),
        count: None,
        nonce: Some(NONCE),
        ready: None,
        tries: None,
        ready_state: 1,
    }
}

fn failing(call: &str, code: i32) -> Script {
    Script { fail: BTreeMap::from([(call.to_owned(), code)]), ..good(2) }
}

#[test]
fn all_devices_are_collected_and_then_let_work() {
    let mut script = good(16);
    script.switches = (0..4).map(|number| device(&format!("SWX-{number:012x}"))).collect();
    let mut world = World::of(&script);
    let collected = world.collect(16, 4).unwrap();
    assert_eq!(collected.gpus.len(), 16);
    assert_eq!(collected.gpus[0].report.as_slice(), b"report of GPU-0000000f");
    assert_eq!(collected.switches[3].chain.as_slice(), b"chain of SWX-000000000003");
    let driver =
        GpuDriver { version: "550.163.01".into(), confidential: true, dev_tools: false, protected_pcie: false };
    assert_eq!(collected.driver, driver);
    let evidence = collected.into_evidence(1, Hex32::new([1; 32]), 16, 4).unwrap();
    assert_eq!(evidence.reports[0].uuid, "GPU-00000000");
    // Who reads what devices say lets none of them work.
    let refused = set_ready(&mut world.socket);
    assert!(matches!(refused, Err(CallError::Failed(GpuFailure { kind: FailureKind::Order, .. }))), "{refused:?}");
    assert_eq!(world.told(), "");
    world.end();
    let mut world = World::ready(&script);
    assert_eq!(world.failure(16, 4).kind, FailureKind::Order);
    set_ready(&mut world.socket).unwrap();
    assert_eq!(world.told(), "1\n");
    world.end();
}

#[test]
fn an_argument_that_is_not_known_ends_it() {
    for argument in ["--collect", "--set-ready --set-ready"] {
        let mut world = World::start(&good(1), &[], argument);
        assert!(!world.process.wait().unwrap().success(), "{argument}");
    }
}

#[test]
fn the_drivers_statement_is_the_worse_of_two() {
    for (state, settings, expected) in [
        ([0, 0], [0, 0, 0], (false, false, false)),
        ([1, 0], [0, 0, 0], (false, false, false)),
        ([1, 1], [1, 0, 0], (true, true, false)),
        ([1, 0], [1, 1, 0], (true, true, false)),
        ([0, 0], [0, 0, 1], (true, false, true)),
    ] {
        let mut world = World::of(&Script { state, settings, ..good(1) });
        let GpuDriver { version: _, confidential, dev_tools, protected_pcie } = world.collect(1, 0).unwrap().driver;
        assert_eq!((confidential, dev_tools, protected_pcie), expected, "{state:?} {settings:?}");
        world.end();
    }
}

#[test]
fn every_failing_call_is_named_with_its_code() {
    let driver = [
        ("nvmlInit_v2", 9),
        ("nvmlSystemGetDriverVersion", 1),
        ("nvmlSystemGetConfComputeState", 3),
        ("nvmlSystemGetConfComputeSettings", 25),
        ("nvmlDeviceGetCount_v2", 999),
    ];
    let devices = [
        ("nvmlDeviceGetHandleByIndex_v2", 4),
        ("nvmlDeviceGetUUID", 999),
        ("nvmlDeviceGetArchitecture", 2),
        ("nvmlDeviceGetConfComputeGpuAttestationReport", 3),
        ("nvmlDeviceGetConfComputeGpuCertificate", 10),
    ];
    let kinds = driver.map(|case| (case, FailureKind::Driver)).into_iter();
    for ((call, code), kind) in kinds.chain(devices.map(|case| (case, FailureKind::Evidence))) {
        let mut world = World::of(&failing(call, code));
        let failure = world.failure(2, 0);
        assert_eq!(failure.kind, kind, "{call}");
        assert!(failure.detail.ends_with(&format!("{call} gave {code}")), "{failure}");
        world.end();
    }
}

/// NVML_ERROR_GPU_IS_LOST in the middle: the second device, after the first gave its report.
#[test]
fn a_device_that_is_lost_in_the_middle_is_named() {
    let mut world = World::of(&failing("nvmlDeviceGetConfComputeGpuAttestationReport 1", 15));
    let failure = world.failure(2, 0);
    let detail = "gpu 1: nvmlDeviceGetConfComputeGpuAttestationReport gave 15";
    assert_eq!(failure, GpuFailure::new(FailureKind::Evidence, detail));
    world.end();
}

#[test]
fn other_numbers_of_devices_are_refused() {
    for (count, asked) in [(1, 2), (3, 2), (0, 1), (u32::MAX, 2)] {
        let mut world = World::of(&Script { count: Some(count), ..good(2) });
        assert_eq!(world.failure(asked, 0).kind, FailureKind::Count, "{count}");
        world.end();
    }
    let mut world = World::of(&good(1));
    for (gpus, switches) in [(0, 0), (17, 0), (1, 17)] {
        assert_eq!(world.failure(gpus, switches).kind, FailureKind::Order);
    }
    // None of the switches that the bus has.
    assert_eq!(world.failure(1, 4).kind, FailureKind::Count);
    world.end();
}

#[test]
fn what_breaks_a_limit_is_refused() {
    let cases: [fn(&mut Device); 5] = [
        |device| device.report_size = Some(0x2001),
        |device| device.report_size = Some(u32::MAX),
        |device| device.chain_size = Some(0x1401),
        |device| device.uuid = "x".repeat(96),
        |device| device.architecture = 8,
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let mut script = good(1);
        case(&mut script.gpus[0]);
        let mut world = World::of(&script);
        let failure = world.failure(1, 0);
        assert_eq!(failure.kind, FailureKind::Evidence, "case {number}: {failure}");
        assert!(failure.detail.contains("breaks its limit"), "case {number}: {failure}");
        world.end();
    }
    let mut world = World::of(&Script { driver_version: "5".repeat(80), ..good(1) });
    assert_eq!(world.failure(1, 0).kind, FailureKind::Driver);
    world.end();
    for size in [0x2001, u32::MAX] {
        let switch = Device { report_size: Some(size), ..device("SWX-000000000000") };
        let mut world = World::of(&Script { switches: vec![switch], ..good(1) });
        assert_eq!(world.failure(1, 1).kind, FailureKind::Evidence, "{size}");
        world.end();
    }
}

#[test]
fn readiness_that_does_not_come_is_a_failure() {
    // NVML_ERROR_NO_PERMISSION: what the driver says to anybody but an administrator.
    let scripts = [failing("nvmlSystemSetConfComputeGpusReadyState", 4), Script { ready_state: 0, ..good(1) }];
    for script in scripts {
        let mut world = World::ready(&script);
        let failed = set_ready(&mut world.socket);
        assert!(matches!(failed, Err(CallError::Failed(GpuFailure { kind: FailureKind::Driver, .. }))), "{failed:?}");
        world.end();
    }
}

#[test]
fn missing_libraries_and_symbols_are_named() {
    let mut world = World::with(&good(1), &[]);
    let failure = world.failure(1, 0);
    assert_eq!(failure.kind, FailureKind::Driver);
    assert!(failure.detail.contains("libnvidia-ml.so.1"), "{failure}");
    world.end();
    for symbol in ["nvmlInit_v2", "nvmlSystemSetConfComputeGpusReadyState", "nvmlDeviceGetConfComputeGpuCertificate"] {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("library");
        fs::write(&library, without(&fs::read(standin()).unwrap(), symbol)).unwrap();
        let mut world = World::with(&good(1), &[("libnvidia-ml.so.1", library)]);
        let failure = world.failure(1, 0);
        let detail = format!("libnvidia-ml.so.1 has no symbol {symbol}");
        assert_eq!(failure, GpuFailure::new(FailureKind::Driver, &detail));
        world.end();
    }
    // Without the library for switches, GPUs can be collected; switches cannot.
    let mut world = World::with(&good(1), &[("libnvidia-ml.so.1", standin())]);
    assert_eq!(world.collect(1, 0).unwrap().gpus.len(), 1);
    assert_eq!(world.failure(1, 1).kind, FailureKind::Fabric);
    world.end();
}

/// The library with another name in place of the symbol: its hash still leads there, its name does not match.
fn without(library: &[u8], symbol: &str) -> Vec<u8> {
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let mut changed = library.to_vec();
    let places: Vec<_> = library.windows(name.len()).enumerate().filter(|(_, found)| *found == name).collect();
    assert!(!places.is_empty(), "{symbol}");
    for (at, _) in places {
        changed[at + 1] = b'x';
    }
    changed
}

/// NVIDIA's libraries try to start helpers and to speak to daemons: that fails, and they go on. The rest ends the process.
#[test]
fn a_library_cannot_do_what_it_has_no_business_doing() {
    for attempt in [Attempt::Program, Attempt::Socket] {
        let mut world = World::of(&Script { tries: Some(attempt), ..good(1) });
        assert_eq!(world.collect(1, 0).unwrap().gpus.len(), 1, "{attempt:?}");
        world.end();
    }
    for attempt in [Attempt::File, Attempt::ExecutableMemory] {
        let mut world = World::of(&Script { tries: Some(attempt), ..good(1) });
        assert!(matches!(world.collect(1, 0), Err(CallError::Frame(_))), "{attempt:?}");
        assert_eq!(world.process.wait().unwrap().signal(), Some(libc::SIGSYS), "{attempt:?}");
    }
}

#[test]
fn a_frame_that_is_no_request_ends_it() {
    let mut world = World::of(&good(1));
    std::io::Write::write_all(&mut world.socket, b"\0\0\0\x02{}").unwrap();
    assert!(!world.process.wait().unwrap().success());
}

/// NVIDIA's own library has every symbol, and where there is no driver it says so, under the filter. `CHRYSALIS_NVML` names it: the
/// file of the package that the image's lock has.
#[test]
fn the_real_library_is_understood() {
    let Some(library) = std::env::var_os("CHRYSALIS_NVML") else {
        println!("SKIPPED: NVIDIA's library (CHRYSALIS_NVML names none)");
        return;
    };
    if Path::new("/dev/nvidiactl").exists() {
        println!("SKIPPED: NVIDIA's library on a machine without a driver (this one has one)");
        return;
    }
    let mut world = World::with(&good(1), &[("libnvidia-ml.so.1", library.into())]);
    // NVML_ERROR_DRIVER_NOT_LOADED.
    assert_eq!(world.failure(1, 0), GpuFailure::new(FailureKind::Driver, "nvmlInit_v2 gave 9"));
    world.end();
}

/// A real H100's evidence goes through the program unchanged and is accepted with its manifests.
#[test]
fn real_evidence_is_replayed_and_accepted() {
    let vectors = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    let nvidia = vectors.join("nvidia");
    if !nvidia.exists() {
        println!("SKIPPED: evidence of a real H100 ({})", nvidia.display());
        return;
    }
    let read = |name: &str| fs::read(nvidia.join(name)).unwrap();
    let report = hex::decode(String::from_utf8(read("h100_545.00_report.txt")).unwrap().trim()).unwrap();
    let chain = read("h100_545.00_chain.txt");
    // GET_MEASUREMENTS (DSP0274 1.1 table 32): four bytes, then the nonce.
    let nonce: [u8; 32] = report[4..36].try_into().unwrap();
    let gpu = Device { report: report.clone(), chain: chain.clone(), ..device("GPU-11111111-2222") };
    let mut world = World::of(&Script { gpus: vec![gpu], nonce: Some(nonce), ..good(0) });
    // A device has no report for another nonce.
    assert_eq!(world.failure(1, 0).kind, FailureKind::Evidence);
    let collected = collect(&mut world.socket, Hex32::new(nonce), 1, 0).unwrap();
    let found = &collected.gpus[0];
    assert_eq!((found.report.as_slice(), found.chain.as_slice()), (report.as_slice(), chain.as_slice()));
    let at = 1_733_011_200;
    let rims = ["h100_545.00_driver_rim.swidtag", "h100_545.00_vbios_rim.swidtag"]
        .map(|name| Rim::verify(&read(name), &GpuAnchors::nvidia(), &[], Requirement::Optional, at));
    let verdict = GpuAppraisal {
        gpus: &[DeviceEvidence { report: found.report.as_slice(), chain: found.chain.as_slice() }],
        switches: &[],
        rims: &rims,
        ocsp: &[],
        nonce: Some(&nonce),
        driver_state: None,
        policy: &GpuPolicy { architectures: vec![Architecture::Hopper], ..GpuPolicy::files_only() },
        anchors: &GpuAnchors::nvidia(),
        now: at,
    }
    .appraise();
    assert!(verdict.is_accepted(), "{:#?}", verdict.reasons());
    world.end();
}
