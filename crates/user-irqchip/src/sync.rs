// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Takes a lock whose data stays whole even if a holder panicked: no critical section in this crate runs foreign code
/// but [`MsiOutput::set_pin`](interrupt_core::MsiOutput::set_pin), and that one finds the state whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same, unless somebody holds the lock.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
