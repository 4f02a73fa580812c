// SPDX-License-Identifier: Apache-2.0
//! Engine and API, started as init starts them and confined as they confine themselves, get at neither the quote device nor the
//! attester's keys. Each probe is a process of its own: this binary starts itself again. Every probe is shown to succeed
//! where it may, so that its failure elsewhere is the confinement's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]
#![allow(unsafe_code, reason = "tracing and taking descriptors have no wrappers here")]

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{IoSliceMut, Read as _, Seek as _, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Command, exit},
    time::Duration,
};

use attester_protocol::{ControlAnswer, ControlRequest, call};
use init::programs;
use linux_sys::{
    landlock::{Access, Reach},
    mounts,
    process::{End, Program, start, wait_for},
};
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};
use tee::{DeviceError, QuoteDevice};
use types::{Hex32, Sha384Digest};

/// What a process tries.
const DEVICE: [&str; 1] = ["device"];
const KEYS: [&str; 4] = ["memory file", "memory", "trace", "descriptor"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    Killed,
}

const DONE: i32 = 7;
const REFUSED: i32 = 8;
const PATIENCE: Duration = Duration::from_secs(120);

/// A quote device that is a node which gives nothing.
struct StandIn(#[allow(dead_code, reason = "open, as a device is")] File);

impl QuoteDevice for StandIn {
    fn mr_config_id(&mut self) -> Result<Sha384Digest, DeviceError> {
        Ok(Sha384Digest::ZERO)
    }

    fn extend_rtmr3(&mut self, _: &Sha384Digest) -> Result<(), DeviceError> {
        Err(DeviceError::Answer("no device"))
    }

    fn quote(&mut self, _: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
        Err(DeviceError::Answer("no device"))
    }
}

/// Not a test by itself: the inside of a process. Its words stand behind the test's name.
#[test]
fn inside() {
    let words: Vec<String> = std::env::args().skip_while(|word| word != "probe").skip(1).collect();
    let [confined, probe, device, pid, address, socket] = words.as_slice() else { return };
    let (pid, address): (i32, usize) = (pid.parse().unwrap(), address.parse().unwrap());
    match confined.as_str() {
        "attester" => {
            let device = OpenOptions::new().read(true).write(true).open(device).unwrap();
            // Holds its keys until its control socket is closed.
            let _ = attester::run(StandIn(device));
            exit(DONE);
        }
        "attester, memory not locked" => {
            let device = OpenOptions::new().read(true).write(true).open(device).unwrap();
            // As `run`, but for the lock.
            linux_sys::memory::forbid_dumps().unwrap();
            let control = UnixStream::from(linux_sys::descriptors::inherited(attester_protocol::CONTROL_FD).unwrap());
            let listener =
                UnixListener::from(linux_sys::descriptors::inherited(attester_protocol::SERVING_FD).unwrap());
            let keys = attester::Keys::generate().unwrap();
            attester::confine().unwrap();
            let _ = attester::serve(StandIn(device), keys, control, listener);
            exit(DONE);
        }
        "as attester" => attester::confine().unwrap(),
        "serve" => serve::confine().unwrap(),
        "engine" => {
            engine_process::confine(engine_process::Stage::Load).unwrap();
            engine_process::confine(engine_process::Stage::Serve).unwrap();
        }
        "loading engine" => engine_process::confine(engine_process::Stage::Load).unwrap(),
        "not yet" => {}
        other => panic!("unknown confinement {other}"),
    }
    let done = match probe.as_str() {
        "device" => OpenOptions::new().read(true).write(true).open(device).is_ok(),
        "memory file" => File::open(format!("/proc/{pid}/mem")).is_ok_and(|mut memory| {
            memory.seek(SeekFrom::Start(address as u64)).is_ok() && memory.read_exact(&mut [0; 32]).is_ok()
        }),
        "memory" => {
            let mut bytes = [0; 32];
            let there = RemoteIoVec { base: address, len: bytes.len() };
            process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut bytes)], &[there]).is_ok()
        }
        // SAFETY: plain numbers. The tracer's end lets the traced process go on.
        "trace" => unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) == 0 },
        "descriptor" => take_descriptor(pid, attester_protocol::CONTROL_FD),
        "socket" => UnixStream::connect(socket).is_ok(),
        other => panic!("unknown probe {other}"),
    };
    exit(if done { DONE } else { REFUSED });
}

fn take_descriptor(pid: i32, number: i32) -> bool {
    // SAFETY: plain numbers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: plain numbers.
    process >= 0 && unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) } >= 0
}

/// An attester that runs, and what there is of it to get at.
struct Rig {
    directory: tempfile::TempDir,
    attester: i32,
    control: UnixStream,
    /// Where in its memory the public half of the instance key lies: beside the secret half, in one object.
    address: usize,
}

impl Rig {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The words of a process.
    fn words(&self, confined: &str, probe: &str) -> Vec<OsString> {
        let (device, socket) = (self.path("device"), self.path("socket"));
        words(confined, probe, &device, self.attester, self.address, &socket)
    }

    /// What comes of a probe in a process that is started like this.
    fn attempt(&self, program: Program<'_>, confined: &str, probe: &str) -> Outcome {
        let exe = executable();
        let program = with_libraries(Program { path: &exe, arguments: self.words(confined, probe), ..program });
        match wait_for(start(program).unwrap(), PATIENCE).unwrap() {
            Some(End::Exit(DONE)) => Outcome::Done,
            Some(End::Exit(REFUSED)) => Outcome::Refused,
            Some(End::Signal(libc::SIGSYS)) => Outcome::Killed,
            other => panic!("{confined}, {probe}: {other:?}"),
        }
    }

    /// What comes of a probe in a process that nothing confines.
    fn as_root(&self, probe: &str) -> Outcome {
        let status = Command::new(executable()).args(self.words("not yet", probe)).output().unwrap().status;
        match status.code() {
            Some(DONE) => Outcome::Done,
            Some(REFUSED) => Outcome::Refused,
            other => panic!("root, {probe}: {other:?}"),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let _ = wait_for(self.attester, PATIENCE);
    }
}

fn words(confined: &str, probe: &str, device: &Path, pid: i32, address: usize, socket: &Path) -> Vec<OsString> {
    let own = ["inside", "--exact", "--nocapture", "--test-threads=1", "probe", confined, probe];
    let numbers = [device.into(), pid.to_string().into(), address.to_string().into(), socket.into()];
    own.into_iter().map(OsString::from).chain(numbers).collect()
}

fn executable() -> String {
    std::env::current_exe().unwrap().into_os_string().into_string().unwrap()
}

/// The programs of an image are static; this one loads libraries, as the programs of a developer do.
fn with_libraries(mut program: Program<'_>) -> Program<'_> {
    for path in ["/lib", "/lib64", "/usr/lib"] {
        program.reach.paths.push((path.into(), Access::Execute));
    }
    program.reach.paths.push(("/etc/ld.so.cache".into(), Access::Read));
    program
}

/// A socket that serve has as its third descriptor.
fn drain() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

fn serve_program() -> Program<'static> {
    programs::serve(8443, Vec::new(), drain(), None, false)
}

fn engine_program() -> Program<'static> {
    programs::engine("", Vec::new(), false)
}

/// An attester with a node as its device, started as init starts it; `None` where this machine does not let it be.
fn rig() -> Option<Rig> {
    // SAFETY: a plain call.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED: starting processes as other users needs root");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let (device, socket) = (directory.path().join("device"), directory.path().join("socket"));
    File::create_new(&device).unwrap();
    let attester = programs::attester(Vec::new(), false);
    // As the device of real guests is handed over.
    mounts::give(&device, attester.uid, attester.gid, 0o600).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    mounts::give(&socket, 0, serve_program().gid, 0o660).unwrap();
    let (mut control, theirs) = UnixStream::pair().unwrap();
    let exe = executable();
    let start_attester = |role: &str, locks_memory| {
        let descriptors = vec![theirs.try_clone().unwrap().into(), listener.try_clone().unwrap().into()];
        let usual = programs::attester(descriptors, false);
        let arguments = words(role, "none", &device, 0, 0, &socket);
        let mut program = Program { path: &exe, arguments, locks_memory, ..usual };
        program.reach.paths.push((device.clone(), Access::Device));
        start(with_libraries(program))
    };
    // In a container root may not raise the limit of locked memory: what is locked is not what is tried here.
    let started = start_attester("attester", true).or_else(|_| start_attester("attester, memory not locked", false));
    let attester = match started {
        Ok(pid) => pid,
        Err(error) => {
            println!("SKIPPED: no process can be started as init does it ({error})");
            return None;
        }
    };
    drop((theirs, listener));
    let Ok(ControlAnswer::Report { instance_key, .. }) = call(&mut control, 1, &ControlRequest::Report {}) else {
        // A checkout in somebody's own directory is not to be passed by others.
        println!("SKIPPED: another user cannot reach this test's program");
        let _ = wait_for(attester, PATIENCE);
        return None;
    };
    let address = find(attester, &instance_key);
    Some(Rig { directory, attester, control, address })
}

/// Looks through a process's memory, as only root can.
fn find(pid: i32, key: &Hex32) -> usize {
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    for (range, _) in maps.lines().filter_map(|line| line.split_once(" rw")) {
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (usize::from_str_radix(from, 16).unwrap(), usize::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; to - from];
        let read = memory.seek(SeekFrom::Start(from as u64)).and_then(|_| memory.read_exact(&mut bytes));
        let at = bytes.windows(32).position(|window| window == key.as_bytes());
        if let (Ok(()), Some(at)) = (read, at) {
            return from + at;
        }
    }
    panic!("the key is not in the memory of the attester");
}

#[test]
fn engine_and_api_get_at_neither_the_quote_device_nor_the_keys() {
    let Some(rig) = rig() else { return };
    // The probes work: for root all of them, and the device for the attester, also when it has confined itself.
    for probe in DEVICE.into_iter().chain(KEYS).chain(["socket"]) {
        assert_eq!(rig.as_root(probe), Outcome::Done, "root: {probe}");
    }
    let attester = || {
        let mut program = Program { locks_memory: false, ..programs::attester(Vec::new(), false) };
        program.reach.paths.push((rig.path("device"), Access::Device));
        program
    };
    for confined in ["not yet", "as attester"] {
        assert_eq!(rig.attempt(attester(), confined, "device"), Outcome::Done, "{confined}");
    }
    // User, Landlock and file modes alone: what a process can do before it confines itself.
    for probe in DEVICE.into_iter().chain(KEYS) {
        assert_eq!(rig.attempt(serve_program(), "not yet", probe), Outcome::Refused, "serve: {probe}");
        assert_eq!(rig.attempt(engine_program(), "not yet", probe), Outcome::Refused, "engine: {probe}");
    }
    // Its own filter on top. An engine is told that no file can be opened for reading; all else kills.
    for probe in DEVICE.into_iter().chain(KEYS) {
        assert_eq!(rig.attempt(serve_program(), "serve", probe), Outcome::Killed, "serve: {probe}");
        let engine = if probe == "memory file" { Outcome::Refused } else { Outcome::Killed };
        assert_eq!(rig.attempt(engine_program(), "engine", probe), engine, "engine: {probe}");
    }
    // The API alone may speak to the attester.
    assert_eq!(rig.attempt(serve_program(), "serve", "socket"), Outcome::Done);
    assert_eq!(rig.attempt(engine_program(), "not yet", "socket"), Outcome::Refused);
    assert_eq!(rig.attempt(engine_program(), "engine", "socket"), Outcome::Killed);
}

/// Each of the two that keep the device from other processes does so without the other.
#[test]
fn the_device_s_mode_and_landlock_each_refuse_it() {
    let Some(rig) = rig() else { return };
    let everything =
        || Reach { paths: vec![("/".into(), Access::Device), ("/".into(), Access::Execute)], ..Reach::default() };
    let free = |program: fn() -> Program<'static>| Program { reach: everything(), ..program() };
    for program in [serve_program, engine_program] {
        assert_eq!(rig.attempt(free(program), "not yet", "device"), Outcome::Refused);
    }
    std::fs::set_permissions(rig.path("device"), std::fs::Permissions::from_mode(0o666)).unwrap();
    for program in [serve_program, engine_program] {
        assert_eq!(rig.attempt(free(program), "not yet", "device"), Outcome::Done);
        assert_eq!(rig.attempt(program(), "not yet", "device"), Outcome::Refused);
    }
}
