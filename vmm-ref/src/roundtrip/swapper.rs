// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Changes the path while interrupts flow: after a number of round trips, at a random moment of the next round trip, to
//! a random path.

use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use interrupt_core::forward::Connection;

use crate::composition::check::Impossible;
use crate::error::{Error, Result};
use crate::passthrough::forwarding::Forwarding;
use crate::passthrough::path_changes::{Account, PathChanges};
use crate::roundtrip::traffic::Progress;

/// The thread that makes the changes.
#[derive(Debug)]
pub struct Swapper {
    thread: JoinHandle<Result<Account>>,
}

impl Swapper {
    /// Starts changing the path of `forwarding`, until `progress` is finished.
    ///
    /// # Errors
    /// [`Error::NothingToSwap`] when there are fewer than two paths, and [`Error::System`] when the thread cannot be
    /// started.
    pub fn start(forwarding: &Forwarding, every: u64, progress: &Arc<Progress>) -> Result<Self> {
        let connection = forwarding.connection().ok_or(Impossible::NothingToForward)?;
        let changes = PathChanges::new(connection, every)?;
        let (watched, connection) = (Arc::clone(progress), Arc::downgrade(connection));
        let thread = thread::Builder::new()
            .name("swapper".to_owned())
            .spawn(move || {
                watched.call_every(every);
                swap(&connection, changes, &watched)
            })
            .map_err(|source| Error::System {
                step: "starting the swapper's thread",
                source,
            })?;
        Ok(Self { thread })
    }

    /// Waits for the thread. The caller has to finish `progress` before.
    ///
    /// # Errors
    /// The first change that could not be made.
    pub fn join(self) -> Result<Account> {
        self.thread.thread().unpark();
        self.thread
            .join()
            .map_err(|_| Error::Guest("the swapper's thread panicked".to_owned()))?
    }
}

/// Upgrades `connection` only while it changes the path, because the last holder of the connection ends INTx.
fn swap(connection: &Weak<Connection>, mut changes: PathChanges, progress: &Progress) -> Result<Account> {
    while !progress.is_finished() {
        if !changes.is_due(progress.done()) {
            thread::park();
            continue;
        }
        let Some(connection) = connection.upgrade() else { break };
        changes.change(&connection, progress.done())?;
    }
    Ok(changes.account())
}
