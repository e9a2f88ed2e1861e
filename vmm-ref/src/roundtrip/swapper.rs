// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Changes the path while interrupts flow: after a number of round trips, at a random moment of the next round trip, to
//! a random path.

use std::collections::BTreeMap;
use std::hint::spin_loop;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use interrupt_core::forward::{Connection, Path};
use serde::Serialize;

use crate::composition::check::Impossible;
use crate::error::{Error, Result};
use crate::latency::{Latency, Percentiles};
use crate::passthrough::forwarding::Forwarding;
use crate::roundtrip::traffic::Progress;

/// The longest random delay of a change after the round trip at which it is due. A round trip takes about as long.
const SPREAD_NS: u64 = 60_000;

/// The results of the changes of path.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The number of round trips between two changes.
    pub every: u64,
    /// How often the path was changed.
    pub swaps: u64,
    /// How often the interrupt changed to each path.
    pub to: BTreeMap<String, u64>,
    /// How long a change took from its first step to its last, in us. The interrupt is held back for a part of this
    /// time. `null` when there was no change.
    pub cost_us: Option<Percentiles>,
}

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
        let paths = connection.possible();
        if paths.len() < 2 {
            return Err(Error::NothingToSwap(
                forwarding
                    .explanation()
                    .map(|pair| pair.to_string())
                    .unwrap_or_default(),
            ));
        }
        let (watched, connection) = (Arc::clone(progress), Arc::downgrade(connection));
        let thread = thread::Builder::new()
            .name("swapper".to_owned())
            .spawn(move || {
                watched.call_every(every);
                swap(&connection, &paths, every, &watched)
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
fn swap(connection: &Weak<Connection>, paths: &[Path], every: u64, progress: &Progress) -> Result<Account> {
    let (mut random, mut cost, mut to) = (Random(1), Latency::new(), BTreeMap::new());
    let mut due = every;
    while !progress.is_finished() {
        if progress.done() < due {
            thread::park();
            continue;
        }
        due = progress.done() / every * every + every;
        wait(Duration::from_nanos(random.next() % SPREAD_NS));
        let Some(connection) = connection.upgrade() else { break };
        let now = connection.path();
        let others: Vec<_> = paths.iter().filter(|path| Some(**path) != now).collect();
        let path = *others[random.below(others.len())];
        let start = Instant::now();
        let came = connection.restrict(Some(path))?;
        cost.record(start.elapsed());
        *to.entry(path.to_string()).or_default() += 1;
        if came != Some(path) {
            let status = connection.explain().to_string();
            return Err(Error::Forward {
                wanted: path.to_string(),
                status,
            });
        }
    }
    Ok(Account {
        every,
        swaps: to.values().sum(),
        to,
        cost_us: cost.percentiles(),
    })
}

/// A random number generator with the same sequence in each run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        // `n` is not 0, because at least one of the two or more paths differs from the current path.
        (self.next() % n as u64) as usize
    }
}

/// Waits by polling, because a sleep would be longer than a round trip.
fn wait(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        spin_loop();
    }
}
