// SPDX-License-Identifier: Apache-2.0
//! A host for the image's own init: its disks, its vsock, a quote device that takes everything. It hears what the guest says.

use std::{
    io::{Read, Write as _},
    net::Ipv4Addr,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use types::{
    Blake3Digest, Device, Document as _, EventName, GuestConfig, HaltCode, MachineShape, ModelId, Role, Sha256Digest,
    config::{EngineSettings, Fixed, Free, Network, Policy, ServiceLink},
    shape::ShapeFacts,
};

use crate::machine::{Image, Running, machine};

/// What an init needs beside its image.
pub(crate) struct Host {
    pub(crate) image: Image,
    initrd: PathBuf,
    pub(crate) command_line: String,
    /// The disk with the image's root, where it has one.
    pub(crate) root_disk: Option<PathBuf>,
    vsock_tool: PathBuf,
}

impl Host {
    /// The image without GPUs.
    pub(crate) fn find() -> Result<Self, &'static str> {
        Self::of(Image::find()?, None)
    }

    /// The image for GPUs.
    pub(crate) fn with_root() -> Result<Self, &'static str> {
        let image = Image::with_root()?;
        let root_disk = image.kernel.with_file_name("rootfs");
        if root_disk.is_file() { Self::of(image, Some(root_disk)) } else { Err("no rootfs beside the kernel for GPUs") }
    }

    fn of(image: Image, root_disk: Option<PathBuf>) -> Result<Self, &'static str> {
        let (initrd, command_line) = (image.initrd()?, image.command_line()?);
        if !command_line.contains("chrysalis.tee=simulated") {
            return Err("the image has no simulated quote device");
        }
        Ok(Self {
            initrd,
            command_line,
            vsock_tool: vsock_tool().ok_or("vhost-device-vsock is not there")?,
            image,
            root_disk,
        })
    }

    /// Boots without firmware, which measures nothing here, and gives the guest's last status line.
    pub(crate) fn last_line(&self, extra_words: &str, config: &[u8]) -> String {
        let words = format!("{}{extra_words}", self.command_line);
        self.last_line_with(&words, config, self.root_disk.as_deref())
    }

    /// As [`Self::last_line`], with another command line and another disk for the root.
    pub(crate) fn last_line_with(&self, words: &str, config: &[u8], root_disk: Option<&Path>) -> String {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let lines = status_lines(&at("host_7001"));
        simulated_device(&at("host_7002"), config);
        let mut tool = Command::new(&self.vsock_tool);
        tool.args(["--vm", &format!("guest-cid=3,socket={},uds-path={}", at("vhost").display(), at("host").display())]);
        let _tool = Running::start(tool.stderr(std::process::Stdio::null()));
        assert!(appears(&at("vhost")), "vhost-device-vsock did not make its socket");
        std::fs::write(at("disk"), disk(config)).unwrap();
        let mut command = machine(&self.image.kernel, &self.initrd, words);
        command
            .args(["-object", "memory-backend-memfd,id=mem0,size=512M,share=on"])
            .args(["-drive", &format!("if=none,id=config,format=raw,readonly=on,file={}", at("disk").display())])
            .args(["-device", "virtio-blk-pci,drive=config,serial=chrysalis-config,disable-legacy=on"])
            .args(["-chardev", &format!("socket,id=vsock,path={}", at("vhost").display())])
            .args(["-device", "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on"]);
        command.args(root_disk.into_iter().flat_map(root_disk_options));
        assert!(Running::start(&mut command).ends(), "the guest did not end");
        let text = lines.recv_timeout(Duration::from_secs(30)).expect("status lines");
        text.lines().last().unwrap_or_default().to_owned()
    }
}

/// The halt line of a phase and a code.
pub(crate) fn halted(phase: EventName, code: HaltCode) -> String {
    format!("2 {} {}", phase.number(), code.number())
}

/// QEMU's options for the disk with the image's root.
pub(crate) fn root_disk_options(path: &Path) -> [String; 4] {
    [
        "-drive".to_owned(),
        format!("if=none,id=root,format=raw,readonly=on,file={}", path.display()),
        "-device".to_owned(),
        "virtio-blk-pci,drive=root,serial=chrysalis-root,disable-legacy=on".to_owned(),
    ]
}

/// A good configuration that names so many GPUs.
pub(crate) fn configuration(gpus: u8) -> Vec<u8> {
    let shape = ShapeFacts {
        vcpus: 1,
        memory_mib: 512,
        physical_bits: 40,
        qemu: "7.2".parse().unwrap(),
        devices: vec![Device::ConfigDisk, Device::Vsock],
    };
    let config = GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: Fixed(Role::Inference),
        shape: Policy(MachineShape::new(shape).unwrap()),
        model: Policy(ModelId::new("model", "r1", Blake3Digest::of(b"m")).unwrap()),
        service: ServiceLink { vsock_port: Free(7000), spki_sha256: Policy(Sha256Digest::of(b"k")) },
        network: Network {
            address: Free(Ipv4Addr::new(10, 0, 2, 15)),
            prefix: Free(24),
            port: Free(8443),
            client_address: Free::default(),
        },
        engine: EngineSettings {
            context_tokens: Free(512),
            threads_decode: Free(1),
            threads_prefill: Free(1),
            prompt_rows: None,
        },
        gpus: Free(gpus),
    };
    config.to_canonical().unwrap()
}

/// The raw disk: magic, length, bytes, padding.
fn disk(config: &[u8]) -> Vec<u8> {
    let mut disk = [b"CHRYCFG1", &u32::try_from(config.len()).unwrap().to_be_bytes()[..], config].concat();
    disk.resize(1 << 20, 0);
    disk
}

/// All that the guest says on the first connection.
fn status_lines(socket: &Path) -> Receiver<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let (mut guest, _) = listener.accept().unwrap();
        let mut text = String::new();
        let _ = guest.read_to_string(&mut text);
        let _ = sender.send(text);
    });
    receiver
}

/// A quote device that measured `config`, and takes every event.
fn simulated_device(socket: &Path, config: &[u8]) {
    let listener = UnixListener::bind(socket).unwrap();
    let measured = GuestConfig::mr_config_id(config);
    thread::spawn(move || {
        let (mut guest, _) = listener.accept().unwrap();
        while let Some(question) = frame(&mut guest) {
            let answer = match question["op"].as_str() {
                Some("report") => json!({ "mr_config_id": measured }),
                _ => json!({}),
            };
            let text = answer.to_string();
            let _ = guest.write_all(&[&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat());
        }
    });
}

fn frame(guest: &mut UnixStream) -> Option<Value> {
    let mut length = [0; 4];
    guest.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(length)).ok()?.min(1 << 16)];
    guest.read_exact(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn appears(path: &Path) -> bool {
    (0..600).any(|_| {
        thread::sleep(Duration::from_millis(50));
        path.exists()
    })
}

/// `CHRYSALIS_VHOST_DEVICE_VSOCK`, else the one that `image host-tool` left in the cache.
fn vsock_tool() -> Option<PathBuf> {
    let named = std::env::var_os("CHRYSALIS_VHOST_DEVICE_VSOCK").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("CHRYSALIS_CACHE").map(PathBuf::from).or_else(|| {
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).map(|dir| dir.join("chrysalis"))
    });
    let tools = cache.and_then(|cache| std::fs::read_dir(cache.join("tools")).ok()).into_iter().flatten().flatten();
    let cached = tools.map(|entry| entry.path().join("vhost-device-vsock"));
    named.into_iter().chain(cached).find(|path| path.is_file())
}
