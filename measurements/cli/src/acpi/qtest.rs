// SPDX-License-Identifier: Apache-2.0
//! A stopped QEMU and its qtest protocol: one command and one `OK …` line each.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use super::AcpiError;

/// A QEMU process that never runs a guest. Dropping it ends the process.
pub(super) struct Machine {
    child: Arc<Mutex<Child>>,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Dropping it ends the watchdog.
    watchdog: Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>,
    late: Arc<AtomicBool>,
}

impl Machine {
    /// Starts `program`; after `limit` it is ended, whatever it does.
    pub(super) fn start(program: &Path, arguments: &[String], limit: Duration) -> Result<Self, AcpiError> {
        let failed = |source| AcpiError::Start { program: program.display().to_string(), source };
        let mut child = Command::new(program)
            .args(arguments)
            // A repeated -S is harmless; without it a guest would run.
            .args(["-S", "-qtest", "stdio", "-qtest-log", "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(std::io::Error::other("no pipes")));
        };
        let child = Arc::new(Mutex::new(child));
        let late = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let watched = (Arc::clone(&child), Arc::clone(&late));
        let thread = thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                watched.1.store(true, Ordering::SeqCst);
                end(&watched.0);
            }
        });
        Ok(Self { child, input, output: BufReader::new(output), watchdog: Some((sender, thread)), late })
    }

    /// Reads a byte string of guest memory.
    pub(super) fn read_memory(&mut self, address: u64, len: usize) -> Result<Vec<u8>, AcpiError> {
        let mut out = Vec::with_capacity(len);
        let mut at = address;
        while out.len() < len {
            let part = (len - out.len()).min(PART);
            let answer = self.command("read", &format!("{at:#x} {part:#x}"))?;
            let bytes = answer.strip_prefix("0x").and_then(|hex| hex::decode(hex).ok());
            let bytes = bytes.filter(|b| b.len() == part).ok_or(AcpiError::Protocol { command: "read" })?;
            out.extend(bytes);
            at = at.saturating_add(PART as u64);
        }
        Ok(out)
    }

    /// Writes a byte string to guest memory.
    pub(super) fn write_memory(&mut self, address: u64, bytes: &[u8]) -> Result<(), AcpiError> {
        let arguments = format!("{address:#x} {:#x} 0x{}", bytes.len(), hex::encode(bytes));
        self.command("write", &arguments).map(drop)
    }

    /// Writes a 32-bit number to an IO port.
    pub(super) fn out_u32(&mut self, port: u16, value: u32) -> Result<(), AcpiError> {
        self.command("outl", &format!("{port:#x} {value:#x}")).map(drop)
    }

    /// Reads a 32-bit number from an IO port.
    pub(super) fn in_u32(&mut self, port: u16) -> Result<u32, AcpiError> {
        let answer = self.command("inl", &format!("{port:#x}"))?;
        let digits = answer.strip_prefix("0x").ok_or(AcpiError::Protocol { command: "inl" })?;
        u32::from_str_radix(digits, 16).map_err(|_| AcpiError::Protocol { command: "inl" })
    }

    fn command(&mut self, name: &'static str, arguments: &str) -> Result<String, AcpiError> {
        if writeln!(self.input, "{name} {arguments}").and_then(|()| self.input.flush()).is_err() {
            return Err(self.ended());
        }
        // Lines about interrupts may come in between.
        for _ in 0..MAX_NOTES {
            let mut line = Vec::new();
            let read = (&mut self.output).take(MAX_LINE).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return Err(self.ended());
            }
            let line = String::from_utf8(line).map_err(|_| AcpiError::Protocol { command: name })?;
            let Some(line) = line.strip_suffix('\n') else {
                return Err(AcpiError::Protocol { command: name });
            };
            if let Some(answer) = line.strip_prefix("OK") {
                return Ok(answer.trim().to_owned());
            }
            if !line.starts_with("IRQ ") {
                break;
            }
        }
        Err(AcpiError::Protocol { command: name })
    }

    /// Why the pipe broke.
    fn ended(&self) -> AcpiError {
        end(&self.child);
        if self.late.load(Ordering::SeqCst) {
            return AcpiError::TimeOut;
        }
        let mut said = Vec::new();
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stderr) = child.stderr.take() {
            // What was said is only help for a person; that it could not be read changes nothing.
            let _ = stderr.take(4096).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        let line: String =
            said.lines().find(|line| !line.trim().is_empty()).unwrap_or("no message").chars().take(200).collect();
        AcpiError::Ended { message: line }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&self.child);
        if let Some((sender, thread)) = self.watchdog.take() {
            drop(sender);
            // The watchdog has no result; it has nothing to report.
            let _ = thread.join();
        }
    }
}

/// Ends the process and takes its status, so that no zombie stays. Errors mean that it is gone already.
fn end(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = child.kill();
    let _ = child.wait();
}

/// Bytes of memory per command.
const PART: usize = 4096;
const MAX_LINE: u64 = 16 * 1024;
const MAX_NOTES: usize = 1024;
