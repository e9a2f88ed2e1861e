// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One line shared by several sources.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use crate::eoi::{Entry, EoiGuard, EoiNotifier, Listener, tell_all};
use crate::error::{Error, Result};
use crate::every_step::EveryStep;
use crate::gsi::Gsi;
use crate::key::{EoiScope, SourceKey};
use crate::level::{Delivery, Level, LoweredBy};
use crate::pin::Pin;
use crate::source::LevelSource;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};
use crate::wired_or::{Contribution, LineCounts, WiredOr};

/// The one owner of a GSI that this process drives: the wired-OR of its sources, and the listeners of its EOIs.
///
/// A userspace interrupt controller keeps a line for each pin, and the KVM backend keeps one for each GSI that it drives
/// with KVM_IRQ_LINE. The controller calls [`eoi`](Self::eoi) when it learns of an EOI.
///
/// Asserting, deasserting and an EOI take the pin's lock and allocate nothing. Adding a source or a listener takes this
/// lock to exchange a pointer, and makes everything ready and drops everything without it.
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
    /// Whether the OR of all sources is high, to be read without the pin's lock. Written under it.
    high: AtomicBool,
    /// The sources, for subscription by key and for people. Never locked inside the pin's lock.
    contributions: Mutex<Vec<Arc<Contribution>>>,
    this: Weak<Self>,
}

impl<P: Pin> Line<P> {
    /// A line without sources, on a pin that is low.
    pub fn new(gsi: Gsi, pin: P) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            gsi,
            pin,
            high: AtomicBool::new(false),
            contributions: Mutex::new(Vec::new()),
            this: Weak::clone(this),
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

    /// What has happened on the line.
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
        self.wired_or(|or| or.counts)
    }

    /// Whether the line has neither a source nor a listener.
    pub fn is_unused(&self) -> bool {
        self.wired_or(|or| or.is_unused())
    }

    /// Adds a source. The source does not assert yet.
    pub fn source(self: &Arc<Self>, label: impl Into<String>, lowered_by: LoweredBy) -> LineSource<P> {
        let label = label.into().into_boxed_str();
        let contribution = Arc::new(Contribution::new(SourceKey::new(self.gsi), label, lowered_by));
        let mut contributions = lock(&self.contributions);
        // Most lines have one source, and there can be thousands of lines.
        contributions.reserve_exact(1);
        contributions.push(Arc::clone(&contribution));
        drop(contributions);
        self.wired_or(WiredOr::add_source);
        LineSource {
            line: Arc::clone(self),
            contribution,
        }
    }

    /// Adds a source that another line drives: a router's GSI, which leads to this pin.
    pub fn input(self: &Arc<Self>, label: impl Into<String>) -> LineInput<P> {
        LineInput(self.source(label, LoweredBy::Device))
    }

    /// The guest has ended the interrupt of this line: lowers what an EOI lowers, then tells every listener, which may
    /// assert again. Returns the level that holds after all have answered.
    ///
    /// Controllers call this without a lock, also for an EOI of another pin with the same vector.
    ///
    /// # Errors
    /// The first of: the pin would not be lowered, a listener's eventfd could not be written. All listeners were told.
    pub fn eoi(&self) -> Result<Level> {
        self.eoi_then(|_| (), |()| ()).map(|()| self.level())
    }

    /// As [`eoi`](Self::eoi), and then has the controller look at the pin with the lock held, after all callbacks have
    /// answered: for a controller that sends the interrupt again while the line is high. `then` gets what `look`
    /// returned, without the lock. Both run also when a callback has panicked, and the panic goes on after them.
    ///
    /// # Errors
    /// As [`eoi`](Self::eoi).
    pub fn eoi_then<R>(&self, look: impl FnOnce(&mut P::State) -> R, then: impl FnOnce(R)) -> Result<()> {
        let mut steps = EveryStep::default();
        let mut state = self.pin.lock();
        self.pin.wired_or(&mut state).eoi();
        let mut lowered = self.settle(&mut state);
        let listeners = &self.pin.wired_or(&mut state).listeners;
        let told = if listeners.has_callbacks() {
            let entries = Arc::clone(listeners.entries());
            drop(state);
            // A callback meets the line low.
            lowered = self.finish_step(&mut steps, lowered).map(|()| None);
            let told = steps.take(|| tell_all(&entries, self.gsi, |_| true));
            state = self.pin.lock();
            told.unwrap_or(Ok(0))
        } else {
            // Under the lock, which saves a second one. Who is woken by an eventfd meets the line low.
            listeners.tell_eventfds(self.gsi)
        };
        let told = told.map(|full| self.pin.wired_or(&mut state).counts.full_eventfds += full);
        let seen = look(&mut state);
        drop(state);
        let lowered = self.finish_step(&mut steps, lowered);
        steps.take(|| then(seen));
        steps.end();
        lowered.and(told)
    }

    /// Drives the pin high once more, if the line is high: for a controller that may have forgotten the level. KVM's
    /// IOAPIC forgets the level at an unmask with a resampler on the GSI.
    ///
    /// # Errors
    /// The pin's.
    pub fn reassert(&self) -> Result<Delivery> {
        let mut state = self.pin.lock();
        if self.pin.wired_or(&mut state).level() == Level::Low {
            return Ok(Delivery::Coalesced);
        }
        let outcome = self.drive(&mut state, Level::High)?;
        self.pin.wired_or(&mut state).counts.reasserted += 1;
        drop(state);
        self.pin.deliver(outcome)
    }

    /// Takes over a level from a saved state, after the pin has taken over its own part of the state.
    ///
    /// A restored high level is a contribution of its own. It ends when each source has stated its level, high or low,
    /// and at the next EOI at the latest. Sources that assert now go on asserting, and their level is driven once more.
    /// Add the sources before this, or before the first of them states its level.
    ///
    /// # Errors
    /// The pin's.
    pub fn restore(&self, level: Level) -> Result<Delivery> {
        let mut state = self.pin.lock();
        let or = self.pin.wired_or(&mut state);
        let asserting = or.restore(level);
        self.high.store(or.level() == Level::High, Ordering::Release);
        if !asserting {
            return Ok(Delivery::Coalesced);
        }
        let outcome = self.drive(&mut state, Level::High)?;
        drop(state);
        self.pin.deliver(outcome)
    }

    /// Tells the listeners of the GSI to state their level, and not the listeners of this line's sources, whose levels
    /// the line knows: for a moment at which a signal that went to the processor without this line may have been lost.
    ///
    /// # Errors
    /// A listener's eventfd could not be written. All were told.
    pub fn resample_gsi(&self) -> Result<()> {
        let entries = self.wired_or(|or| or.listeners.entries_if_any(EoiScope::is_gsi));
        entries.map_or(Ok(()), |entries| {
            tell_all(&entries, self.gsi, EoiScope::is_gsi).map(drop)
        })
    }

    /// Runs `change` with the pin low and the sources waiting, then drives the line's level: for a change of where the pin
    /// leads. Otherwise the old target would keep the level for ever.
    ///
    /// `change` runs under the pin's lock. What it replaces is to be in its result, and what it consumes in an `Option`
    /// that it takes from, so that both are dropped without the lock.
    ///
    /// # Errors
    /// The pin's. If the pin would not be lowered, `change` was not run.
    pub fn while_low<R>(&self, mut change: impl FnMut(&mut P::State) -> R) -> Result<R> {
        // Declared before the lock is taken, so that it is dropped after the lock on every path.
        let result;
        let outcome = {
            let mut state = self.pin.lock();
            if self.pin.wired_or(&mut state).driven == Level::High {
                self.drive(&mut state, Level::Low)?;
            }
            result = change(&mut state);
            self.settle(&mut state)
        };
        self.finish(outcome?).map(|()| result)
    }

    fn assert(&self, contribution: &Contribution) -> Result<Delivery> {
        let Some(outcome) = self.raise(contribution)? else {
            return Ok(Delivery::Coalesced);
        };
        let mut steps = EveryStep::default();
        let delivered = steps.take(|| self.pin.deliver(outcome));
        if !matches!(delivered, Some(Ok(_))) {
            // The error is the answer; if lowering fails as well, the next change of the line tries it again.
            steps.take(|| drop(self.deassert(contribution)));
        }
        steps.end();
        delivered.unwrap_or(Ok(Delivery::Coalesced))
    }

    fn deassert(&self, contribution: &Contribution) -> Result<()> {
        self.lower(contribution).and_then(|outcome| self.finish(outcome))
    }

    /// Adds a contribution. The outcome is to be delivered without the lock.
    fn raise(&self, contribution: &Contribution) -> Result<Option<P::Outcome>> {
        let mut state = self.pin.lock();
        let or = self.pin.wired_or(&mut state);
        let driven = or.driven;
        let Some(before) = or.begin(contribution) else {
            return Ok(None);
        };
        match self.settle(&mut state) {
            Ok(outcome) => {
                self.pin.wired_or(&mut state).count_assertion(contribution, before);
                Ok(outcome)
            }
            Err(error) => {
                let or = self.pin.wired_or(&mut state);
                // A pin that is high from a saved state has stayed so.
                or.driven = driven;
                or.end(contribution);
                // If lowering fails as well, the next change of the line tries it again.
                drop(self.settle(&mut state));
                Err(error)
            }
        }
    }

    /// Ends a contribution. The outcome is to be delivered without the lock.
    fn lower(&self, contribution: &Contribution) -> Result<Option<P::Outcome>> {
        let mut state = self.pin.lock();
        self.pin.wired_or(&mut state).end(contribution);
        self.settle(&mut state)
    }

    fn finish(&self, outcome: Option<P::Outcome>) -> Result<()> {
        outcome.map_or(Ok(()), |outcome| self.pin.deliver(outcome).map(drop))
    }

    /// As [`finish`](Self::finish), as one of several steps. A panic is no error: `steps` keeps it.
    fn finish_step(&self, steps: &mut EveryStep, settled: Result<Option<P::Outcome>>) -> Result<()> {
        match settled? {
            Some(outcome) => steps.take(|| self.pin.deliver(outcome).map(drop)).unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    /// Brings the pin to the line's level, if it is not there. The outcome is to be delivered without the lock.
    fn settle(&self, state: &mut P::State) -> Result<Option<P::Outcome>> {
        let or = self.pin.wired_or(state);
        let level = or.level();
        self.high.store(level == Level::High, Ordering::Release);
        if level == or.driven {
            return Ok(None);
        }
        self.drive(state, level).map(Some)
    }

    fn drive(&self, state: &mut P::State, level: Level) -> Result<P::Outcome> {
        let outcome = self.pin.drive(state, level)?;
        self.pin.wired_or(state).driven = level;
        Ok(outcome)
    }

    fn wired_or<R>(&self, f: impl FnOnce(&mut WiredOr) -> R) -> R {
        f(self.pin.wired_or(&mut self.pin.lock()))
    }

    fn remove(&self, contribution: &Arc<Contribution>) -> Result<()> {
        lock(&self.contributions).retain(|other| !Arc::ptr_eq(other, contribution));
        if let Some((entry, _replaced)) = self.wired_or(|or| or.listeners.remove_source(contribution.key)) {
            entry.end();
        }
        let outcome = {
            let mut state = self.pin.lock();
            self.pin.wired_or(&mut state).remove_source(contribution);
            self.settle(&mut state)
        };
        self.finish(outcome?)
    }

    fn check_here(
        &self,
        operation: &'static str,
        subject: EoiScope,
        contributions: &[Arc<Contribution>],
    ) -> Result<()> {
        let here = match subject {
            EoiScope::Gsi(gsi) => gsi == self.gsi,
            EoiScope::Source(key) => contributions.iter().any(|contribution| contribution.key == key),
        };
        here.then_some(()).ok_or(Error::NotFound { operation, subject })
    }

    fn guard(&self, entry: Arc<Entry>) -> EoiGuard {
        let line = Weak::clone(&self.this);
        EoiGuard::new(entry.subject(), move || {
            if let Some(line) = line.upgrade() {
                line.unsubscribe(&entry);
            }
        })
    }

    fn unsubscribe(&self, entry: &Arc<Entry>) {
        let replaced = self.wired_or(|or| or.listeners.remove(entry));
        drop(replaced);
        entry.end();
    }
}

impl<P: Pin> EoiNotifier for Line<P> {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        let entry = Entry::new(subject, listener);
        let added = {
            // Held until the listener is in the list, so that a source that goes meanwhile ends the listener.
            let contributions = lock(&self.contributions);
            self.check_here("subscribe", subject, &contributions)?;
            self.wired_or(|or| or.listeners.check_free(subject))?;
            entry.prepare()?;
            self.wired_or(|or| or.listeners.add(&entry))
        };
        drop(added?);
        Ok(self.guard(entry))
    }

    fn exchange(&self, key: SourceKey, listener: Listener) -> Result<EoiGuard> {
        let entry = Entry::new(key.into(), listener);
        let (old, replaced) = {
            let contributions = lock(&self.contributions);
            self.check_here("exchange", key.into(), &contributions)?;
            entry.prepare()?;
            self.wired_or(|or| or.listeners.exchange(&entry))
        };
        drop(replaced);
        if let Some(old) = old {
            old.end();
        }
        Ok(self.guard(entry))
    }
}

impl<P: Pin> fmt::Debug for Line<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.gsi)?;
        let contributions = lock(&self.contributions);
        for (n, contribution) in contributions.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            let level = self.wired_or(|or| or.level_of(contribution));
            write!(f, "{comma}{} {level}", contribution.label)?;
        }
        if contributions.is_empty() {
            f.write_str("no source")?;
        }
        Ok(())
    }
}

/// A level source on a [`Line`].
pub struct LineSource<P: Pin> {
    line: Arc<Line<P>>,
    contribution: Arc<Contribution>,
}

impl<P: Pin> LineSource<P> {
    /// How often this source has begun to assert.
    pub fn asserted(&self) -> u64 {
        self.contribution.asserted()
    }

    /// This source's own level.
    pub fn level(&self) -> Level {
        self.line.wired_or(|or| or.level_of(&self.contribution))
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
        // Drop returns no error. A pin that refuses now is lowered at the line's next change.
        drop(self.line.remove(&self.contribution));
    }
}

impl<P: Pin> fmt::Debug for LineSource<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.label(), self.gsi(), self.level())
    }
}

/// A source that a pin of another line drives, in the two steps of that [`Pin`]. A device cannot make one from its source.
#[derive(Debug)]
pub struct LineInput<P: Pin>(LineSource<P>);

impl<P: Pin> LineInput<P> {
    /// The source's key, for a subscription to the EOIs.
    pub fn key(&self) -> SourceKey {
        self.0.key()
    }

    /// The line that this source is on.
    pub fn line(&self) -> &Arc<Line<P>> {
        &self.0.line
    }

    /// For [`Pin::drive`] of the other line's pin. The outcome is for [`Pin::deliver`] of
    /// [this line](Self::line)'s pin.
    ///
    /// # Errors
    /// The pin's; this source is then not asserted.
    pub fn drive(&self, level: Level) -> Result<Option<P::Outcome>> {
        match level {
            Level::High => self.0.line.raise(&self.0.contribution),
            Level::Low => self.0.line.lower(&self.0.contribution),
        }
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
        b.force_deassert().unwrap();
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
        assert_eq!(line.counts().reasserted, 0);
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
            full_eventfds: 0,
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
    fn a_restored_level_that_the_pin_would_not_take_anew_is_lowered() {
        let line = line();
        let source = line.source("device", LoweredBy::Device);
        line.restore(Level::High).unwrap();
        line.pin().refuse_next(1);
        source.assert().unwrap_err();
        assert_eq!((line.level(), line.pin().levels()), (Level::Low, vec![Level::Low]));
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
    fn a_source_that_is_added_after_a_restore_is_waited_for() {
        let line = line();
        line.restore(Level::High).unwrap();
        let source = line.source("device", LoweredBy::Eoi);
        assert_eq!(line.level(), Level::High);
        source.deassert().unwrap();
        assert_eq!((line.level(), line.pin().levels()), (Level::Low, vec![Level::Low]));
        source.assert().unwrap();
        line.restore(Level::High).unwrap();
        drop(source);
        assert_eq!(line.level(), Level::Low, "its end is its statement");
    }

    #[test]
    fn a_source_that_went_before_a_restore_is_not_waited_for() {
        let line = line();
        let [first, second] = ["first", "second"].map(|label| line.source(label, LoweredBy::Device));
        drop(first);
        line.restore(Level::High).unwrap();
        second.deassert().unwrap();
        assert_eq!(line.level(), Level::Low);
        // Each restore waits anew.
        let third = line.source("third", LoweredBy::Device);
        line.restore(Level::High).unwrap();
        line.restore(Level::High).unwrap();
        second.deassert().unwrap();
        assert_eq!(line.level(), Level::High);
        third.deassert().unwrap();
        assert_eq!(line.level(), Level::Low);
    }

    #[test]
    fn a_statement_after_a_restore_is_no_new_assertion() {
        let line = line();
        let source = line.source("device", LoweredBy::Device);
        source.assert().unwrap();
        line.restore(Level::High).unwrap();
        source.assert().unwrap();
        assert_eq!((source.asserted(), line.counts().asserted), (1, 1));
        source.deassert().unwrap();
        source.assert().unwrap();
        assert_eq!((source.asserted(), line.counts().asserted), (2, 2));
    }

    #[test]
    fn a_line_is_unused_without_sources_and_listeners() {
        let line = line();
        assert!(line.is_unused());
        let source = line.source("device", LoweredBy::Device);
        assert!(!line.is_unused());
        drop(source);
        let guard = line.subscribe(Gsi(5).into(), Listener::callback(|_| {})).unwrap();
        assert!(!line.is_unused());
        drop(guard);
        assert!(line.is_unused());
    }

    /// A callback ends another listener by dropping its source, in the same EOI.
    #[test]
    fn a_source_that_goes_during_an_eoi_is_not_told() {
        let line = line();
        let source = line.source("device", LoweredBy::Eoi);
        let key = source.key();
        let slot = Mutex::new(Some(source));
        let first = Listener::callback(move |_| drop(slot.lock().unwrap().take()));
        let _first = line.subscribe(Gsi(5).into(), first).unwrap();
        let told = Arc::new(Mutex::new(0));
        let count = Arc::clone(&told);
        let second = Listener::callback(move |_| *count.lock().unwrap() += 1);
        let _second = line.subscribe(key.into(), second).unwrap();
        line.eoi().unwrap();
        assert_eq!(*told.lock().unwrap(), 0);
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
