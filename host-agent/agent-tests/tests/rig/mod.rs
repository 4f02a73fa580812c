// SPDX-License-Identifier: Apache-2.0
//! A host in a directory: a daemon, stand-ins for what it runs, a release, a model. Everything ends with it.
#![allow(dead_code, reason = "each test uses a part")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use model::{Key, KeyName, Labels, Limits};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use types::{Document as _, MachineShape};

pub(crate) struct Rig {
    pub(crate) root: PathBuf,
    directory: tempfile::TempDir,
    daemon: Option<Child>,
    pub(crate) metrics: u16,
    model: String,
    pack: String,
    /// Guests and their lines of configuration.
    pub(crate) guests: Vec<Guest>,
    /// `drain_deadline_s` of all guests.
    pub(crate) drain: u32,
    /// More of `[agent]`.
    pub(crate) agent: String,
    /// More of `[hardware]`.
    pub(crate) hardware: String,
    /// Where the model comes from, as a list in TOML.
    pub(crate) sources: String,
    /// More sections.
    pub(crate) sections: String,
    /// What comes before the command.
    pub(crate) flags: Vec<String>,
    /// The daemon binds GPUs, in a tree of files.
    kernel: bool,
}

#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) context: u32,
    pub(crate) more: String,
}

impl Rig {
    pub(crate) fn new(guests: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("rig").tempdir().unwrap();
        let root = directory.path().to_owned();
        let (model, pack) = model(&root);
        release(&root, 1);
        programs(&root);
        // The state directory stands behind a link, as on hosts with a volume of their own for it.
        std::fs::create_dir(root.join("t")).unwrap();
        std::os::unix::fs::symlink(root.join("t"), root.join("s")).unwrap();
        let guests = guests.iter().map(|name| Guest {
            name: (*name).to_owned(),
            port: free_port(),
            context: 512,
            more: String::new(),
        });
        let guests = guests.collect();
        let sources = format!("[\"{0}/nowhere\", \"{0}/pack\"]", root.display());
        Self {
            root,
            directory,
            daemon: None,
            metrics: free_port(),
            model,
            pack,
            guests,
            drain: 3,
            agent: String::new(),
            hardware: String::new(),
            sources,
            sections: String::new(),
            flags: Vec::new(),
            kernel: false,
        }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("agent.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("c.sock")
    }

    /// Gives the rig a board with two GPUs, the first with a sound function in its group, that the daemon binds; and an
    /// image for guests with GPUs.
    pub(crate) fn with_gpus(&mut self) {
        let pci = self.root.join("tree/sys/bus/pci");
        for driver in ["vfio-pci", "nvidia", "snd_hda_intel"] {
            let driver = pci.join("drivers").join(driver);
            std::fs::create_dir_all(&driver).unwrap();
            for file in ["bind", "unbind"] {
                std::fs::write(driver.join(file), "").unwrap();
            }
        }
        std::fs::write(pci.join("drivers_probe"), "").unwrap();
        std::fs::create_dir_all(self.root.join("tree/proc/1/fd")).unwrap();
        for (address, device, class, driver, group) in BOARD {
            let place = pci.join("devices").join(address);
            std::fs::create_dir_all(&place).unwrap();
            for (file, value) in
                [("vendor", "0x10de"), ("device", device), ("class", class), ("driver_override", "(null)")]
            {
                std::fs::write(place.join(file), format!("{value}\n")).unwrap();
            }
            let link = |target: String, name| std::os::unix::fs::symlink(target, place.join(name)).unwrap();
            link(format!("../../../../kernel/iommu_groups/{group}"), "iommu_group");
            link(format!("../../drivers/{driver}"), "driver");
        }
        self.kernel = true;
        gpu_release(&self.root);
    }

    /// The driver of each device of the board, and its override.
    pub(crate) fn bindings(&self) -> Vec<(String, String)> {
        let devices = self.root.join("tree/sys/bus/pci/devices");
        let of = |address: &str| {
            let driver = std::fs::read_link(devices.join(address).join("driver")).unwrap_or_default();
            let driver = driver.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            let wanted = std::fs::read_to_string(devices.join(address).join("driver_override")).unwrap();
            (driver, wanted.trim().trim_start_matches("(null)").to_owned())
        };
        BOARD.iter().map(|(address, ..)| of(address)).collect()
    }

    /// Writes the configuration as the fields say it.
    pub(crate) fn write(&self) {
        let root = self.root.display();
        let mut text = format!(
            "[agent]\nstate_dir = \"{root}/s\"\ncontrol_socket = \"{root}/c.sock\"\nmetrics_listen = \"127.0.0.1:{}\"\n\
             retry_first_ms = 50\nretry_cap_s = 1\n{}\n[cache]\ndir = \"{root}/cache\"\nquota_gib = 1\n\
             [hardware]\nqemu = \"{root}/bin/qemu\"\nvhost_device_vsock = \"{root}/bin/vsock\"\nroot = \"{root}/tree\"\nbind_gpus = {}\n{}\n\
             [simulate]\nsimulator = \"{root}/bin/simulator\"\npki = \"{root}\"\n\
             [models.m]\nmodel = \"{}\"\npack = \"{}\"\nsources = {}\n\
             [releases.r]\nbundle = \"{root}/bundle\"\ntrust = \"{root}/trust\"\nimage = \"{root}/image\"\n\
             [services.s]\naddress = \"127.0.0.1:1\"\nspki_sha256 = \"{}\"\n",
            self.metrics,
            self.agent,
            self.kernel,
            self.hardware,
            self.model,
            self.pack,
            self.sources,
            "2".repeat(64),
        );
        for Guest { name, port, context, more } in &self.guests {
            text.push_str(&format!(
                "[guests.{name}]\nlisten = \"127.0.0.1:{port}\"\nrelease = \"r\"\nmodel = \"m\"\nservice = \"s\"\n\
                 vcpus = 2\nmemory_mib = 1024\ncontext_tokens = {context}\ndrain_deadline_s = {}\n{more}\n",
                self.drain
            ));
        }
        text.push_str(&self.sections);
        std::fs::write(self.config(), text).unwrap();
    }

    /// Starts a daemon.
    pub(crate) fn start(&mut self) {
        assert!(self.daemon.is_none());
        self.write();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.root.join("agent.log")).unwrap();
        let child = Command::new(program("agent-under-test"))
            .envs(self.kernel.then_some(("CHRYSALIS_FAKE_KERNEL", "1")))
            .args(&self.flags)
            .args(["agent", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
    }

    /// Starts another daemon if the last one ended by itself.
    pub(crate) fn keep_daemon(&mut self) {
        if self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().unwrap().is_some()) {
            self.daemon = None;
            self.start();
        }
    }

    pub(crate) fn signal_daemon(&mut self, signal: Signal) {
        let mut daemon = self.daemon.take().unwrap();
        kill(Pid::from_raw(i32::try_from(daemon.id()).unwrap()), signal).unwrap();
        daemon.wait().unwrap();
    }

    pub(crate) fn agent(&self, arguments: &[&str]) -> Output {
        Command::new(program("agent-under-test")).args(arguments).output().unwrap()
    }

    /// A command to the daemon; its exit code and reasons' codes.
    pub(crate) fn tell(&self, arguments: &[&str]) -> (i32, Vec<Value>) {
        let socket = self.socket();
        let output = self.agent(&[arguments, &["--json", "--socket", socket.to_str().unwrap()]].concat());
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code().unwrap(), document["reasons"].as_array().cloned().unwrap_or_default())
    }

    pub(crate) fn status(&self) -> Option<Value> {
        let socket = self.socket();
        let output = self.agent(&["status", "--json", "--socket", socket.to_str().unwrap()]);
        serde_json::from_slice(&output.stdout).ok()
    }

    pub(crate) fn guest(&self, name: &str) -> Value {
        let status = self.status().unwrap_or_default();
        let guests = status["guests"].as_array().cloned().unwrap_or_default();
        guests.into_iter().find(|guest| guest["name"] == name).unwrap_or_default()
    }

    /// Waits until `wanted`; shows everything if it does not come.
    pub(crate) fn wait(&self, what: &str, mut wanted: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !wanted(self) {
            if start.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.root.join("agent.log")).unwrap_or_default();
                panic!("{what} did not come.\n{:#}\n{log}\n{}", self.status().unwrap_or_default(), self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_serving(&self) {
        self.wait("serving", |rig| rig.guests.iter().all(|guest| rig.serves(&guest.name)));
    }

    pub(crate) fn serves(&self, name: &str) -> bool {
        let guest = self.guest(name);
        let port = self.guests.iter().find(|guest| guest.name == name).unwrap().port;
        guest["active"]["serving"] == true && guest["candidate"].is_null() && ask(port, "x").is_some()
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for guest in &self.guests {
            let state = self.root.join("s");
            let output = self.agent(&["logs", &guest.name, "--state-dir", state.to_str().unwrap()]);
            text.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        text
    }

    /// What the next guests do wrong, or how they call themselves.
    pub(crate) fn say(&self, file: &str, text: &str) {
        // Whole or not at all: a guest may look at this moment.
        let (path, new) = (self.root.join("bin").join(file), self.root.join("bin").join(format!("{file}.new")));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Processes of this rig, by what they are.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let root = self.root.to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<String> =
                line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            if !words.iter().any(|word| word.contains(&root)) {
                continue;
            }
            let kind = ["agent", "start", "front", "qemu", "vsock", "simulator"]
                .into_iter()
                .find(|kind| words.iter().any(|word| word == kind));
            found.push((pid, kind.unwrap_or("other").to_owned()));
        }
        found
    }

    /// Waits until exactly the processes of serving guests are left.
    pub(crate) fn assert_no_leak(&self) {
        let guests = self.guests.len();
        self.wait("exactly the processes of the guests", |rig| {
            let processes = rig.processes();
            let count = |kind: &str| processes.iter().filter(|(_, found)| found == kind).count();
            ["start", "front", "qemu", "vsock", "simulator"].iter().all(|kind| count(kind) == guests)
                && processes.len() == 5 * guests + 1
        });
        self.wait("one run directory for each guest", |rig| {
            rig.guests.iter().all(|guest| {
                let entries = std::fs::read_dir(rig.root.join("s/guests").join(&guest.name)).unwrap().flatten();
                entries.filter(|entry| entry.path().is_dir()).count() == 1
            })
        });
    }

    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics")
    }

    /// What the daemon's port for numbers answers.
    pub(crate) fn get(&self, path: &str) -> String {
        use std::io::Read as _;
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn pack_directory(&self) -> PathBuf {
        self.directory.path().join("pack")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // What was meant to outlive the daemon ends with the test.
        for _ in 0..3 {
            for (pid, _) in self.processes() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A client's connection.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn connect(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Some(Self(BufReader::new(stream)))
    }

    /// Sends a line, gives the echo: the guest's name, then the line.
    pub(crate) fn ask(&mut self, line: &str) -> Option<String> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).ok()?;
        let mut answer = String::new();
        self.0.read_line(&mut answer).ok()?;
        answer.strip_suffix('\n').map(str::to_owned)
    }
}

/// One request over a connection of its own.
pub(crate) fn ask(port: u16, line: &str) -> Option<String> {
    Client::connect(port)?.ask(line)
}

/// A port that nobody has, below those that the kernel gives to whoever asks for any (ip(7)): nobody takes it while who
/// listens there is dead.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    loop {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = 20_000 + u16::try_from(number).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn model(root: &Path) -> (String, String) {
    let (input, pack) = (root.join("files"), root.join("pack"));
    std::fs::create_dir(&input).unwrap();
    std::fs::write(input.join("weights.gguf"), vec![7; 100_000]).unwrap();
    let labels = Labels { name: "m", revision: "1", key: KeyName { id: "k".to_owned(), version: 1 } };
    let limits = Limits { object_size: 64 * 1024, segment_size: 64 * 1024 };
    model::create(&labels, &input, &Key::new(&[7; 32]), &pack, limits, &|_| ()).unwrap();
    let directory = model::Directory::open(&pack).unwrap();
    let index = model::Source::index(&directory);
    (format!("m@1:{}", index.identity), model_cache::root_of(index).unwrap().to_string())
}

/// Publishes the sample image with a root, as images for GPUs have one.
fn gpu_release(root: &Path) {
    let data = b"data and hashes";
    let digest = types::Sha256Digest::of(data);
    std::fs::write(root.join("image/rootfs"), data).unwrap();
    let list = serde_json::json!({ "files": [{ "name": "rootfs", "sha256": digest }] });
    std::fs::write(root.join("image/image.json"), list.to_string()).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let plain = sample_release::statement(sample_release::Hardware::Simulated, &[shape()], now);
    let mut subjects = plain.subject;
    let rootfs =
        release::Subject { name: "rootfs".to_owned(), digest: release::statement::SubjectDigest { sha256: digest } };
    subjects.push(rootfs);
    subjects.sort_by(|a, b| a.name.cmp(&b.name));
    let statement = release::Statement::new(subjects, plain.predicate).unwrap();
    let (bundle, trust) = sample_release::publish(&statement, now);
    std::fs::write(root.join("bundle"), bundle).unwrap();
    std::fs::write(root.join("trust"), trust.to_canonical().unwrap()).unwrap();
}

fn shape() -> MachineShape {
    let shape = "{\"vcpus\":2,\"memory_mib\":1024,\"physical_bits\":40,\"qemu\":\"10.1\",\
                 \"devices\":[\"config-disk\",\"model-disk\",\"network\",\"vsock\"]}";
    serde_json::from_str(shape).unwrap()
}

/// Publishes release number `number` of the sample image; the same number is the same release.
pub(crate) fn release(root: &Path, number: u64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let statement =
        sample_release::statement(sample_release::Hardware::Simulated, &[shape()], *START.get_or_init(|| now) - number);
    let (bundle, trust) = sample_release::publish(&statement, now);
    std::fs::write(root.join("bundle"), bundle).unwrap();
    std::fs::write(root.join("trust"), trust.to_canonical().unwrap()).unwrap();
    let image = root.join("image");
    std::fs::create_dir_all(&image).unwrap();
    for (name, bytes) in [
        ("firmware.fd", sample_release::files::firmware()),
        ("vmlinuz", sample_release::files::kernel()),
        ("initrd", sample_release::files::initrd()),
        ("cmdline", sample_release::COMMAND_LINE.as_bytes().to_vec()),
    ] {
        std::fs::write(image.join(name), bytes).unwrap();
    }
}

fn programs(root: &Path) {
    let bin = root.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in ["qemu", "vsock", "simulator"] {
        let path = bin.join(name);
        let program = program("stand-in").display().to_string();
        let text = format!("#!/bin/sh\nSTAND_IN_DIR={} exec {program} {name} \"$@\"\n", bin.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A program of this package, where cargo built it: beside the bench, or a directory above the tests.
pub(crate) fn program(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let directories = here.ancestors().skip(1).take(2);
    directories.map(|directory| directory.join(name)).find(|path| path.is_file()).unwrap()
}

/// Address, device, class, the host's driver, IOMMU group.
pub(crate) const BOARD: [(&str, &str, &str, &str, u32); 3] = [
    ("0000:17:00.0", "0x2330", "0x030200", "nvidia", 4),
    ("0000:17:00.1", "0x22bc", "0x040300", "snd_hda_intel", 4),
    ("0000:3d:00.0", "0x2330", "0x030200", "nvidia", 9),
];
static START: OnceLock<u64> = OnceLock::new();
const PATIENCE: Duration = Duration::from_secs(40);
