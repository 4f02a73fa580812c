// SPDX-License-Identifier: Apache-2.0
//! SIGHUP: files are read again at once, and what can't be used does not count.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tdx_sim::{Fault, SimulatedPlatform};

const PROGRAM: &str = env!("CARGO_BIN_EXE_attestation-service");
const NOW: u64 = 1_800_000_000;

/// The service, stopped when dropped.
struct Running {
    process: Child,
    metrics: String,
}

impl Running {
    fn start(store: &Path, more: &[&Path]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg("--store").arg(store).args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
        let mut process = command.args(more).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let metrics = lines.find_map(|line| line.strip_prefix("metrics on ").map(str::to_owned)).unwrap();
        // What it says must go somewhere.
        std::thread::spawn(move || lines.for_each(|line| println!("{line}")));
        Self { process, metrics }
    }

    /// Sends SIGHUP and waits until what was read of the metrics is as `expected` says.
    fn reload(&self, expected: impl Fn(&str) -> bool) {
        kill_process(Pid::from_child(&self.process), Signal::HUP).unwrap();
        self.wait(expected);
    }

    fn wait(&self, expected: impl Fn(&str) -> bool) {
        let began = Instant::now();
        loop {
            let found = self.read();
            if expected(&found) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(50), "within less than the minute of the directory: {found}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn read(&self) -> String {
        let Ok(mut stream) = TcpStream::connect(&self.metrics) else { return String::new() };
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        let read = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        if read.is_err() {
            answer.clear();
        }
        answer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Collateral of the platform, and of another kind of platform.
fn collateral() -> [(String, String); 2] {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    [None, Some(Fault::OtherFmspc)].map(|fault| {
        let json = platform.collateral(NOW, fault).unwrap().to_json();
        let fmspc = tdx_verify::Collateral::from_json(json.as_bytes()).unwrap().fmspc().iter().fold(
            String::new(),
            |mut text, byte| {
                write!(text, "{byte:02x}").unwrap();
                text
            },
        );
        (json, fmspc)
    })
}

#[test]
fn files_are_read_again_at_sighup() {
    let dir = tempfile::tempdir().unwrap();
    let (store, file, rims) = (dir.path().join("store"), dir.path().join("collateral.json"), dir.path().join("rims"));
    let init = Command::new(PROGRAM).arg("init").arg("--store").arg(&store).stdout(Stdio::null()).status().unwrap();
    assert!(init.success());
    let [(first, first_fmspc), (second, second_fmspc)] = collateral();
    assert_ne!(first_fmspc, second_fmspc);
    std::fs::write(&file, &first).unwrap();
    std::fs::create_dir(&rims).unwrap();
    let service = Running::start(&store, &["--collateral".as_ref(), &file, "--rim".as_ref(), &rims]);
    service.wait(|text| text.contains(&first_fmspc) && !text.contains(&second_fmspc));

    // Nothing is read before it is said.
    std::fs::write(&file, &second).unwrap();
    assert!(service.read().contains(&first_fmspc));
    service.reload(|text| text.contains(&second_fmspc) && !text.contains(&first_fmspc));
    service.wait(|text| count(text, "reloaded") == 1);

    // What can't be used: the others are read, this one stays.
    std::fs::write(&file, "{}").unwrap();
    service.reload(|text| count(text, "collateral_malformed") == 1);
    assert!(service.read().contains(&second_fmspc));
    std::fs::write(&file, &first).unwrap();
    std::fs::write(rims.join("rim.xml"), "no manifest").unwrap();
    service.reload(|text| count(text, "gpu_files") == 1 && text.contains(&first_fmspc));
    std::fs::remove_file(rims.join("rim.xml")).unwrap();
    service.reload(|text| count(text, "reloaded") == 2);
}

/// How often a code was counted.
fn count(metrics: &str, code: &str) -> u64 {
    let label = format!("\"{code}\"");
    let line = metrics.lines().find(|line| !line.starts_with('#') && line.contains(&label));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |number| number.parse().unwrap())
}
