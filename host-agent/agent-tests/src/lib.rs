// SPDX-License-Identifier: Apache-2.0
//! The host agent with stand-ins for what it runs: see `tests/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vfio::{HostTree, SysfsWriter, TreeError};

/// A tree of files in which writes to sysfs have their effect: drivers take devices and let them go.
///
/// # Errors
/// There is no such directory.
pub fn fake_kernel(root: &Path) -> Result<Box<dyn SysfsWriter>, TreeError> {
    Ok(Box::new(FakeKernel { root: root.to_owned(), tree: HostTree::open(root)? }))
}

struct FakeKernel {
    root: PathBuf,
    tree: HostTree,
}

impl FakeKernel {
    fn device(&self, address: &str) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address)
    }

    fn attach(&self, address: &str, driver: &str) {
        // One that has a driver keeps it, as with the kernel.
        let _ = std::os::unix::fs::symlink(format!("../../drivers/{driver}"), self.device(address).join("driver"));
    }
}

impl SysfsWriter for FakeKernel {
    fn write(&self, path: &str, value: &str) -> Result<(), TreeError> {
        // Time for somebody to be killed between two writes.
        std::thread::sleep(Duration::from_millis(5));
        self.tree.write(path, value)?;
        match path.trim_start_matches("sys/bus/pci/").split('/').collect::<Vec<_>>().as_slice() {
            ["drivers_probe"] => {
                let wanted = std::fs::read_to_string(self.device(value).join("driver_override")).unwrap_or_default();
                if !matches!(wanted.trim(), "" | "(null)") {
                    self.attach(value, wanted.trim());
                }
            }
            ["drivers", driver, "unbind"] if self.tree.link_name(&driver_link(value)).as_deref() == Some(driver) => {
                let _ = std::fs::remove_file(self.device(value).join("driver"));
            }
            ["drivers", driver, "bind"] => self.attach(value, driver),
            _ => {}
        }
        Ok(())
    }
}

fn driver_link(address: &str) -> String {
    format!("sys/bus/pci/devices/{address}/driver")
}
