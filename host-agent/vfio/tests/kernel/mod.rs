// SPDX-License-Identifier: Apache-2.0
//! A tree whose files behave like the kernel's: what is written has its effect.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vfio::{HostTree, SysfsWriter, TreeError};

pub(crate) struct Kernel {
    directory: tempfile::TempDir,
    left: Cell<Option<usize>>,
    written: Cell<usize>,
    refusals: RefCell<Vec<(String, String)>>,
}

impl Kernel {
    pub(crate) fn new(drivers: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for driver in drivers {
            let driver = root.join("sys/bus/pci/drivers").join(driver);
            std::fs::create_dir_all(&driver).unwrap();
            std::fs::write(driver.join("bind"), "").unwrap();
            std::fs::write(driver.join("unbind"), "").unwrap();
        }
        std::fs::write(root.join("sys/bus/pci/drivers_probe"), "").unwrap();
        std::fs::create_dir_all(root.join("sys/bus/pci/devices")).unwrap();
        std::fs::create_dir_all(root.join("proc/1/fd")).unwrap();
        Self { directory, left: Cell::new(None), written: Cell::new(0), refusals: RefCell::new(Vec::new()) }
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn add(
        &self,
        address: &str,
        vendor: u16,
        device: u16,
        class: u32,
        driver: Option<&str>,
        group: Option<u32>,
    ) {
        std::fs::create_dir_all(self.device(address)).unwrap();
        self.set(address, "vendor", &format!("{vendor:#06x}\n"));
        self.set(address, "device", &format!("{device:#06x}\n"));
        self.set(address, "class", &format!("{class:#08x}\n"));
        self.set(address, "driver_override", "(null)\n");
        if let Some(group) = group {
            let link = self.device(address).join("iommu_group");
            std::os::unix::fs::symlink(format!("../../../../kernel/iommu_groups/{group}"), link).unwrap();
        }
        if let Some(driver) = driver {
            self.attach(address, driver);
        }
    }

    pub(crate) fn set(&self, address: &str, file: &str, value: &str) {
        std::fs::write(self.device(address).join(file), value).unwrap();
    }

    pub(crate) fn unplug(&self, address: &str) {
        std::fs::remove_dir_all(self.device(address)).unwrap();
    }

    pub(crate) fn nvidia_minor(&self, address: &str, minor: u32) {
        let directory = self.root().join("proc/driver/nvidia/gpus").join(address);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("information"), format!("Model: \t x\nDevice Minor: \t {minor}\n")).unwrap();
    }

    pub(crate) fn open_by(&self, pid: u32, node: &str) {
        let directory = self.root().join(format!("proc/{pid}/fd"));
        std::fs::create_dir_all(&directory).unwrap();
        std::os::unix::fs::symlink(node, directory.join("7")).unwrap();
    }

    pub(crate) fn close(&self, pid: u32) {
        std::fs::remove_dir_all(self.root().join(format!("proc/{pid}"))).unwrap();
    }

    /// The process dies after so many writes: no later one has an effect.
    pub(crate) fn die_after(&self, writes: usize) {
        self.left.set(Some(writes));
    }

    pub(crate) fn live(&self) {
        self.left.set(None);
    }

    pub(crate) fn refuse(&self, address: &str, driver: &str) {
        self.refusals.borrow_mut().push((address.to_owned(), driver.to_owned()));
    }

    pub(crate) fn writes(&self) -> usize {
        self.written.get()
    }

    pub(crate) fn driver(&self, address: &str) -> Option<String> {
        let target = std::fs::read_link(self.device(address).join("driver")).ok()?;
        Some(target.file_name().unwrap().to_str().unwrap().to_owned())
    }

    /// Driver and override of all devices.
    pub(crate) fn bindings(&self) -> BTreeMap<String, (Option<String>, String)> {
        let devices = std::fs::read_dir(self.root().join("sys/bus/pci/devices")).unwrap();
        devices
            .map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let over = std::fs::read_to_string(self.device(&name).join("driver_override")).unwrap();
                let over = over.trim().trim_start_matches("(null)").to_owned();
                (name.clone(), (self.driver(&name), over))
            })
            .collect()
    }

    fn device(&self, address: &str) -> PathBuf {
        self.root().join("sys/bus/pci/devices").join(address)
    }

    fn attach(&self, address: &str, driver: &str) {
        let refused = self.refusals.borrow().iter().any(|(a, d)| a == address && d == driver);
        let link = self.device(address).join("driver");
        if !refused && !link.exists() && !link.is_symlink() {
            std::os::unix::fs::symlink(format!("../../drivers/{driver}"), link).unwrap();
        }
    }

    fn effect(&self, path: &str, value: &str) {
        let file = path.trim_start_matches("sys/bus/pci/");
        match file.split('/').collect::<Vec<_>>().as_slice() {
            ["drivers_probe"] => {
                let over = std::fs::read_to_string(self.device(value).join("driver_override")).unwrap();
                if !over.trim().is_empty() && over.trim() != "(null)" {
                    self.attach(value, over.trim());
                }
            }
            ["drivers", driver, "unbind"] if self.driver(value).as_deref() == Some(driver) => {
                std::fs::remove_file(self.device(value).join("driver")).unwrap();
            }
            ["drivers", driver, "bind"] => self.attach(value, driver),
            _ => {}
        }
    }
}

impl SysfsWriter for Kernel {
    fn write(&self, path: &str, value: &str) -> Result<(), TreeError> {
        if let Some(left) = self.left.get() {
            if left == 0 {
                return Err(TreeError::NotAFile { path: "the process is dead".to_owned() });
            }
            self.left.set(Some(left - 1));
        }
        self.written.set(self.written.get() + 1);
        HostTree::open(self.root())?.write(path, value)?;
        self.effect(path, value);
        Ok(())
    }
}
