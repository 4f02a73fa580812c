// SPDX-License-Identifier: Apache-2.0
//! Programs the chipset and one device as the firmware would have done by the time it reads the tables.
//!
//! Source: Intel Q35 datasheet section 5.1.16 (PCIEXBAR); Intel ICH9 datasheet section 13.1 (PMBASE, ACPI_CNTL);
//! EDK II `OvmfPkg/Library/PlatformInitLib/Platform.c`; QEMU `hw/pci-host/q35.c` and `hw/i386/acpi-build.c` for what
//! enters the tables: the configuration window, the lowest 64-bit BAR, and the IO ports of power management.

use super::{AcpiError, qtest::Machine};

/// Places the configuration window, power management and, at `window`, the first 64-bit BAR of bus 0.
pub(super) fn program(machine: &mut Machine, window: u64) -> Result<(), AcpiError> {
    write(machine, HOST_BRIDGE, PCIEXBAR_HIGH, 0)?;
    write(machine, HOST_BRIDGE, PCIEXBAR_LOW, CONFIGURATION_WINDOW | PCIEXBAR_ENABLE)?;
    write(machine, LPC, PMBASE, POWER_MANAGEMENT_PORTS)?;
    let control = read(machine, LPC, ACPI_CNTL)?;
    write(machine, LPC, ACPI_CNTL, control | ACPI_CNTL_ENABLE)?;
    for slot in 1..SLOTS {
        if read(machine, slot, VENDOR)? == NO_DEVICE || read(machine, slot, HEADER_TYPE)? >> 16 & 0x7f != 0 {
            continue;
        }
        for bar in (FIRST_BAR..LAST_BAR).step_by(4) {
            if read(machine, slot, bar)? & BAR_KIND_MASK == BAR_MEMORY_64 {
                let [low, high] = halves(window);
                write(machine, slot, bar, low)?;
                write(machine, slot, bar + 4, high)?;
                return write(machine, slot, COMMAND, COMMAND_MEMORY);
            }
        }
    }
    // Without a 64-bit BAR the window does not enter the tables.
    Ok(())
}

fn read(machine: &mut Machine, slot: u32, register: u32) -> Result<u32, AcpiError> {
    machine.out_u32(ADDRESS_PORT, ADDRESS_ENABLE | slot << 11 | register)?;
    machine.in_u32(DATA_PORT)
}

fn write(machine: &mut Machine, slot: u32, register: u32, value: u32) -> Result<(), AcpiError> {
    machine.out_u32(ADDRESS_PORT, ADDRESS_ENABLE | slot << 11 | register)?;
    machine.out_u32(DATA_PORT, value)
}

#[allow(clippy::cast_possible_truncation, reason = "the two halves are wanted")]
const fn halves(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// Where EDK II puts the configuration space of PCI Express on q35: `PcdPciExpressBaseAddress`.
const CONFIGURATION_WINDOW: u32 = 0xe000_0000;
const PCIEXBAR_LOW: u32 = 0x60;
const PCIEXBAR_HIGH: u32 = 0x64;
const PCIEXBAR_ENABLE: u32 = 1;
const HOST_BRIDGE: u32 = 0;
/// The ICH9's LPC bridge is in the last slot.
const LPC: u32 = 31;
const PMBASE: u32 = 0x40;
/// Where EDK II puts the ports of power management on q35: `ICH9_PMBASE_VALUE`.
const POWER_MANAGEMENT_PORTS: u32 = 0x600;
const ACPI_CNTL: u32 = 0x44;
const ACPI_CNTL_ENABLE: u32 = 0x80;
const SLOTS: u32 = 32;
const VENDOR: u32 = 0x00;
const NO_DEVICE: u32 = u32::MAX;
const COMMAND: u32 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const HEADER_TYPE: u32 = 0x0c;
const FIRST_BAR: u32 = 0x10;
/// The last BAR cannot be the low half of a 64-bit one.
const LAST_BAR: u32 = 0x24;
/// Memory, 64 bits wide; the prefetchable bit does not matter.
const BAR_KIND_MASK: u32 = 0x7;
const BAR_MEMORY_64: u32 = 0x4;
const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ADDRESS_ENABLE: u32 = 1 << 31;
