// SPDX-License-Identifier: Apache-2.0
//! Memory that was freed goes back to the system: a storm of guests must not be paid for until the next start.
//!
//! The C library gives back only what is free at the end of each of its heaps. What many connections freed lies between
//! what others still hold, and stays: after 1,000 guests at once nine tenths of the service's memory was free, and its own.
#![allow(unsafe_code, reason = "one call of the C library without a safe wrapper")]

/// Gives every whole page that is free inside of the heaps back to the system. Takes milliseconds for 100 MB, in which
/// other threads may wait for memory. Does nothing where the C library is not glibc.
pub(crate) fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it takes no pointer, locks what it works on by itself, and touches only what nobody holds. The result
        // only says whether there was something.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Resident pages of 4 KiB (proc(5), the second field of statm).
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Each tenth piece stays, so that nothing is free at the end of a heap.
    #[test]
    fn what_is_freed_between_what_is_held_is_given_back() {
        const PIECES: usize = 8192;
        let mut pieces: Vec<Option<Vec<u8>>> = (0..PIECES).map(|_| Some(vec![1; 12_000])).collect();
        let full = resident();
        for (number, piece) in pieces.iter_mut().enumerate() {
            if number % 10 != 9 {
                *piece = None;
            }
        }
        give_back_freed();
        let after = resident();
        // Nine tenths of three pages each are freed. Other tests of this process may take and free some meanwhile.
        assert!(full.saturating_sub(after) > PIECES * 3 / 2, "{full} {after}");
        assert!(pieces.iter().flatten().all(|piece| piece.iter().all(|byte| *byte == 1)), "what is held stays");
    }
}
