// SPDX-License-Identifier: Apache-2.0
//! Real TDX: TD reports by `/dev/tdx_guest`, quotes by configfs-tsm, RTMR3 by the kernel's measurement files.
//!
//! Sources: Linux `Documentation/ABI/testing/configfs-tsm-report`, `Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest`
//! (since 6.16; earlier kernels need the backport), `linux/tdx-guest.h`.
//! Only the handling of files is tested here: there is no TDX hardware where the tests run.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use linux_sys::landlock::Access;
use types::Sha384Digest;

use crate::{DeviceError, MAX_QUOTE, QuoteDevice};

/// The TDX of this guest.
#[derive(Debug)]
pub struct Tdx {
    device: File,
    entry: ReportEntry,
    rtmr3: PathBuf,
}

impl Tdx {
    /// Opens the device and makes its own entry of the report interface.
    ///
    /// # Errors
    /// [`DeviceError::Missing`] outside of a TD.
    pub fn open() -> Result<Self, DeviceError> {
        let device = File::open(DEVICE).map_err(|error| missing_or(error, "/dev/tdx_guest", GUEST_DRIVER))?;
        let entry = ReportEntry::make(&Path::new(REPORTS).join(ENTRY))?;
        Ok(Self { device, entry, rtmr3: PathBuf::from(RTMR3) })
    }
}

impl QuoteDevice for Tdx {
    fn mr_config_id(&mut self) -> Result<Sha384Digest, DeviceError> {
        let report = linux_sys::tdx_guest::report(&self.device, &[0; 64])?;
        let report =
            tdx_spec::TdReport::parse(&report).map_err(|_| DeviceError::Answer("not a TDX report of 1,024 bytes"))?;
        Ok(Sha384Digest::from_bytes(report.td.mr_config_id))
    }

    fn extend_rtmr3(&mut self, digest: &Sha384Digest) -> Result<(), DeviceError> {
        extend(&self.rtmr3, digest)
    }

    fn quote(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
        self.entry.quote(report_data)
    }
}

/// Makes the report interface's entry and gives it, the device and RTMR3's file to the attester's user. Init calls it as
/// root before it starts the attester; what this machine lacks is left out, and [`Tdx::open`] names it.
///
/// # Errors
/// [`DeviceError`].
pub fn hand_over(uid: u32, gid: u32) -> Result<(), DeviceError> {
    let entry = Path::new(REPORTS).join(ENTRY);
    if Path::new(DEVICE).exists() {
        fs::create_dir(&entry).map_err(|error| missing_or(error, "/sys/kernel/config/tsm/report", REPORT_DRIVER))?;
    }
    give_existing(&[Path::new(DEVICE), &entry, Path::new(RTMR3)], uid, gid)
}

/// What the attester must reach to use the device, for Landlock: it opens these files for each quote and each event.
#[must_use]
pub fn paths() -> Vec<(PathBuf, Access)> {
    let paths = [PathBuf::from(DEVICE), Path::new(REPORTS).join(ENTRY), PathBuf::from(RTMR3)];
    paths.into_iter().map(|path| (path, Access::Device)).collect()
}

fn give_existing(paths: &[&Path], uid: u32, gid: u32) -> Result<(), DeviceError> {
    let give = |path: &Path| {
        let what = "give the quote device to the attester";
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(|source| DeviceError::Io { what, source })
    };
    for path in paths.iter().filter(|path| path.exists()) {
        give(path)?;
        // The files of a directory of the report interface belong to root, whoever made it.
        for file in fs::read_dir(path).into_iter().flatten().flatten() {
            give(&file.path())?;
        }
    }
    Ok(())
}

/// One directory of the report interface. Its generation counts every write, by anybody.
#[derive(Debug)]
struct ReportEntry {
    directory: PathBuf,
    generation: u64,
}

impl ReportEntry {
    fn make(directory: &Path) -> Result<Self, DeviceError> {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(missing_or(error, "/sys/kernel/config/tsm/report", REPORT_DRIVER));
            }
            _ => {}
        }
        let provider = read_capped(&directory.join("provider"), MAX_LINE)?;
        if provider.trim_ascii() != PROVIDER {
            return Err(DeviceError::Answer("the report interface's provider is not tdx_guest"));
        }
        let entry = Self { directory: directory.to_owned(), generation: 0 };
        let generation = entry.current_generation()?;
        Ok(Self { generation, ..entry })
    }

    fn quote(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
        write_once(&self.directory.join("inblob"), report_data, "write report data")?;
        let expected = self.generation.checked_add(1).ok_or(DeviceError::Raced)?;
        let quote = read_capped(&self.directory.join("outblob"), MAX_QUOTE)?;
        self.generation = self.current_generation()?;
        if self.generation != expected {
            return Err(DeviceError::Raced);
        }
        over(quote, report_data)
    }

    fn current_generation(&self) -> Result<u64, DeviceError> {
        let text = read_capped(&self.directory.join("generation"), MAX_LINE)?;
        std::str::from_utf8(text.trim_ascii())
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(DeviceError::Answer("the report interface's generation is no number"))
    }
}

/// The host says how long the quote is: cut to what its own lengths say, where only zeroes follow; anything else is
/// refused, as is a quote over other data. Whether it is genuine is for verifiers.
fn over(mut quote: Vec<u8>, report_data: &[u8; 64]) -> Result<Vec<u8>, DeviceError> {
    let (parsed, rest) =
        tdx_spec::Quote::parse_prefix(&quote).map_err(|_| DeviceError::Answer("the quote has another form"))?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(DeviceError::Answer("bytes follow the quote"));
    }
    if parsed.body.report().report_data != *report_data {
        return Err(DeviceError::Answer("the quote is over other report data"));
    }
    let length = quote.len().saturating_sub(rest.len());
    quote.truncate(length);
    Ok(quote)
}

fn extend(rtmr3: &Path, digest: &Sha384Digest) -> Result<(), DeviceError> {
    write_once(rtmr3, digest.as_bytes(), "extend RTMR3")
}

/// One `write` of all bytes: these files take a value per call.
fn write_once(path: &Path, bytes: &[u8], what: &'static str) -> Result<(), DeviceError> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(|error| missing_or(error, what, MEASUREMENTS))?;
    let written = file.write(bytes).map_err(|source| DeviceError::Io { what, source })?;
    if written == bytes.len() { Ok(()) } else { Err(DeviceError::Answer("the kernel took only a part of the value")) }
}

fn read_capped(path: &Path, cap: usize) -> Result<Vec<u8>, DeviceError> {
    let what = "read the report interface";
    let file = File::open(path).map_err(|error| missing_or(error, what, REPORT_DRIVER))?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(cap).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(|source| DeviceError::Io { what, source })?;
    if bytes.len() > cap { Err(DeviceError::Answer("the value is longer than its cap")) } else { Ok(bytes) }
}

fn missing_or(source: io::Error, what: &'static str, needs: &'static str) -> DeviceError {
    match source.kind() {
        io::ErrorKind::NotFound => DeviceError::Missing { what, needs },
        _ => DeviceError::Io { what, source },
    }
}

const DEVICE: &str = "/dev/tdx_guest";
const REPORTS: &str = "/sys/kernel/config/tsm/report";
const ENTRY: &str = "chrysalis";
const RTMR3: &str = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384";
const PROVIDER: &[u8] = b"tdx_guest";
const MAX_LINE: usize = 64;
const GUEST_DRIVER: &str = "a TD and a kernel with CONFIG_TDX_GUEST_DRIVER";
const REPORT_DRIVER: &str = "configfs and a kernel with CONFIG_TSM_REPORTS";
const MEASUREMENTS: &str = "a kernel that extends run-time registers through sysfs (6.16, or the backport)";

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files of an entry. Writes don't move the generation, so the test does it.
    fn entry(provider: &str, generation: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("entry");
        fs::create_dir(&directory).unwrap();
        for (name, text) in [("provider", provider), ("generation", generation), ("inblob", ""), ("outblob", "")] {
            fs::write(directory.join(name), text).unwrap();
        }
        (root, directory)
    }

    #[test]
    fn a_quote_is_over_our_data_or_refused() {
        let (_root, directory) = entry("tdx_guest\n", "4\n");
        let mut report = ReportEntry::make(&directory).unwrap();
        // Nobody but us wrote.
        fs::write(directory.join("generation"), "5\n").unwrap();
        fs::write(directory.join("outblob"), quote(&[7; 64])).unwrap();
        assert_eq!(report.quote(&[7; 64]).unwrap(), quote(&[7; 64]));
        assert_eq!(fs::read(directory.join("inblob")).unwrap(), [7; 64]);
        // Somebody else wrote, too.
        fs::write(directory.join("generation"), "7\n").unwrap();
        assert!(matches!(report.quote(&[8; 64]), Err(DeviceError::Raced)));
    }

    /// Version 4 with a signature of three bytes.
    fn quote(report_data: &[u8; 64]) -> Vec<u8> {
        let mut bytes = vec![0; 48 + 584];
        bytes[..8].copy_from_slice(&[4, 0, 2, 0, 0x81, 0, 0, 0]);
        bytes[48 + 520..].copy_from_slice(report_data);
        bytes.extend([3, 0, 0, 0, b's', b'i', b'g']);
        bytes
    }

    #[test]
    fn a_quote_has_its_own_length_and_our_data() {
        let good = quote(&[7; 64]);
        assert_eq!(over(good.clone(), &[7; 64]).unwrap(), good);
        assert_eq!(over([good.clone(), vec![0; 4000]].concat(), &[7; 64]).unwrap(), good);
        for bad in [
            quote(&[8; 64]),
            [good.clone(), vec![0, 0, 1]].concat(),
            good[..good.len() - 1].to_vec(),
            good[..600].to_vec(),
            Vec::new(),
        ] {
            assert!(matches!(over(bad, &[7; 64]), Err(DeviceError::Answer(_))));
        }
    }

    #[test]
    fn caps_and_forms_are_checked() {
        let (_root, directory) = entry("sev_guest\n", "0\n");
        assert!(matches!(ReportEntry::make(&directory), Err(DeviceError::Answer(_))));
        let (_root, directory) = entry("tdx_guest\n", "many\n");
        assert!(matches!(ReportEntry::make(&directory), Err(DeviceError::Answer(_))));
        for outblob in [vec![], vec![0; MAX_QUOTE + 1]] {
            let (_root, directory) = entry("tdx_guest\n", "0\n");
            let mut report = ReportEntry::make(&directory).unwrap();
            fs::write(directory.join("generation"), "1\n").unwrap();
            fs::write(directory.join("outblob"), outblob).unwrap();
            assert!(matches!(report.quote(&[0; 64]), Err(DeviceError::Answer(_))));
        }
    }

    #[test]
    fn a_kernel_without_measurement_files_says_what_it_needs() {
        let root = tempfile::tempdir().unwrap();
        let error = extend(&root.path().join("rtmr3:sha384"), &Sha384Digest::ZERO).unwrap_err();
        assert!(matches!(error, DeviceError::Missing { needs: MEASUREMENTS, .. }));
        let file = root.path().join("present");
        fs::write(&file, "").unwrap();
        extend(&file, &Sha384Digest::of(b"e")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), Sha384Digest::of(b"e").as_bytes());
    }

    #[test]
    fn the_entry_is_given_with_its_files_and_what_is_missing_is_left_out() {
        use std::os::unix::fs::MetadataExt as _;
        let (_root, directory) = entry("tdx_guest\n", "0\n");
        let (uid, gid) = (fs::metadata(&directory).unwrap().uid(), fs::metadata(&directory).unwrap().gid());
        if uid != 0 {
            println!("SKIPPED: giving files to another user needs root");
            return;
        }
        give_existing(&[&directory, Path::new("/nonexistent")], uid + 101, gid).unwrap();
        for path in [directory.clone(), directory.join("inblob"), directory.join("outblob")] {
            assert_eq!(fs::metadata(path).unwrap().uid(), uid + 101);
        }
    }

    #[test]
    fn outside_of_a_td_the_device_is_missing() {
        if Path::new(DEVICE).exists() {
            println!("SKIPPED: this is a TD");
            return;
        }
        assert!(matches!(Tdx::open(), Err(DeviceError::Missing { what: "/dev/tdx_guest", .. })));
    }
}
