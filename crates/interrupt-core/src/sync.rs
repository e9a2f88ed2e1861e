// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The synchronisation primitives of std, or those of the model checker in this crate's own tests under `--cfg loom`.

#[cfg(not(all(loom, test)))]
pub(crate) use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread, thread_local,
};

#[cfg(all(loom, test))]
pub(crate) use loom::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread, thread_local,
};

use std::sync::PoisonError;

/// Takes a lock whose data stays whole even if a holder panicked: every critical section in this crate either runs no
/// foreign code, or runs a pin's `drive`, after which the state is consistent whatever `drive` did.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
