// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a line's level follows from: the contributions of its sources.

use std::fmt;
// Not the model checker's: what is only counted, or written under the pin's lock, orders nothing.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::eoi::ListenerList;
use crate::key::{EoiScope, SourceKey};
use crate::level::{Level, LoweredBy};

/// The line's part of a [`Pin`](crate::Pin)'s state: which sources assert, and who is told of an EOI. Only the
/// [`Line`](crate::Line) of the pin uses it.
#[derive(Debug, Default)]
pub struct WiredOr {
    /// How many sources assert, and stay until they lower the line themselves.
    held: usize,
    /// How many contributions the next EOI lowers: sources that have asserted since the last EOI, and a restored level.
    until_eoi: usize,
    /// The level that the pin took last.
    pub(crate) driven: Level,
    sources: usize,
    /// The line was high in a saved state, and not every source has stated its level since. One of `until_eoi`.
    restored: bool,
    /// How many sources have not stated their level since the restore. Counts while `restored` is set.
    unstated: usize,
    /// Counts restores.
    restores: u64,
    /// Counted where the lock is held anyway.
    pub(crate) counts: LineCounts,
    pub(crate) listeners: ListenerList,
}

/// What has happened on a line since it was made. Two snapshots and their difference say what happened in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LineCounts {
    /// How often a source has begun to assert. Asserting an asserting source is not counted.
    pub asserted: u64,
    /// How many of these assertions were by a source that the EOI before had lowered, because its cause persisted or it
    /// had another cause. And how often [`Line::reassert`](crate::Line::reassert) has driven the pin.
    pub reasserted: u64,
    /// How many EOIs there were.
    pub eois: u64,
    /// How many of these EOIs found the line low: EOIs of another pin with the same vector, of a masked pin, or after
    /// the device had lowered its line.
    pub idle_eois: u64,
    /// How many notifications found the counter of the listener's eventfd full. Such an eventfd is signalled already.
    pub full_eventfds: u64,
}

impl fmt::Display for LineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            asserted,
            reasserted,
            eois,
            idle_eois,
            full_eventfds: _,
        } = self;
        write!(
            f,
            "asserted {asserted} times ({reasserted} reasserted), {eois} EOIs ({idle_eois} while low)"
        )
    }
}

/// The mark of an asserting source that the device lowers. The count of EOIs never gets there.
const HELD: u64 = u64::MAX;
/// The mark of a source that does not assert.
const LOW: u64 = 0;

/// What the line knows of one source.
#[derive(Debug)]
pub(crate) struct Contribution {
    pub(crate) key: SourceKey,
    pub(crate) label: Box<str>,
    lowered_by: LoweredBy,
    // All three are written with the pin's lock held, which also orders them. They are written by store and not by a
    // read-modify-write: a locked instruction costs as much as half of the lock.
    /// [`LOW`], or [`WiredOr::asserting`] at the last assertion.
    mark: AtomicU64,
    /// The restore after which the source has stated its level last.
    stated: AtomicU64,
    /// How often the source has begun to assert.
    asserted: AtomicU64,
}

impl Contribution {
    pub(crate) fn new(key: SourceKey, label: Box<str>, lowered_by: LoweredBy) -> Self {
        Self {
            key,
            label,
            lowered_by,
            mark: AtomicU64::new(LOW),
            stated: AtomicU64::new(0),
            asserted: AtomicU64::new(0),
        }
    }

    pub(crate) fn asserted(&self) -> u64 {
        self.asserted.load(Ordering::Relaxed)
    }
}

impl WiredOr {
    pub(crate) fn level(&self) -> Level {
        if self.held + self.until_eoi > 0 {
            Level::High
        } else {
            Level::Low
        }
    }

    pub(crate) fn level_of(&self, contribution: &Contribution) -> Level {
        if contribution.mark.load(Ordering::Relaxed) == self.asserting(contribution) {
            Level::High
        } else {
            Level::Low
        }
    }

    /// Whether the line has neither a source nor a listener.
    pub fn is_unused(&self) -> bool {
        self.sources == 0 && self.listeners.entries().is_empty()
    }

    /// Whether [`Line::resample_gsi`](crate::Line::resample_gsi) has a listener to tell.
    pub fn has_listeners_of_gsi(&self) -> bool {
        self.listeners.has(EoiScope::is_gsi)
    }

    /// The mark of this contribution while it asserts. For a source that an EOI lowers, it is another one after each EOI, so
    /// that an EOI lowers any number of sources at once.
    fn asserting(&self, contribution: &Contribution) -> u64 {
        match contribution.lowered_by {
            LoweredBy::Device => HELD,
            LoweredBy::Eoi => self.counts.eois + 1,
        }
    }

    fn count_of(&mut self, contribution: &Contribution) -> &mut usize {
        match contribution.lowered_by {
            LoweredBy::Device => &mut self.held,
            LoweredBy::Eoi => &mut self.until_eoi,
        }
    }

    pub(crate) fn add_source(&mut self) {
        self.sources += 1;
        self.unstated += 1;
    }

    pub(crate) fn remove_source(&mut self, contribution: &Contribution) {
        self.end(contribution);
        self.sources -= 1;
    }

    /// Adds a contribution. Returns the mark before, or `None` if the pin has this contribution already.
    pub(crate) fn begin(&mut self, contribution: &Contribution) -> Option<u64> {
        let (before, mark) = (contribution.mark.load(Ordering::Relaxed), self.asserting(contribution));
        if self.state(contribution) {
            // The pin has this level from a saved state, and perhaps has not sent its interrupt.
            self.driven = Level::Low;
        } else if before == mark {
            return None;
        }
        if before != mark {
            contribution.mark.store(mark, Ordering::Relaxed);
            *self.count_of(contribution) += 1;
        }
        Some(before)
    }

    /// Counts an assertion that the pin took, of a contribution whose mark was `before`.
    pub(crate) fn count_assertion(&mut self, contribution: &Contribution, before: u64) {
        if before == self.asserting(contribution) {
            // It asserted before a restore and has stated so.
            return;
        }
        self.counts.asserted += 1;
        self.counts.reasserted += u64::from(before != LOW && before == self.counts.eois);
        contribution
            .asserted
            .store(contribution.asserted() + 1, Ordering::Relaxed);
    }

    /// Ends a contribution, if the source asserts.
    pub(crate) fn end(&mut self, contribution: &Contribution) {
        self.state(contribution);
        let asserts = self.level_of(contribution) == Level::High;
        contribution.mark.store(LOW, Ordering::Relaxed);
        if asserts {
            *self.count_of(contribution) -= 1;
        }
    }

    /// Lowers what an EOI lowers.
    pub(crate) fn eoi(&mut self) {
        self.counts.idle_eois += u64::from(self.level() == Level::Low);
        self.counts.eois += 1;
        self.until_eoi = 0;
        self.restored = false;
    }

    /// The pin has this level from a saved state. Returns whether a source asserts at this moment.
    pub(crate) fn restore(&mut self, level: Level) -> bool {
        self.until_eoi -= usize::from(self.restored);
        let asserts = self.level() == Level::High;
        self.driven = level;
        self.restored = level == Level::High;
        self.until_eoi += usize::from(self.restored);
        self.unstated = self.sources;
        self.restores += 1;
        asserts
    }

    /// A source states its level. Returns whether this is its first statement since a restore that left the line high.
    fn state(&mut self, contribution: &Contribution) -> bool {
        if !self.restored || contribution.stated.load(Ordering::Relaxed) == self.restores {
            return false;
        }
        contribution.stated.store(self.restores, Ordering::Relaxed);
        self.unstated = self.unstated.saturating_sub(1);
        if self.unstated == 0 {
            self.restored = false;
            self.until_eoi -= 1;
        }
        true
    }
}
