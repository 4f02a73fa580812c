// SPDX-License-Identifier: Apache-2.0
//! The daemon's side.

use std::path::Path;
use std::time::Duration;

use guest_link::connect_owned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{FrontRequest, FrontStatus, socket};

/// Asks the front of a guest, which runs as the user `owner`; `None` if it does not answer in time.
pub(crate) async fn ask(guest_dir: &Path, owner: u32, request: &FrontRequest) -> Option<FrontStatus> {
    let exchange = async {
        let mut stream = connect_owned(&socket(guest_dir), owner).await.ok()?;
        let mut line = serde_json::to_vec(request).ok()?;
        line.push(b'\n');
        stream.write_all(&line).await.ok()?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await.ok()?;
        serde_json::from_slice(&answer).ok()
    };
    tokio::time::timeout(LIMIT, exchange).await.ok()?
}

const LIMIT: Duration = Duration::from_secs(3);
const MAX_ANSWER: u64 = 1 << 20;
