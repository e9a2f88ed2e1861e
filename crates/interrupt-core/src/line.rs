// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One line shared by several sources.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
// Not the model checker's: what is only counted orders nothing.
use std::sync::atomic::AtomicU64 as Counter;

use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, lock};
use crate::{
    Delivery, EoiGuard, EoiNotifier, EoiScope, Error, Gsi, Level, LevelSource, Listener, Listeners, LoweredBy, Pin,
    Result, SourceKey,
};

/// The one owner of a GSI that this process drives: the wired-OR of its sources, and the listeners of its EOIs.
///
/// A userspace interrupt controller keeps one for each pin, and the KVM backend one for each GSI that it drives with
/// KVM_IRQ_LINE. Whoever learns of an EOI calls [`eoi`](Self::eoi). Asserting, deasserting and an EOI allocate nothing and
/// take no lock that adding a source or a listener takes.
///
/// ```
/// use interrupt_core::{Gsi, LevelSource, Level, Line, LoweredBy, testing::RecordingPin};
///
/// let line = Line::new(Gsi(11), RecordingPin::default());
/// let serial = line.source("serial", LoweredBy::Device);
/// let disk = line.source("disk", LoweredBy::Device);
/// serial.assert()?;
/// disk.assert()?;
/// serial.deassert()?;
/// assert_eq!(line.level(), Level::High, "the disk still asserts");
/// drop(disk);
/// assert_eq!(line.level(), Level::Low, "a source withdraws its contribution when it goes");
/// # Ok::<(), interrupt_core::Error>(())
/// ```
pub struct Line<P> {
    gsi: Gsi,
    pin: P,
    drive: Mutex<Drive>,
    /// Whether the OR of all sources is high, for whoever looks without the lock. Written under it.
    high: AtomicBool,
    /// The sources, for subscription by key and for people. Apart from `drive`, so that adding a source keeps no device of
    /// the line waiting.
    contributions: Mutex<Vec<Arc<Contribution>>>,
    listeners: Listeners,
}

/// What the line's level follows from; [`Line::settle`] is the one place that acts on it.
#[derive(Debug)]
struct Drive {
    /// How many sources assert, and stay until they lower the line themselves.
    held: usize,
    /// How many sources have asserted since the last EOI, and are lowered by the next one.
    until_eoi: usize,
    /// Counts EOIs, from 1. A source that an EOI lowers asserts when its mark is the current epoch, so that an EOI lowers
    /// any number of them at once.
    epoch: u64,
    /// The line was high in a saved state, and not every source has stated its level since.
    restored: bool,
    /// How many sources have not stated their level since the restore. Meaningful while `restored` is set.
    unstated: usize,
    /// Counts restores. A source has stated its level when it bears the current count.
    restores: u64,
    /// The level that the pin took last.
    driven: Level,
    /// See [`LineCounts`]. Counted where the lock is held anyway, so that they cost no access of their own.
    asserted: u64,
    reasserted: u64,
    idle_eois: u64,
}

/// What has happened on a line since it was made. Two snapshots and their difference say what happened in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LineCounts {
    /// How often a source has begun to assert. Asserting an asserting source is not counted.
    pub asserted: u64,
    /// Of those, how often it was a source that the EOI before had lowered: its cause persisted, or it had another one. And how
    /// often a level was driven once more by [`Line::reassert`].
    pub reasserted: u64,
    /// How many EOIs there were.
    pub eois: u64,
    /// Of those, how many found the line low: the EOI of another pin with the same vector, one of a masked pin, or one that came
    /// after the device had lowered its line. Nobody's interrupt was ended by it that this line knows of.
    pub idle_eois: u64,
}

impl fmt::Display for LineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            asserted,
            reasserted,
            eois,
            idle_eois,
        } = self;
        write!(
            f,
            "asserted {asserted} times ({reasserted} reasserted), {eois} EOIs ({idle_eois} while low)"
        )
    }
}

impl Drive {
    fn counts(&self) -> LineCounts {
        LineCounts {
            asserted: self.asserted,
            reasserted: self.reasserted,
            eois: self.epoch - FIRST_EPOCH,
            idle_eois: self.idle_eois,
        }
    }

    fn level(&self) -> Level {
        if self.held + self.until_eoi > 0 || self.restored {
            Level::High
        } else {
            Level::Low
        }
    }

    /// A source states its level. Returns whether this is its first statement since a restore that left the line high.
    fn state(&mut self, contribution: &Contribution) -> bool {
        if !self.restored || contribution.stated.swap(self.restores, Ordering::Relaxed) == self.restores {
            return false;
        }
        self.unstated = self.unstated.saturating_sub(1);
        self.restored = self.unstated > 0;
        true
    }

    /// The mark that a contribution of this kind bears while it asserts, and the counter it is counted in.
    fn asserting(&mut self, lowered_by: LoweredBy) -> (u64, &mut usize) {
        match lowered_by {
            LoweredBy::Device => (HELD, &mut self.held),
            LoweredBy::Eoi => (self.epoch, &mut self.until_eoi),
        }
    }

    /// Ends a contribution, if it is one.
    fn end(&mut self, contribution: &Contribution) {
        let (mark, count) = self.asserting(contribution.lowered_by);
        if contribution.set(LOW) == mark {
            *count -= 1;
        }
    }
}

/// The mark of an asserting source that the device lowers. The epoch never gets there.
const HELD: u64 = u64::MAX;
/// The mark of a source that does not assert.
const LOW: u64 = 0;
/// The epoch before the first EOI.
const FIRST_EPOCH: u64 = 1;

/// What the line knows of one source.
#[derive(Debug)]
struct Contribution {
    key: SourceKey,
    label: Box<str>,
    lowered_by: LoweredBy,
    /// See [`Drive::asserting`]. Written under the drive lock only, which also orders it.
    mark: AtomicU64,
    /// See [`Drive::restores`]. Written under the drive lock only.
    stated: AtomicU64,
    /// How often it has begun to assert. Written under the drive lock only. A std atomic even under a model checker: it orders
    /// nothing.
    asserted: Counter,
}

impl<P: Pin> Line<P> {
    /// A line without sources, on a pin that is low.
    pub fn new(gsi: Gsi, pin: P) -> Arc<Self> {
        Arc::new(Self {
            gsi,
            pin,
            drive: Mutex::new(Drive {
                held: 0,
                until_eoi: 0,
                restored: false,
                unstated: 0,
                restores: 0,
                epoch: FIRST_EPOCH,
                driven: Level::Low,
                asserted: 0,
                reasserted: 0,
                idle_eois: 0,
            }),
            high: AtomicBool::new(false),
            contributions: Mutex::new(Vec::new()),
            listeners: Listeners::new(),
        })
    }

    /// The line's number.
    pub fn gsi(&self) -> Gsi {
        self.gsi
    }

    /// The controller's side.
    pub fn pin(&self) -> &P {
        &self.pin
    }

    /// The OR of all sources.
    pub fn level(&self) -> Level {
        if self.high.load(Ordering::Acquire) {
            Level::High
        } else {
            Level::Low
        }
    }

    /// What has happened on the line. It takes the line's lock for as long as an assertion does.
    ///
    /// ```
    /// use interrupt_core::{Gsi, LevelSource, Line, LoweredBy, testing::RecordingPin};
    ///
    /// let line = Line::new(Gsi(11), RecordingPin::default());
    /// let serial = line.source("serial", LoweredBy::Eoi);
    /// serial.assert()?;
    /// line.eoi()?;
    /// serial.assert()?; // its cause persists
    /// line.eoi()?;
    /// line.eoi()?; //      another pin's, with the same vector
    /// assert_eq!(line.counts().to_string(), "asserted 2 times (1 reasserted), 3 EOIs (1 while low)");
    /// # Ok::<(), interrupt_core::Error>(())
    /// ```
    pub fn counts(&self) -> LineCounts {
        lock(&self.drive).counts()
    }

    /// Whether the line has neither a source nor a listener.
    pub fn is_unused(&self) -> bool {
        lock(&self.contributions).is_empty() && self.listeners.is_empty()
    }

    /// Adds a source. It does not assert yet.
    pub fn source(self: &Arc<Self>, label: impl Into<String>, lowered_by: LoweredBy) -> LineSource<P> {
        let contribution = Arc::new(Contribution {
            key: SourceKey::new(self.gsi),
            label: label.into().into_boxed_str(),
            lowered_by,
            mark: AtomicU64::new(LOW),
            stated: AtomicU64::new(0),
            asserted: Counter::new(0),
        });
        let mut contributions = lock(&self.contributions);
        let mut drive = lock(&self.drive);
        drive.unstated += usize::from(drive.restored);
        drop(drive);
        // Most lines have one source, and there can be thousands of lines.
        contributions.reserve_exact(1);
        contributions.push(Arc::clone(&contribution));
        drop(contributions);
        LineSource {
            line: Arc::clone(self),
            contribution,
        }
    }

    /// The guest has ended the interrupt of this line: lowers what an EOI lowers, then tells every listener, which may
    /// assert again. Returns the level that holds after all have answered.
    ///
    /// Controllers call this, with no lock held, also for an EOI that was for another pin of the same vector.
    ///
    /// # Errors
    /// The first of: the pin would not be lowered, a listener's eventfd could not be written. All listeners were told.
    pub fn eoi(&self) -> Result<Level> {
        let lowered = {
            let mut drive = lock(&self.drive);
            drive.idle_eois += u64::from(drive.level() == Level::Low);
            drive.epoch += 1;
            drive.until_eoi = 0;
            drive.restored = false;
            self.settle(&mut drive)
        };
        let lowered = lowered.and_then(|outcome| self.finish(outcome));
        let told = self.listeners.notify(self.gsi);
        lowered.and(told).map(|()| self.level())
    }

    /// Drives the pin once more with a level that it may have forgotten: KVM's IOAPIC does at an unmask with a resampler on
    /// the GSI, and so does a controller whose state was restored. Does nothing when the line is low.
    ///
    /// # Errors
    /// The pin's.
    pub fn reassert(&self) -> Result<Delivery> {
        let mut drive = lock(&self.drive);
        if drive.level() == Level::Low {
            return Ok(Delivery::Coalesced);
        }
        let outcome = self.pin.drive(Level::High)?;
        drive.driven = Level::High;
        drive.reasserted += 1;
        drop(drive);
        self.pin.deliver(outcome)
    }

    /// Takes over a level from a saved state, after the pin has taken over its own. A restored high level is a contribution of
    /// its own: the first statement of each source replaces its share, and the next EOI ends what is left of it. Sources that
    /// assert now go on asserting, and their level is driven once more. Make the sources before this, or before the first of
    /// them states its level.
    ///
    /// # Errors
    /// The pin's.
    pub fn restore(&self, level: Level) -> Result<Delivery> {
        let contributions = lock(&self.contributions);
        let mut drive = lock(&self.drive);
        drive.driven = level;
        drive.restored = false;
        let live = drive.level();
        drive.restored = level == Level::High;
        drive.unstated = contributions.len();
        drive.restores += 1;
        self.high.store(drive.level() == Level::High, Ordering::Release);
        drop((drive, contributions));
        match live {
            Level::High => self.reassert(),
            Level::Low => Ok(Delivery::Coalesced),
        }
    }

    /// Tells the listeners of the GSI to state their level, and not those of the sources of this line, whose levels the line
    /// knows: for a moment at which a signal may have been lost that went to the processor without this line.
    ///
    /// # Errors
    /// A listener's eventfd could not be written. All were told.
    pub fn resample_gsi(&self) -> Result<()> {
        self.listeners.notify_gsi(self.gsi)
    }

    /// Runs `change` with the pin low and the sources waiting, then drives the line's level: for a change of where the pin
    /// leads. Without that the old target would be left with a level that nobody lowers any more.
    ///
    /// # Errors
    /// The pin's. If it would not be lowered, `change` was not run.
    pub fn while_low<R>(&self, change: impl FnOnce() -> R) -> Result<R> {
        let mut drive = lock(&self.drive);
        if drive.driven == Level::High {
            self.pin.drive(Level::Low)?;
            drive.driven = Level::Low;
        }
        let result = change();
        let outcome = self.settle(&mut drive)?;
        drop(drive);
        self.finish(outcome).map(|()| result)
    }

    fn assert(&self, contribution: &Contribution) -> Result<Delivery> {
        let Some(outcome) = self.raise(contribution)? else {
            return Ok(Delivery::Coalesced);
        };
        let delivered = self.pin.deliver(outcome);
        if delivered.is_err() {
            // The error is the answer; if lowering fails as well, the next change of the line tries it again.
            drop(self.deassert(contribution));
        }
        delivered
    }

    fn deassert(&self, contribution: &Contribution) -> Result<()> {
        self.lower(contribution).and_then(|outcome| self.finish(outcome))
    }

    /// Adds a contribution. What is returned is to be delivered without the lock.
    fn raise(&self, contribution: &Contribution) -> Result<Option<P::Outcome>> {
        let mut drive = lock(&self.drive);
        let (mark, count) = drive.asserting(contribution.lowered_by);
        let before = contribution.set(mark);
        *count += usize::from(before != mark);
        if drive.state(contribution) {
            // The pin has this level from a saved state, and perhaps has not sent it.
            drive.driven = Level::Low;
        } else if before == mark {
            return Ok(None);
        }
        let outcome = self.settle(&mut drive);
        if outcome.is_ok() {
            let begins = before != mark;
            drive.asserted += u64::from(begins);
            drive.reasserted += u64::from(begins && before != LOW && before + 1 == mark);
            let asserted = contribution.asserted.load(Ordering::Relaxed);
            contribution
                .asserted
                .store(asserted + u64::from(begins), Ordering::Relaxed);
        } else {
            drive.end(contribution);
            // If lowering fails as well, the next change of the line tries it again.
            drop(self.settle(&mut drive));
        }
        outcome
    }

    /// Ends a contribution. What is returned is to be delivered without the lock.
    fn lower(&self, contribution: &Contribution) -> Result<Option<P::Outcome>> {
        let mut drive = lock(&self.drive);
        drive.state(contribution);
        drive.end(contribution);
        self.settle(&mut drive)
    }

    fn finish(&self, outcome: Option<P::Outcome>) -> Result<()> {
        outcome.map_or(Ok(()), |outcome| self.pin.deliver(outcome).map(drop))
    }

    /// Brings the pin to the line's level, if it is not there. What is returned is to be delivered without the lock.
    fn settle(&self, drive: &mut Drive) -> Result<Option<P::Outcome>> {
        let level = drive.level();
        self.high.store(level == Level::High, Ordering::Release);
        if level == drive.driven {
            return Ok(None);
        }
        let outcome = self.pin.drive(level)?;
        drive.driven = level;
        Ok(Some(outcome))
    }

    fn remove(&self, contribution: &Arc<Contribution>) -> Result<()> {
        lock(&self.contributions).retain(|other| !Arc::ptr_eq(other, contribution));
        self.listeners.end_source(contribution.key);
        self.deassert(contribution)
    }
}

impl<P: Pin> EoiNotifier for Line<P> {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        // Subscribed first and looked up second: a source that goes meanwhile either ends the listener or is missed here,
        // and a refused listener is dropped without a lock held, since it may own a source of this very line.
        let guard = self.listeners.subscribe(subject, listener)?;
        let here = match subject {
            EoiScope::Gsi(gsi) => gsi == self.gsi,
            EoiScope::Source(key) => lock(&self.contributions)
                .iter()
                .any(|contribution| contribution.key == key),
        };
        if here {
            Ok(guard)
        } else {
            Err(Error::NotFound {
                operation: "subscribe",
                subject,
            })
        }
    }
}

impl<P: Pin> fmt::Debug for Line<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.gsi)?;
        let contributions: MutexGuard<'_, Vec<_>> = lock(&self.contributions);
        let mut drive = lock(&self.drive);
        for (n, contribution) in contributions.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", contribution.label, contribution.level(&mut drive))?;
        }
        if contributions.is_empty() {
            f.write_str("no source")?;
        }
        Ok(())
    }
}

impl Contribution {
    /// Sets the mark and returns the one before. Not a swap: the drive lock is held, and a locked instruction costs as much
    /// as half of it.
    fn set(&self, mark: u64) -> u64 {
        let before = self.mark.load(Ordering::Relaxed);
        self.mark.store(mark, Ordering::Relaxed);
        before
    }

    fn level(&self, drive: &mut Drive) -> Level {
        if self.mark.load(Ordering::Relaxed) == drive.asserting(self.lowered_by).0 {
            Level::High
        } else {
            Level::Low
        }
    }
}

/// A level source on a [`Line`].
pub struct LineSource<P: Pin> {
    line: Arc<Line<P>>,
    contribution: Arc<Contribution>,
}

impl<P: Pin> LineSource<P> {
    /// The line that this source is a part of.
    pub fn line(&self) -> &Arc<Line<P>> {
        &self.line
    }

    /// The first half of an assertion or its end, for a pin whose line leads to this one: its own
    /// [`Pin::drive`] calls this, and its [`Pin::deliver`] then gives what this returns to that of
    /// [this line's pin](Line::pin). Devices have no use for it.
    ///
    /// # Errors
    /// The pin's; this source is then not asserted.
    pub fn drive(&self, level: Level) -> Result<Option<P::Outcome>> {
        match level {
            Level::High => self.line.raise(&self.contribution),
            Level::Low => self.line.lower(&self.contribution),
        }
    }

    /// How often this source has begun to assert.
    pub fn asserted(&self) -> u64 {
        self.contribution.asserted.load(Ordering::Relaxed)
    }

    /// This source's own level.
    pub fn level(&self) -> Level {
        self.contribution.level(&mut lock(&self.line.drive))
    }
}

impl<P: Pin> LevelSource for LineSource<P> {
    fn key(&self) -> SourceKey {
        self.contribution.key
    }

    fn label(&self) -> &str {
        &self.contribution.label
    }

    fn assert(&self) -> Result<Delivery> {
        self.line.assert(&self.contribution)
    }

    fn deassert(&self) -> Result<()> {
        self.line.deassert(&self.contribution)
    }

    fn force_deassert(&self) -> Result<()> {
        self.line.deassert(&self.contribution)
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl<P: Pin> Drop for LineSource<P> {
    fn drop(&mut self) {
        // There is nobody to tell. A pin that would not be lowered now is lowered at the line's next change.
        drop(self.line.remove(&self.contribution));
    }
}

impl<P: Pin> fmt::Debug for LineSource<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.label(), self.gsi(), self.level())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::testing::RecordingPin;

    fn line() -> Arc<Line<RecordingPin>> {
        Line::new(Gsi(5), RecordingPin::default())
    }

    #[test]
    fn the_line_is_the_or_of_its_sources() {
        let line = line();
        let (a, b) = (line.source("a", LoweredBy::Device), line.source("b", LoweredBy::Device));
        a.assert().unwrap();
        b.assert().unwrap();
        a.deassert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High]);
        b.deassert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High, Level::Low]);
    }

    #[test]
    fn what_happens_is_counted() {
        let line = line();
        let (disk, net) = (
            line.source("disk", LoweredBy::Eoi),
            line.source("net", LoweredBy::Device),
        );
        disk.assert().unwrap();
        disk.assert().unwrap();
        net.assert().unwrap();
        line.eoi().unwrap();
        disk.assert().unwrap(); // again, after the EOI that lowered it
        net.assert().unwrap(); //  it has been asserting all along
        assert_eq!((disk.asserted(), net.asserted()), (2, 1));
        net.deassert().unwrap();
        line.eoi().unwrap();
        line.eoi().unwrap(); // with nothing asserted
        disk.assert().unwrap(); // an EOI passed it by: another cause
        line.reassert().unwrap();
        let expected = LineCounts {
            asserted: 4,
            reasserted: 2,
            eois: 3,
            idle_eois: 1,
        };
        assert_eq!(line.counts(), expected);
    }

    #[test]
    fn an_assertion_that_the_pin_refuses_is_not_counted() {
        let line = line();
        let disk = line.source("disk", LoweredBy::Eoi);
        line.pin().refuse_next(1);
        disk.assert().unwrap_err();
        assert_eq!((disk.asserted(), line.counts()), (0, LineCounts::default()));
        disk.assert().unwrap();
        assert_eq!((disk.asserted(), line.counts().asserted), (1, 1));
    }

    #[test]
    fn asserting_twice_is_asserting_once() {
        let line = line();
        let a = line.source("a", LoweredBy::Device);
        a.assert().unwrap();
        assert_eq!(a.assert().unwrap(), Delivery::Coalesced);
        a.deassert().unwrap();
        a.deassert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High, Level::Low]);
    }

    #[test]
    fn an_eoi_lowers_only_the_sources_that_asked_for_it() {
        let line = line();
        let (kept, lowered) = (
            line.source("kept", LoweredBy::Device),
            line.source("lowered", LoweredBy::Eoi),
        );
        kept.assert().unwrap();
        lowered.assert().unwrap();
        assert_eq!(line.eoi().unwrap(), Level::High);
        assert_eq!((kept.level(), lowered.level()), (Level::High, Level::Low));
        kept.deassert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High, Level::Low]);
    }

    #[test]
    fn a_listener_sees_its_line_low_and_may_assert() {
        let line = line();
        let source = Arc::new(line.source("device", LoweredBy::Eoi));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (device, levels) = (Arc::clone(&source), Arc::clone(&seen));
        let listener = Listener::callback(move |_| {
            levels.lock().unwrap().push(device.level());
            device.assert().unwrap();
        });
        let guard = line.subscribe(source.key().into(), listener).unwrap();
        source.assert().unwrap();
        assert_eq!(line.eoi().unwrap(), Level::High);
        assert_eq!(*seen.lock().unwrap(), [Level::Low]);
        assert_eq!(line.pin().levels(), [Level::High, Level::Low, Level::High]);
        drop(guard);
    }

    #[test]
    fn every_sharer_is_told_whoever_asserted() {
        let line = line();
        let sources: Vec<_> = (0..8)
            .map(|n| line.source(format!("device {n}"), LoweredBy::Eoi))
            .collect();
        let told = Arc::new(Mutex::new(Vec::new()));
        let guards: Vec<_> = sources
            .iter()
            .enumerate()
            .map(|(n, source)| {
                let told = Arc::clone(&told);
                let listener = Listener::callback(move |_| told.lock().unwrap().push(n));
                line.subscribe(source.key().into(), listener).unwrap()
            })
            .collect();
        sources[3].assert().unwrap();
        line.eoi().unwrap();
        assert_eq!(*told.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        drop(guards);
    }

    #[test]
    fn a_key_of_another_line_or_of_a_source_that_went_is_not_found() {
        let (here, there) = (line(), line());
        let stranger = there.source("stranger", LoweredBy::Eoi);
        let gone = here.source("gone", LoweredBy::Eoi).key();
        for subject in [stranger.key().into(), gone.into(), EoiScope::Gsi(Gsi(6))] {
            let error = here.subscribe(subject, Listener::callback(|_| {})).unwrap_err();
            assert_eq!(error.errno(), Some(2), "{error}");
        }
    }

    #[test]
    fn a_source_withdraws_and_ends_its_listener_when_it_goes() {
        let line = line();
        let source = line.source("device", LoweredBy::Eoi);
        let told = Arc::new(Mutex::new(0));
        let count = Arc::clone(&told);
        let guard = line.subscribe(
            source.key().into(),
            Listener::callback(move |_| *count.lock().unwrap() += 1),
        );
        source.assert().unwrap();
        drop(source);
        assert_eq!(line.pin().levels(), [Level::High, Level::Low]);
        line.eoi().unwrap();
        assert_eq!(*told.lock().unwrap(), 0);
        drop(guard.unwrap());
    }

    #[test]
    fn a_pin_that_refuses_leaves_the_source_deasserted() {
        let line = line();
        let source = line.source("device", LoweredBy::Device);
        line.pin().refuse_next(1);
        assert_eq!(source.assert().unwrap_err().errno(), Some(5));
        assert_eq!((source.level(), line.level()), (Level::Low, Level::Low));
        source.assert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High]);
    }

    #[test]
    fn a_refused_lowering_is_tried_again_at_the_next_change() {
        let line = line();
        let source = line.source("device", LoweredBy::Device);
        source.assert().unwrap();
        line.pin().refuse_next(1);
        source.deassert().unwrap_err();
        source.deassert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High, Level::Low]);
    }

    #[test]
    fn reasserting_drives_a_high_level_again_and_a_low_one_not() {
        let line = line();
        let source = line.source("device", LoweredBy::Device);
        line.reassert().unwrap();
        source.assert().unwrap();
        line.reassert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High, Level::High]);
    }

    #[test]
    fn the_first_statement_of_each_source_replaces_a_restored_level() {
        let line = line();
        let [first, second] = ["first", "second"].map(|label| line.source(label, LoweredBy::Device));
        line.restore(Level::High).unwrap();
        assert_eq!((line.level(), line.pin().levels()), (Level::High, vec![]));
        first.deassert().unwrap();
        first.deassert().unwrap();
        assert_eq!(line.level(), Level::High, "the second may have been the one");
        second.assert().unwrap();
        second.deassert().unwrap();
        assert_eq!(line.pin().levels(), [Level::High, Level::Low]);
    }

    #[test]
    fn an_eoi_ends_a_restored_level_that_nobody_stands_by() {
        let line = line();
        let source = line.source("device", LoweredBy::Device);
        line.restore(Level::High).unwrap();
        assert_eq!(line.eoi().unwrap(), Level::Low);
        assert_eq!(line.pin().levels(), [Level::Low]);
        source.assert().unwrap();
        line.restore(Level::Low).unwrap();
        assert_eq!(line.pin().levels(), [Level::Low, Level::High, Level::High], "live");
        line.restore(Level::High).unwrap();
        source.assert().unwrap();
        assert_eq!(line.counts().asserted, 1, "it asserted all the time");
    }

    #[test]
    fn debug_reads_as_a_sentence() {
        let line = line();
        let _serial = line.source("serial", LoweredBy::Device);
        let edu = line.source("edu", LoweredBy::Device);
        edu.assert().unwrap();
        assert_eq!(format!("{line:?}"), "gsi 5: serial low, edu high");
        assert_eq!(format!("{edu:?}"), "edu on gsi 5: high");
    }
}
