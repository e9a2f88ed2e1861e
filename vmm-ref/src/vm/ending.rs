// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a run ends, whoever ends it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::wake::Wake;
use crate::error::Result;

/// How a run ended.
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
    /// Nobody reads the console any more.
    ConsoleClosed,
    /// A processor could not go on; the error says why.
    Failed,
}

/// Takes the end of a run, once, and wakes who waits for it.
#[derive(Debug)]
pub struct Ending {
    end: Mutex<Option<End>>,
    event: Wake,
}

impl Ending {
    /// Not yet.
    ///
    /// # Errors
    /// As [`Wake::new`].
    pub fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            end: Mutex::new(None),
            event: Wake::new()?,
        }))
    }

    /// Ends the run, if it has not ended.
    pub fn end(&self, end: End) {
        self.slot().get_or_insert(end);
        self.event.wake();
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Option<End> {
        *self.slot()
    }

    /// Becomes readable at the end.
    pub fn event(&self) -> &Wake {
        &self.event
    }

    fn slot(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
