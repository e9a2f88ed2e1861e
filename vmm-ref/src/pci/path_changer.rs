// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Changes the paths of the devices' interrupts while the guest runs: after a number of EOIs of a line, to another path
//! at random.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use interrupt_core::forward::Connection;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::host::Card;
use super::line_eois::LineEois;
use crate::composition::check::Impossible;
use crate::error::{Error, Result};
use crate::passthrough::path_changes::{Account, PathChanges};
use crate::vm::ending::Ending;
use crate::vm::wake::Wake;

/// The thread that changes the paths. A change that fails ends the machine.
#[derive(Debug)]
pub struct PathChanger {
    thread: JoinHandle<Vec<Account>>,
    stop: Arc<Wake>,
}

/// A device's connection, which the thread does not keep alive, and its changes.
struct Changed {
    connection: Weak<Connection>,
    eois: Arc<LineEois>,
    changes: PathChanges,
}

impl PathChanger {
    /// Starts changing the paths of `cards`, one change for each `every` EOIs of a card's line.
    ///
    /// # Errors
    /// [`Error::NothingToSwap`] when a card has fewer than two paths; [`Error::System`] when the thread cannot be started.
    pub fn start(cards: &[Card], every: u64, ending: &Arc<Ending>) -> Result<Self> {
        let changed = cards.iter().map(|card| {
            let connection = card.forwarding.connection().ok_or(Impossible::NothingToForward)?;
            Ok(Changed {
                connection: Arc::downgrade(connection),
                eois: Arc::clone(&card.eois),
                changes: PathChanges::new(connection, every)?,
            })
        });
        let mut changed = changed.collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(Wake::new()?);
        let (stopped, ending) = (Arc::clone(&stop), Arc::clone(ending));
        let thread = thread::Builder::new()
            .name("path changes".to_owned())
            .spawn(move || {
                if let Err(error) = run(&mut changed, &stopped) {
                    ending.fail(error);
                }
                changed.iter().map(|card| card.changes.account()).collect()
            })
            .map_err(|source| Error::System {
                step: "starting the path changes' thread",
                source,
            })?;
        Ok(Self { thread, stop })
    }

    /// Stops the thread, and returns what became of each card.
    pub fn stop(self) -> Vec<Account> {
        self.stop.wake();
        // The panic hook has reported a panic.
        self.thread.join().unwrap_or_default()
    }
}

fn run(cards: &mut [Changed], stop: &Wake) -> Result<()> {
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(
            cards
                .iter()
                .map(|card| PollFd::from_borrowed_fd(card.eois.as_fd(), PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::System {
                    step: "poll",
                    source: errno.into(),
                });
            }
        }
        for card in &mut *cards {
            let count = card.eois.count();
            let Some(connection) = card.connection.upgrade() else {
                return Ok(());
            };
            if card.changes.is_due(count) {
                card.changes.change(&connection, count)?;
            }
        }
    }
}
