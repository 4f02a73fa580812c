// SPDX-License-Identifier: Apache-2.0
//! The GPUs that a model is computed on. Without the feature `cuda` llama.cpp finds none.

use crate::LoadError;
use llama_cpp_2::model::params::{LlamaModelParams, LlamaSplitMode};
use llama_cpp_2::{LlamaBackendDevice, LlamaBackendDeviceType, list_llama_ggml_backend_devices};

/// GPUs that are open: their driver's libraries are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// llama.cpp's numbers of them.
    indices: Vec<usize>,
}

impl Gpus {
    /// Opens all GPUs of the machine. This loads libraries and asks the driver for much, so it comes before confinement.
    ///
    /// # Errors
    /// [`LoadError::Gpus`] unless there are exactly `expected`: nothing is computed on the processor in their place.
    pub fn open(expected: u8) -> Result<Self, LoadError> {
        Self::of(expected, &list_llama_ggml_backend_devices())
    }

    fn of(expected: u8, devices: &[LlamaBackendDevice]) -> Result<Self, LoadError> {
        let indices: Vec<usize> = gpus(devices).map(|device| device.index).collect();
        if indices.is_empty() || indices.len() != usize::from(expected) {
            return Err(LoadError::Gpus { expected, found: indices.len() });
        }
        Ok(Self { indices })
    }

    /// Memory that is free on all of them together, in bytes.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        free(&list_llama_ggml_backend_devices())
    }

    /// All layers on these devices, whole layers on each, shared out by their free memory.
    pub(crate) fn parameters(&self) -> Result<LlamaModelParams, LoadError> {
        let all = LlamaModelParams::default().with_n_gpu_layers(u32::MAX).with_split_mode(LlamaSplitMode::Layer);
        all.with_devices(&self.indices).map_err(|_| LoadError::NotOnGpus)
    }

    /// Whether weights of `size` bytes went to these devices, whose free memory was `before`.
    ///
    /// # Errors
    /// [`LoadError::NotOnGpus`].
    pub(crate) fn check_holding(&self, before: u64, size: u64) -> Result<(), LoadError> {
        if is_held(before, self.free_bytes(), size) { Ok(()) } else { Err(LoadError::NotOnGpus) }
    }
}

fn gpus(devices: &[LlamaBackendDevice]) -> impl Iterator<Item = &LlamaBackendDevice> {
    devices.iter().filter(|device| device.device_type == LlamaBackendDeviceType::Gpu)
}

fn free(devices: &[LlamaBackendDevice]) -> u64 {
    let bytes = gpus(devices).map(|device| u64::try_from(device.memory_free).unwrap_or(u64::MAX));
    bytes.fold(0, u64::saturating_add)
}

/// The table of the tokens' own vectors stays with the processor, and may be a large part of a small model: half is enough
/// to tell.
const fn is_held(before: u64, after: u64, size: u64) -> bool {
    before.saturating_sub(after) >= size / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: usize, device_type: LlamaBackendDeviceType, memory_free: usize) -> LlamaBackendDevice {
        let text = || "x".to_owned();
        LlamaBackendDevice {
            index,
            name: text(),
            description: text(),
            backend: text(),
            memory_total: 80 << 30,
            memory_free,
            device_type,
        }
    }

    #[test]
    fn exactly_the_named_gpus_are_taken() {
        use LlamaBackendDeviceType::{Accelerator, Cpu, Gpu, IntegratedGpu};
        let devices = [device(0, Gpu, 5), device(1, Accelerator, 50), device(2, Gpu, 7), device(3, Cpu, 500)];
        assert_eq!(Gpus::of(2, &devices), Ok(Gpus { indices: vec![0, 2] }));
        assert_eq!(free(&devices), 12);
        for expected in [0, 1, 3, 16] {
            assert_eq!(Gpus::of(expected, &devices), Err(LoadError::Gpus { expected, found: 2 }));
        }
        let none = [device(0, Cpu, 500), device(1, IntegratedGpu, 50)];
        for expected in [0, 1] {
            assert_eq!(Gpus::of(expected, &none), Err(LoadError::Gpus { expected, found: 0 }));
        }
    }

    #[test]
    fn weights_that_stayed_with_the_processor_are_noticed() {
        assert!(is_held(80, 10, 70));
        assert!(is_held(80, 40, 70), "without the table of tokens");
        assert!(!is_held(80, 80, 70));
        assert!(!is_held(80, 79, 70));
        assert!(!is_held(70, 80, 70), "somebody else gave memory back");
    }

    /// Whatever it was compiled for, an engine finds no GPU where there is none, and says so.
    #[test]
    fn a_machine_without_gpus_is_refused() {
        if std::path::Path::new("/dev/nvidiactl").exists() {
            println!("SKIPPED: refusing a machine without GPUs: this one may have some");
            return;
        }
        let refused = Gpus::open(1).unwrap_err();
        assert_eq!(refused.to_string(), "there are 0 GPUs that can be computed on, and 1 were named");
    }
}
