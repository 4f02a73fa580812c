// SPDX-License-Identifier: Apache-2.0
//! Attacks 22, 27 and 31 as a verifier sees them: each change of what is booted changes the register that is named for it, and
//! no other. That firmware and kernel really measure so is tested beside the calculator, with a TPM.

use calculator::{AcpiDigests, ExpectedRegisters, FirmwareGeneration, ImageBytes, ImageMeasurements, registers};
use measure::acpi::{self, PhysicalBits};
use types::{Device, MachineShape, QemuVersion, RegisterName, shape::ShapeFacts};

use crate::{
    machine::{Image, qemu},
    need,
};

struct Measured {
    firmware: Vec<u8>,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    command_line: String,
    shape: MachineShape,
}

impl Measured {
    fn of(image: &Image) -> Result<Self, &'static str> {
        let shape = ShapeFacts {
            vcpus: 1,
            memory_mib: 512,
            physical_bits: 40,
            qemu: QemuVersion { major: 7, minor: 2 },
            devices: vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock],
        };
        Ok(Self {
            firmware: std::fs::read(&image.firmware).unwrap(),
            kernel: std::fs::read(&image.kernel).unwrap(),
            initrd: std::fs::read(image.initrd()?).unwrap(),
            command_line: image.command_line()?,
            shape: MachineShape::new(shape).unwrap(),
        })
    }

    fn registers(&self, initrd: &[u8], command_line: &str, acpi: &AcpiDigests) -> ExpectedRegisters {
        let bytes = ImageBytes {
            firmware: &self.firmware,
            generation: FirmwareGeneration::Edk2Stable202502,
            kernel: &self.kernel,
            initrd,
            command_line,
        };
        registers(&ImageMeasurements::of(&bytes, &[512]).unwrap(), &self.shape, acpi).unwrap()
    }
}

/// The registers whose values differ.
fn changed(a: &ExpectedRegisters, b: &ExpectedRegisters) -> Vec<RegisterName> {
    let names = [RegisterName::MrTd, RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2];
    names.into_iter().filter(|name| a.allowed(*name) != b.allowed(*name)).collect()
}

#[test]
fn every_change_shows_in_its_register() {
    let image = need!(Image::find(), "registers of a changed boot");
    let measured = need!(Measured::of(&image), "registers of a changed boot");
    let mut arguments = qemu::table_arguments(&measured.shape);
    let tables = |arguments: &[String]| acpi::read(&qemu(), arguments, PhysicalBits::EMULATED).unwrap().digests();
    let honest = tables(&arguments);
    let Measured { initrd, command_line, .. } = &measured;
    let expected = measured.registers(initrd, command_line, &honest);
    assert_eq!(changed(&expected, &measured.registers(initrd, command_line, &tables(&arguments))), []);

    // 22: one more word.
    let word = measured.registers(initrd, &format!("{command_line} init=/bin/serve"), &honest);
    assert_eq!(changed(&expected, &word), [RegisterName::Rtmr2]);
    // 31: another root at the same path, of the same length.
    let mut other = initrd.clone();
    *other.last_mut().unwrap() ^= 1;
    assert_eq!(changed(&expected, &measured.registers(&other, command_line, &honest)), [RegisterName::Rtmr2]);
    // 27: one more device.
    arguments.extend(["-device".to_owned(), "virtio-9p-pci,fsdev=share,mount_tag=share,disable-legacy=on".to_owned()]);
    arguments.extend(["-fsdev".to_owned(), "local,id=share,security_model=none,path=/".to_owned()]);
    let device = measured.registers(initrd, command_line, &tables(&arguments));
    assert_eq!(changed(&expected, &device), [RegisterName::Rtmr0]);
}
