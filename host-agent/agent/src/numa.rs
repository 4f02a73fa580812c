// SPDX-License-Identifier: Apache-2.0
//! On which of the host's NUMA nodes a guest runs. Nothing of it is measured, and the guest sees nothing of it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use types::Refusal;

use crate::files;

/// A node and its processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NumaPlace {
    /// Its number.
    pub(crate) node: u16,
    /// Its processors, as the kernel and taskset(1) write them: `0-31,64-95`.
    pub(crate) cpus: String,
}

impl NumaPlace {
    /// Looks the node up in files below `root`.
    ///
    /// # Errors
    /// `numa_node_unusable`: there is no such node, or it has no processors.
    pub(crate) fn find(root: &Path, node: u16, field: &str) -> Result<Self, Box<Refusal>> {
        let file = format!("sys/devices/system/node/node{node}/cpulist");
        let refuse = |detail: String| {
            let fix = "name a node that has processors (`cat /sys/devices/system/node/node*/cpulist`), or leave it out";
            Box::new(Refusal::new("numa_node_unusable", field, detail, fix))
        };
        let bytes = files::read_capped(&root.join(&file), MAX).map_err(|error| refuse(format!("{error:#}")))?;
        let cpus = String::from_utf8_lossy(&bytes).trim().to_owned();
        let form = |b: u8| b.is_ascii_digit() || matches!(b, b',' | b'-');
        if cpus.starts_with(|first: char| first.is_ascii_digit()) && cpus.bytes().all(form) {
            Ok(Self { node, cpus })
        } else {
            Err(refuse(format!("/{file} names no processors")))
        }
    }
}

const MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_with_processors_are_found_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        for (node, cpus) in [("node0", "0-31,64-95\n"), ("node1", "\n"), ("node2", "--help\n"), ("node3", "0;1\n")] {
            let place = root.path().join("sys/devices/system/node").join(node);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("cpulist"), cpus).unwrap();
        }
        let found = NumaPlace::find(root.path(), 0, "guests.a.numa_node").unwrap();
        assert_eq!(found, NumaPlace { node: 0, cpus: "0-31,64-95".to_owned() });
        for node in 1..=4 {
            let refused = NumaPlace::find(root.path(), node, "guests.a.numa_node").unwrap_err();
            assert_eq!((refused.code.as_str(), refused.field.as_str()), ("numa_node_unusable", "guests.a.numa_node"));
        }
    }
}
