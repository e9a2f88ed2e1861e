// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counters of failures that have no caller to return an error to.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter. An increment orders no other memory access.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_error<T, E>(&self, result: Result<T, E>) {
        if result.is_err() {
            self.count();
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
