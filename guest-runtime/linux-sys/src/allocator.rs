// SPDX-License-Identifier: Apache-2.0
//! The C library's allocator, such that it needs nothing but memory.
#![allow(unsafe_code, reason = "one function of the C library without a safe wrapper")]

/// Has all threads allocate from one heap. To be called before a second thread allocates.
///
/// glibc gives threads heaps of their own, and before it gives back memory of one of these it opens
/// `/proc/sys/vm/overcommit_memory` (`check_may_shrink_heap` in its `malloc/arena.c`), which a filter of system calls that
/// forbids to open files punishes with the end of the process: by then any answer may be what frees the memory.
pub(crate) fn share_one_heap() {
    // SAFETY: sets a number of the allocator under its lock. It cannot fail for this parameter (mallopt(3)).
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    const CHILD: &str = "CHRYSALIS_TEST_HEAP";

    /// Where the heap of a process lies that it began with.
    fn heap() -> std::ops::Range<usize> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with("[heap]")).unwrap();
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        number(from)..number(to)
    }

    fn is_on_first_heap() -> bool {
        let memory = std::thread::spawn(|| std::hint::black_box(vec![1_u8; 64 << 10])).join().unwrap();
        heap().contains(&(memory.as_ptr() as usize))
    }

    /// In a process of its own, whose test runs in the first thread.
    #[test]
    fn a_second_thread_allocates_where_the_first_does() {
        if let Some(shared) = std::env::var_os(CHILD) {
            if shared == "yes" {
                super::share_one_heap();
            }
            assert_eq!(is_on_first_heap(), shared == "yes");
            return;
        }
        for shared in ["yes", "no"] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "allocator::tests::a_second_thread_allocates_where_the_first_does"]);
            let output = child.arg("--test-threads=1").env(CHILD, shared).output().unwrap();
            assert!(output.status.success(), "{shared}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
