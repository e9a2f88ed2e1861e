// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's view of the guest's status page.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use crate::roundtrip::guest::layout::{FOUND_NOTHING, HANDLER_RUNS, READY, STRAY, raised, serviced};
use crate::roundtrip::guest::ringing::Ringing;
use crate::roundtrip::guest::word::GuestWord;

/// The registers of one device, which are words of the guest's memory.
#[derive(Debug)]
pub struct Registers {
    /// How many requests the device has raised. The device writes it.
    pub raised: GuestWord,
    /// The value of `raised` that the handler served last. The handler writes it.
    pub serviced: GuestWord,
}

impl Registers {
    /// Whether every raised request has been served.
    pub fn is_served(&self) -> bool {
        self.serviced.load(Ordering::Acquire) == self.raised.load(Ordering::Relaxed)
    }
}

/// The guest's status.
#[derive(Debug)]
pub struct Status {
    memory: Arc<GuestMemoryMmap>,
    pub(crate) ready: GuestWord,
    pub(crate) handler_runs: GuestWord,
    pub(crate) found_nothing: GuestWord,
    pub(crate) stray: GuestWord,
}

impl Status {
    /// The status page in `memory`.
    ///
    /// # Errors
    /// When `memory` does not span the page.
    pub fn new(memory: &Arc<GuestMemoryMmap>) -> Result<Self, GuestMemoryError> {
        let word = |at| GuestWord::new(memory, at);
        Ok(Self {
            memory: Arc::clone(memory),
            ready: word(READY)?,
            handler_runs: word(HANDLER_RUNS)?,
            found_nothing: word(FOUND_NOTHING)?,
            stray: word(STRAY)?,
        })
    }

    /// Whether the guest has set up its controller and enabled interrupts.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) != 0
    }

    /// How often the handler has run.
    pub fn handler_runs(&self) -> u32 {
        self.handler_runs.load(Ordering::Acquire)
    }

    /// How many of these runs found no device with a request.
    pub fn found_nothing(&self) -> u32 {
        self.found_nothing.load(Ordering::Acquire)
    }

    /// How many interrupts came at a controller's vector for spurious interrupts.
    pub fn stray(&self) -> u32 {
        self.stray.load(Ordering::Acquire)
    }

    /// The registers of device `n`.
    ///
    /// # Errors
    /// When `memory` has no room for that many.
    pub fn device(&self, n: usize) -> Result<Registers, GuestMemoryError> {
        Ok(Registers {
            raised: GuestWord::new(&self.memory, raised(n))?,
            serviced: GuestWord::new(&self.memory, serviced(n))?,
        })
    }

    /// The words that control the guest's doorbell batches and report their results.
    ///
    /// # Errors
    /// When `memory` has no room for them.
    pub fn ringing(&self) -> Result<Ringing, GuestMemoryError> {
        Ringing::new(&self.memory)
    }
}
