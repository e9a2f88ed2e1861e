// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One word of memory that the guest and a device share.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryError, GuestMemoryMmap, VolatileMemory as _};

/// An aligned 32-bit word of guest memory. The address is resolved once, so that an access on the hot path cannot fail
/// and costs one memory access.
pub struct GuestWord {
    word: NonNull<AtomicU32>,
    /// Keeps the mapping.
    _memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointer stands for a shared reference to an atomic, which any thread may use and drop. The mapping that
// this value keeps alive is Send + Sync.
unsafe impl Send for GuestWord {}
// SAFETY: as for Send.
unsafe impl Sync for GuestWord {}

impl GuestWord {
    /// The word at guest-physical address `at`.
    ///
    /// # Errors
    /// When `at` is not in memory or not a multiple of 4.
    pub fn new(memory: &Arc<GuestMemoryMmap>, at: u64) -> Result<Self, GuestMemoryError> {
        let slice = memory.get_slice(GuestAddress(at), size_of::<AtomicU32>())?;
        let word = slice.get_atomic_ref::<AtomicU32>(0).map_err(GuestMemoryError::from)?;
        Ok(Self {
            word: NonNull::from(word),
            _memory: Arc::clone(memory),
        })
    }
}

impl Deref for GuestWord {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        // SAFETY: `word` came from a reference into the mapping, which vm-memory checked for range and alignment, and
        // the mapping is never moved or unmapped while `_memory` is held. All access through `word` is atomic.
        unsafe { self.word.as_ref() }
    }
}

impl fmt::Debug for GuestWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load(Ordering::Relaxed).fmt(f)
    }
}
