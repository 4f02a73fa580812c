// SPDX-License-Identifier: Apache-2.0
//! Moves what is in llama.cpp's cache to its lowest cells.
#![allow(unsafe_code, reason = "llama-cpp-2 has no safe function for the state of all sequences at once")]

use llama_cpp_2::context::LlamaContext;
use zeroize::Zeroizing;

/// Takes the whole cache out and puts it back: llama.cpp then fills its cells from the first one on, in the order in
/// which they were, and sequences that share cells go on sharing them. Needs as much memory as is in use, for a moment;
/// it is overwritten after that.
///
/// `None` when that failed. The cache cannot be relied on any more, then.
pub(crate) fn compact(context: &mut LlamaContext<'_>) -> Option<()> {
    let size = context.get_state_size();
    let mut state = Zeroizing::new(Vec::new());
    state.try_reserve_exact(size).ok()?;
    state.resize(size, 0);
    // SAFETY: llama.cpp writes at most `get_state_size()` bytes, which is what the buffer has; nothing was computed in
    // between.
    let written = unsafe { context.copy_state_data(state.as_mut_ptr()) };
    let state = state.get(..written).filter(|state| !state.is_empty())?;
    // SAFETY: the same context wrote these bytes just now; llama.cpp reads back what it wrote and no further.
    let read = unsafe { context.set_state_data(state) };
    (read == written).then_some(())
}
