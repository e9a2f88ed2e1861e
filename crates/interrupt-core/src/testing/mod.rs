// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Test doubles: one for each trait, for the tests of devices, of forwarders and of VMMs.

mod forward;

pub use forward::{Journal, RecordingConsumer, RecordingProducer};

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::forward::{DeviceInterrupt, InterruptInfo};
use crate::sync::{self, Mutex as StateLock, MutexGuard as StateGuard};
use crate::{
    Delivery, EoiGuard, EoiNotifier, EoiScope, Error, Gsi, Level, LevelSource, Listener, Listeners, Pin, Result,
    SourceKey, WiredOr,
};

/// The errno of a refusal that a test asked for: EIO.
const EIO: i32 = 5;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many calls are to succeed, and how many are then to be refused.
#[derive(Debug, Default)]
struct Refusals(Mutex<(usize, usize)>);

impl Refusals {
    fn set(&self, calls: usize) {
        self.set_after(0, calls);
    }

    fn set_after(&self, skip: usize, calls: usize) {
        *lock(&self.0) = (skip, calls);
    }

    fn check(&self) -> io::Result<()> {
        let (skip, left) = &mut *lock(&self.0);
        if *skip > 0 {
            *skip -= 1;
            return Ok(());
        }
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(io::Error::from_raw_os_error(EIO))
    }
}

/// A [`Pin`] that records the levels it was given.
#[derive(Debug, Default)]
pub struct RecordingPin {
    state: StateLock<WiredOr>,
    levels: Mutex<Vec<Level>>,
    refusals: Refusals,
}

impl RecordingPin {
    /// Every level that the pin took, in order.
    pub fn levels(&self) -> Vec<Level> {
        lock(&self.levels).clone()
    }

    /// Makes the next `calls` of [`Pin::drive`] fail with EIO.
    pub fn refuse_next(&self, calls: usize) {
        self.refuse_after(0, calls);
    }

    /// As [`refuse_next`](Self::refuse_next), after `skip` calls that succeed.
    pub fn refuse_after(&self, skip: usize, calls: usize) {
        self.refusals.set_after(skip, calls);
    }
}

impl Pin for RecordingPin {
    type State = WiredOr;
    type Outcome = Delivery;

    fn lock(&self) -> StateGuard<'_, WiredOr> {
        sync::lock(&self.state)
    }

    fn wired_or<'a>(&self, state: &'a mut WiredOr) -> &'a mut WiredOr {
        state
    }

    fn drive(&self, _: &mut WiredOr, level: Level) -> Result<Delivery> {
        self.refusals.check().map_err(|source| Error::Os {
            operation: "drive(recording pin)",
            gsi: Gsi(0),
            source,
        })?;
        lock(&self.levels).push(level);
        Ok(match level {
            Level::High => Delivery::Delivered(1),
            Level::Low => Delivery::Coalesced,
        })
    }

    fn deliver(&self, outcome: Delivery) -> Result<Delivery> {
        Ok(outcome)
    }
}

/// A [`LevelSource`] that drives nothing and records what its device did with it.
#[derive(Debug)]
pub struct RecordingSource {
    key: SourceKey,
    state: Mutex<SourceState>,
    refusals: Refusals,
}

#[derive(Debug)]
struct SourceState {
    level: Level,
    asserts: usize,
}

impl RecordingSource {
    /// A source on `gsi` that does not assert.
    pub fn new(gsi: Gsi) -> Self {
        Self {
            key: SourceKey::new(gsi),
            state: Mutex::new(SourceState {
                level: Level::Low,
                asserts: 0,
            }),
            refusals: Refusals::default(),
        }
    }

    /// The level that the device left the source at.
    pub fn level(&self) -> Level {
        lock(&self.state).level
    }

    /// How often the device asserted, counting assertions of an asserted source.
    pub fn asserts(&self) -> usize {
        lock(&self.state).asserts
    }

    /// Makes the next `calls` of [`LevelSource::assert`] fail with EIO.
    pub fn refuse_next(&self, calls: usize) {
        self.refusals.set(calls);
    }
}

impl LevelSource for RecordingSource {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        "recording source"
    }

    fn assert(&self) -> Result<Delivery> {
        self.refusals.check().map_err(|source| Error::Os {
            operation: "assert(recording source)",
            gsi: self.gsi(),
            source,
        })?;
        let mut state = lock(&self.state);
        state.asserts += 1;
        let before = std::mem::replace(&mut state.level, Level::High);
        Ok(match before {
            Level::Low => Delivery::Delivered(1),
            Level::High => Delivery::Coalesced,
        })
    }

    fn deassert(&self) -> Result<()> {
        lock(&self.state).level = Level::Low;
        Ok(())
    }

    fn force_deassert(&self) -> Result<()> {
        self.deassert().map(drop)
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// An [`EoiNotifier`] for every subject, whose EOIs the test makes.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::sync::Arc;
/// use interrupt_core::{EoiNotifier, Gsi, Listener, testing::ManualNotifier};
///
/// let notifier = ManualNotifier::default();
/// let told = Arc::new(AtomicU32::new(0));
/// let count = Arc::clone(&told);
/// let guard = notifier.subscribe(Gsi(5).into(), Listener::callback(move |_| {
///     count.fetch_add(1, Ordering::Relaxed);
/// }))?;
/// notifier.eoi(Gsi(5))?;
/// drop(guard);
/// notifier.eoi(Gsi(5))?;
/// assert_eq!(told.load(Ordering::Relaxed), 1);
/// # Ok::<(), interrupt_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct ManualNotifier {
    lines: Mutex<Vec<(Gsi, Listeners)>>,
}

impl ManualNotifier {
    /// Tells every listener of the line, also those of its sources.
    ///
    /// # Errors
    /// As [`Listeners::notify`].
    pub fn eoi(&self, gsi: Gsi) -> Result<()> {
        self.line(gsi).notify(gsi).map(drop)
    }

    fn line(&self, gsi: Gsi) -> Listeners {
        let mut lines = lock(&self.lines);
        if let Some((_, listeners)) = lines.iter().find(|(other, _)| *other == gsi) {
            return listeners.clone();
        }
        let listeners = Listeners::new();
        lines.push((gsi, listeners.clone()));
        listeners
    }
}

impl EoiNotifier for ManualNotifier {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        self.line(subject.gsi()).subscribe(subject, listener)
    }
}

/// A [`DeviceInterrupt`] with a level that the test sets: automasked and maskable, as a vfio-pci INTx is, and without an
/// unmask eventfd.
pub struct LevelDevice {
    state: Mutex<DeviceState>,
    refusals: Refusals,
}

#[derive(Debug)]
struct DeviceState {
    trigger: Option<File>,
    level: Level,
    masked: bool,
    signals: usize,
}

impl DeviceState {
    /// Signals and masks, if the level is high. This is the one place that decides.
    fn evaluate(&mut self) -> io::Result<()> {
        if self.level == Level::Low || self.masked {
            return Ok(());
        }
        let Some(trigger) = &self.trigger else {
            return Ok(());
        };
        (&*trigger).write_all(&1u64.to_ne_bytes())?;
        self.masked = true;
        self.signals += 1;
        Ok(())
    }

    fn enabled(&self) -> io::Result<()> {
        match self.trigger {
            Some(_) => Ok(()),
            None => Err(io::Error::from_raw_os_error(EINVAL)),
        }
    }
}

impl LevelDevice {
    /// A device whose interrupt is low and disabled.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(DeviceState {
                trigger: None,
                level: Level::Low,
                masked: false,
                signals: 0,
            }),
            refusals: Refusals::default(),
        }
    }

    /// Gives the device a cause for its interrupt, or takes the cause away.
    ///
    /// # Errors
    /// [`Error::Device`] when the trigger cannot be written.
    pub fn set_level(&self, level: Level) -> Result<()> {
        self.act("set level", |state| {
            state.level = level;
            state.evaluate()
        })
    }

    /// Whether the interrupt is masked.
    pub fn is_masked(&self) -> bool {
        lock(&self.state).masked
    }

    /// How often the device has signalled its trigger.
    pub fn signals(&self) -> usize {
        lock(&self.state).signals
    }

    /// Makes the next `calls` of the [`DeviceInterrupt`] methods that change something fail with EIO.
    pub fn refuse_next(&self, calls: usize) {
        self.refusals.set(calls);
    }

    fn act(&self, operation: &'static str, act: impl FnOnce(&mut DeviceState) -> io::Result<()>) -> Result<()> {
        let outcome = self.refusals.check().and_then(|()| act(&mut lock(&self.state)));
        outcome.map_err(|source| Error::Device {
            operation,
            device: self.label().to_owned(),
            source,
        })
    }
}

impl Default for LevelDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LevelDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        let mask = if state.masked { "masked" } else { "unmasked" };
        write!(f, "{}: {}, {mask}", self.label(), state.level)
    }
}

impl DeviceInterrupt for LevelDevice {
    fn label(&self) -> &str {
        "level device"
    }

    fn info(&self) -> Result<InterruptInfo> {
        Ok(InterruptInfo {
            level: true,
            maskable: true,
            automasked: true,
            unmask_fd: false,
        })
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.act("set trigger", |state| {
            state.trigger = match fd {
                Some(fd) => Some(File::from(fd.as_fd().try_clone_to_owned()?)),
                None => None,
            };
            state.evaluate()
        })
    }

    fn set_unmask(&self, _fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.act("set unmask eventfd", |_| Err(io::Error::from_raw_os_error(ENOTTY)))
    }

    fn mask(&self) -> Result<()> {
        self.act("mask", |state| {
            state.enabled()?;
            state.masked = true;
            Ok(())
        })
    }

    fn unmask(&self) -> Result<()> {
        self.act("unmask", |state| {
            state.enabled()?;
            state.masked = false;
            state.evaluate()
        })
    }
}
