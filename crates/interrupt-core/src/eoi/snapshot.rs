// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A value that many threads read without ever waiting for the thread that replaces it.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, TryLockError};

use crate::sync::{AtomicUsize, Mutex, Ordering, RwLock, lock, spin_loop};

/// A snapshot in two places. Readers use the current place; a writer fills the other one, makes it current, and then
/// refreshes the first, so that a replaced snapshot (and what it owns) does not linger.
///
/// A reader meets a writer only when it read `current` before a switch and arrives after it; it then looks again.
#[derive(Debug)]
pub(crate) struct Snapshot<T: ?Sized> {
    current: AtomicUsize,
    places: [RwLock<Arc<T>>; 2],
    writer: Mutex<()>,
}

impl<T: ?Sized> Snapshot<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self {
            current: AtomicUsize::new(0),
            places: [RwLock::new(Arc::clone(&value)), RwLock::new(value)],
            writer: Mutex::new(()),
        }
    }

    /// The current snapshot. Does not allocate and does not wait for a writer.
    pub(crate) fn load(&self) -> Arc<T> {
        loop {
            let current = self.current.load(Ordering::Acquire);
            match self.places[current].try_read() {
                Ok(place) => return Arc::clone(&place),
                Err(TryLockError::Poisoned(place)) => return Arc::clone(&place.into_inner()),
                Err(TryLockError::WouldBlock) => spin_loop(),
            }
        }
    }

    /// Replaces the snapshot by what `change` makes of it. Writers go one at a time.
    ///
    /// What the old snapshot owned alone is dropped here, under the writer's lock. A caller whose values run foreign code
    /// when they are dropped keeps a reference of its own until this returns.
    pub(crate) fn update(&self, change: impl FnOnce(&T) -> Arc<T>) {
        let changed: Result<(), Infallible> = self.try_update(|value| Ok(change(value)));
        match changed {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// As [`update`](Self::update), but leaves the snapshot as it is when `change` fails.
    pub(crate) fn try_update<E>(&self, change: impl FnOnce(&T) -> Result<Arc<T>, E>) -> Result<(), E> {
        let _writer = lock(&self.writer);
        let current = self.current.load(Ordering::Acquire);
        let next = change(&self.load())?;
        self.replace(1 - current, &next);
        self.current.store(1 - current, Ordering::Release);
        self.replace(current, &next);
        Ok(())
    }

    fn replace(&self, place: usize, next: &Arc<T>) {
        let mut place = self.places[place].write().unwrap_or_else(PoisonError::into_inner);
        *place = Arc::clone(next);
    }
}
