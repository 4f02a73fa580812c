// SPDX-License-Identifier: Apache-2.0
//! The newest receipts, by the id of their answer.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

/// Who may read a receipt: the tenant whose answer it is of, by its number; whoever has the id where the model has no tenants.
pub(crate) type Reader = Option<u32>;

/// Keeps a bounded number of receipts; the oldest go first.
#[derive(Debug)]
pub(crate) struct Receipts {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<String, (Reader, Bytes)>,
    order: VecDeque<String>,
}

impl Receipts {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, kept: Mutex::default() }
    }

    /// Keeps the canonical bytes of a signed receipt, for a reader.
    pub(crate) fn keep(&self, id: &str, reader: Reader, receipt: Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_id.insert(id.to_owned(), (reader, receipt));
        kept.order.push_back(id.to_owned());
        while kept.order.len() > self.most {
            if let Some(oldest) = kept.order.pop_front() {
                kept.by_id.remove(&oldest);
            }
        }
    }

    /// The receipt of an answer, if it is still kept, and is this reader's.
    pub(crate) fn of(&self, id: &str, reader: Reader) -> Option<Bytes> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_id.get(id).filter(|(of, _)| *of == reader).map(|(_, receipt)| receipt.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let receipts = Receipts::new(2);
        for id in ["a", "b", "c"] {
            receipts.keep(id, None, Bytes::from_static(b"r"));
        }
        assert!(receipts.of("a", None).is_none());
        assert!(receipts.of("b", None).is_some() && receipts.of("c", None).is_some());
    }

    #[test]
    fn a_tenant_reads_its_own() {
        let receipts = Receipts::new(2);
        receipts.keep("a", Some(1), Bytes::from_static(b"r"));
        assert!(receipts.of("a", Some(1)).is_some());
        assert!(receipts.of("a", Some(2)).is_none() && receipts.of("a", None).is_none());
    }
}
