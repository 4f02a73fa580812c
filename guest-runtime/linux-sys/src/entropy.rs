// SPDX-License-Identifier: Apache-2.0
//! Seeds the kernel's generator from the processor. The host can give no entropy and must not be the only source.
#![allow(unsafe_code, reason = "processor instructions and one ioctl")]

use std::{
    arch::x86_64,
    fs::{File, OpenOptions},
    os::fd::AsRawFd as _,
};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::SysError;

/// Which instruction gave the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// RDSEED.
    Rdseed,
    /// Only where RDSEED is missing and the caller allows it: 1,024 × 128 bits of RDRAND, hashed. By Intel's Digital
    /// Random Number Generator guide (section 5.2.6) the generator behind RDRAND is reseeded within 512 such values.
    Rdrand,
}

/// Gets 32 bytes from the processor with bounded retries, credits them to the kernel's generator, and has it draw a new
/// key from its pool at once: by itself a generator that was ready before does so only seconds later, and keys made in
/// between would owe the seed nothing.
///
/// # Errors
/// [`EntropyError`]. Then nothing that this guest draws is to be trusted: halt.
pub fn seed_kernel(allow_rdrand: bool) -> Result<Source, EntropyError> {
    let (seed, source) = if std::arch::is_x86_feature_detected!("rdseed") {
        (rdseed_bytes()?, Source::Rdseed)
    } else if allow_rdrand && std::arch::is_x86_feature_detected!("rdrand") {
        (rdrand_seed()?, Source::Rdrand)
    } else {
        return Err(EntropyError::NoInstruction);
    };
    let random = OpenOptions::new().write(true).open("/dev/random").map_err(SysError::when("open /dev/random"))?;
    credit(&random, &seed)?;
    reseed(&random)?;
    Ok(source)
}

/// Why the generator was not seeded.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// The processor has no RDSEED.
    #[error("the processor has no RDSEED")]
    NoInstruction,
    /// It gave no value in the number of tries that its maker calls broken.
    #[error("the processor gave no random value in {RETRIES} tries")]
    Exhausted,
    /// It gave the same value again and again.
    #[error("the processor's random values repeat")]
    Stuck,
    /// The kernel did not take the seed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

fn rdseed_bytes() -> Result<Zeroizing<[u8; 32]>, EntropyError> {
    let words = draw(4, || {
        let mut word = 0;
        // SAFETY: the caller has seen that the processor has RDSEED.
        (unsafe { x86_64::_rdseed64_step(&mut word) } == 1).then_some(word)
    })?;
    let mut seed = Zeroizing::new([0; 32]);
    for (to, from) in seed.chunks_exact_mut(8).zip(words.iter()) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    Ok(seed)
}

fn rdrand_seed() -> Result<Zeroizing<[u8; 32]>, EntropyError> {
    let words = draw(RDRAND_WORDS, || {
        let mut word = 0;
        // SAFETY: the caller has seen that the processor has RDRAND.
        (unsafe { x86_64::_rdrand64_step(&mut word) } == 1).then_some(word)
    })?;
    let mut hasher = Sha256::new();
    for word in words.iter() {
        hasher.update(word.to_le_bytes());
    }
    Ok(Zeroizing::new(hasher.finalize().into()))
}

/// `count` words, at most [`RETRIES`] tries for each, refused when all are equal.
fn draw(count: usize, mut step: impl FnMut() -> Option<u64>) -> Result<Zeroizing<Vec<u64>>, EntropyError> {
    let mut words = Zeroizing::new(Vec::with_capacity(count));
    for _ in 0..count {
        let word = (0..RETRIES).find_map(|_| {
            std::hint::spin_loop();
            step()
        });
        words.push(word.ok_or(EntropyError::Exhausted)?);
    }
    let stuck = words.iter().zip(words.iter().skip(1)).all(|(a, b)| a == b);
    if stuck { Err(EntropyError::Stuck) } else { Ok(words) }
}

/// `struct rand_pool_info` of `linux/random.h` with room for 32 bytes.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; 32],
}

nix::ioctl_write_ptr_bad!(
    /// `RNDADDENTROPY`: _IOW('R', 0x03, int[2]).
    rnd_add_entropy,
    nix::request_code_write!(b'R', 0x03, 8),
    PoolInfo
);

nix::ioctl_none_bad!(
    /// `RNDRESEEDCRNG`: _IO('R', 0x07).
    rnd_reseed_crng,
    RESEED
);

fn credit(random: &File, seed: &[u8; 32]) -> Result<(), SysError> {
    let mut info = PoolInfo { entropy_count: 256, buf_size: 32, buf: *seed };
    // SAFETY: the structure has the form that the request demands, and buf_size is the size of buf.
    let result = unsafe { rnd_add_entropy(random.as_raw_fd(), &raw const info) };
    zeroize::Zeroize::zeroize(&mut info.buf);
    result.map(drop).map_err(SysError::when("credit entropy"))
}

fn reseed(random: &File) -> Result<(), SysError> {
    // SAFETY: the request takes no argument; any descriptor is harmless to it.
    unsafe { rnd_reseed_crng(random.as_raw_fd()) }.map(drop).map_err(SysError::when("reseed the kernel's generator"))
}

const RESEED: libc::c_ulong = nix::request_code_none!(b'R', 0x07);

/// Intel's guide calls RDSEED exhausted much earlier; all virtual processors may ask at once.
const RETRIES: usize = 100_000;
/// 1,024 values of 128 bits: two forced reseedings of 128 bits each.
const RDRAND_WORDS: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_bounded_and_a_stuck_source_is_refused() {
        assert!(matches!(draw(4, || None), Err(EntropyError::Exhausted)));
        assert!(matches!(draw(4, || Some(7)), Err(EntropyError::Stuck)));
        let mut tries = 0;
        let words = draw(4, || {
            tries += 1;
            (tries % 3 == 0).then_some(tries)
        });
        assert_eq!(*words.unwrap(), [3, 6, 9, 12]);
    }

    #[test]
    fn the_generator_is_told_to_reseed_and_nothing_else_takes_the_request() {
        assert_eq!(RESEED, 0x5207);
        let error = reseed(&File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!((error.what, error.source.raw_os_error()), ("reseed the kernel's generator", Some(libc::ENOTTY)));
        let Ok(random) = OpenOptions::new().write(true).open("/dev/random") else { return };
        match reseed(&random).map_err(|error| error.source.raw_os_error()) {
            Ok(()) => {}
            Err(Some(libc::EPERM)) => println!("SKIPPED: reseeding the generator needs the rights of PID 1"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn seeds_differ() {
        if std::arch::is_x86_feature_detected!("rdrand") {
            assert_ne!(*rdrand_seed().unwrap(), *rdrand_seed().unwrap());
        }
        if std::arch::is_x86_feature_detected!("rdseed") {
            assert_ne!(*rdseed_bytes().unwrap(), *rdseed_bytes().unwrap());
        }
    }
}
