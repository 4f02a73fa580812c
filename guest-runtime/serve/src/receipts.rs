// SPDX-License-Identifier: Apache-2.0
//! The newest receipts, by the id of their answer.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

/// Keeps a bounded number of receipts; the oldest go first.
#[derive(Debug)]
pub(crate) struct Receipts {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<String, Bytes>,
    order: VecDeque<String>,
}

impl Receipts {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, kept: Mutex::default() }
    }

    /// Keeps the canonical bytes of a signed receipt.
    pub(crate) fn keep(&self, id: &str, receipt: Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_id.insert(id.to_owned(), receipt);
        kept.order.push_back(id.to_owned());
        while kept.order.len() > self.most {
            if let Some(oldest) = kept.order.pop_front() {
                kept.by_id.remove(&oldest);
            }
        }
    }

    /// The receipt of an answer, if it is still kept.
    pub(crate) fn of(&self, id: &str) -> Option<Bytes> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let receipts = Receipts::new(2);
        for id in ["a", "b", "c"] {
            receipts.keep(id, Bytes::from_static(b"r"));
        }
        assert!(receipts.of("a").is_none());
        assert!(receipts.of("b").is_some() && receipts.of("c").is_some());
    }
}
