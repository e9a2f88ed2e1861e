// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a machine ends, by the guest, by a device or by a signal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::wake::Wake;
use crate::error::{Error, Result};

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest reset itself: it rebooted, or its kernel panicked with `panic=-1`.
    Reset,
    /// A processor gave up (triple fault).
    TripleFault,
    /// A signal ended it: SIGINT, SIGTERM or SIGHUP.
    Interrupted,
    /// The reader of the console closed it.
    ConsoleClosed,
    /// A processor or a device failed; the error gives the reason.
    Failed,
}

/// Takes the first end of a machine, and wakes the thread that waits for the end.
#[derive(Debug)]
pub struct Ending {
    end: Mutex<Option<End>>,
    /// The first failure of a device, until a processor returns it.
    failure: Mutex<Option<Error>>,
    /// Set at the end. Processors check this flag between two exits.
    has_ended: AtomicBool,
    event: Wake,
}

impl Ending {
    /// Makes the state of a machine that has not ended.
    ///
    /// # Errors
    /// As [`Wake::new`].
    pub fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            end: Mutex::new(None),
            failure: Mutex::new(None),
            has_ended: AtomicBool::new(false),
            event: Wake::new()?,
        }))
    }

    /// Ends the machine, if it has not ended.
    pub fn end(&self, end: End) {
        lock(&self.end).get_or_insert(end);
        self.has_ended.store(true, Ordering::Release);
        self.event.wake();
    }

    /// Ends the machine because a device could not do what the guest asked for. A processor returns the first error of
    /// a device.
    pub fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.end(End::Failed);
    }

    /// How the machine ended, if it has ended.
    pub fn ended(&self) -> Option<End> {
        *lock(&self.end)
    }

    /// Whether the machine has ended. Takes no lock.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Takes the error of [`fail`](Self::fail).
    pub fn take_failure(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    /// Becomes readable at the end.
    pub fn event(&self) -> &Wake {
        &self.event
    }
}

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
