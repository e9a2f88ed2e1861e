// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Changes of a connection's path to another path at random, counted and timed.

use std::collections::BTreeMap;
use std::fmt;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

use interrupt_core::forward::{Connection, Path};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::latency::{Latency, Percentiles};

/// The longest random delay of a change after the round trip at which it is due. A round trip takes about as long.
const SPREAD_NS: u64 = 60_000;

/// The results of the changes of path.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The number of round trips, or of a line's EOIs, between two changes.
    pub every: u64,
    /// How often the path was changed.
    pub swaps: u64,
    /// How often the interrupt changed to each path.
    pub to: BTreeMap<String, u64>,
    /// How long a change took from its first step to its last, in us. The interrupt is held back for a part of this
    /// time. `null` when there was no change.
    pub cost_us: Option<Percentiles>,
}

/// The changes of one connection.
pub struct PathChanges {
    every: u64,
    due: u64,
    paths: Vec<Path>,
    random: Random,
    cost: Latency,
    to: BTreeMap<String, u64>,
}

impl PathChanges {
    /// Changes among the paths that the connection can take, one for each `every` of a count.
    ///
    /// # Errors
    /// [`Error::NothingToSwap`] when there are fewer than two paths.
    pub fn new(connection: &Connection, every: u64) -> Result<Self> {
        let paths = connection.possible();
        if paths.len() < 2 {
            return Err(Error::NothingToSwap(connection.explain().to_string()));
        }
        Ok(Self {
            every,
            due: every,
            paths,
            random: Random(1),
            cost: Latency::new(),
            to: BTreeMap::new(),
        })
    }

    /// Whether a change is due at this count.
    pub fn is_due(&self, count: u64) -> bool {
        count >= self.due
    }

    /// Changes the path, after a random delay that is shorter than a round trip. `count` is the count now.
    ///
    /// # Errors
    /// The connection's, and [`Error::Forward`] when the interrupt takes another path than asked for.
    pub fn change(&mut self, connection: &Connection, count: u64) -> Result<()> {
        self.due = count / self.every * self.every + self.every;
        wait(Duration::from_nanos(self.random.next() % SPREAD_NS));
        let now = connection.path();
        let others: Vec<_> = self.paths.iter().filter(|path| Some(**path) != now).collect();
        let path = *others[self.random.below(others.len())];
        let start = Instant::now();
        let came = connection.restrict(Some(path))?;
        self.cost.record(start.elapsed());
        *self.to.entry(path.to_string()).or_default() += 1;
        if came == Some(path) {
            return Ok(());
        }
        Err(Error::Forward {
            wanted: path.to_string(),
            status: connection.explain().to_string(),
        })
    }

    /// The results so far.
    pub fn account(&self) -> Account {
        Account {
            every: self.every,
            swaps: self.to.values().sum(),
            to: self.to.clone(),
            cost_us: self.cost.percentiles(),
        }
    }
}

impl fmt::Debug for PathChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of {:?} for each {}", self.paths, self.every)
    }
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
