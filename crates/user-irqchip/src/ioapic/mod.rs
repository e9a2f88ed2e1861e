// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC: a line for each pin, the guest's registers, and the EOIs.

mod eoi;
mod events;
mod pin;
mod pin_state;
mod registers;
mod saved;
mod shared;
mod spec;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use interrupt_core::{
    Delivery, EoiGuard, EoiNotifier, EoiScope, Error, Gsi, Level, LevelSource, Line, LineCounts, Listener, LoweredBy,
    MsiOutput, Result, SourceKey,
};

use crate::error::{ConfigError, StateError};
use crate::pulse::PulsingSource;

use events::Events;
use shared::Shared;

pub use eoi::EOI_DELAY;
pub use saved::{IoapicState, SavedPin};
pub use shared::Counts;
pub use spec::{RedirectionEntry, Trigger, Version};

pub(crate) use pin::{IoapicPin, Outcome};

type DelayHook = Box<dyn Fn(Duration) + Send + Sync>;

/// Describes an [`Ioapic`]. Starts from 24 pins, the first of which is GSI 0, version 0x11, ID 0, and no delays.
pub struct IoapicBuilder {
    pins: u8,
    first_gsi: Gsi,
    version: Version,
    id: u8,
    edge_eois: bool,
    on_delayed_eoi: Option<DelayHook>,
}

impl IoapicBuilder {
    /// Sets the number of pins, 1 to 64.
    #[must_use]
    pub fn pins(mut self, pins: u8) -> Self {
        self.pins = pins;
        self
    }

    /// Sets the GSI of pin 0. The GSI of pin *n* is greater by *n*.
    #[must_use]
    pub fn first_gsi(mut self, gsi: Gsi) -> Self {
        self.first_gsi = gsi;
        self
    }

    /// Sets the IOAPIC's ID after a reset, 0 to 15. The ACPI table (MADT) must have the same ID.
    #[must_use]
    pub fn id(mut self, id: u8) -> Self {
        self.id = id;
        self
    }

    /// Sets the version that the guest sees.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// States that the VMM reports the EOIs of edge-triggered interrupts too, by [`Ioapic::edge_eoi`]. A source that an
    /// EOI lowers ([`LoweredBy::Eoi`]) then holds the line of an edge-triggered pin until that EOI, as with KVM's
    /// irqchip. Otherwise, as on a split irqchip, each assertion of such a source is a rising edge and falls by itself.
    #[must_use]
    pub fn edge_eois(mut self) -> Self {
        self.edge_eois = true;
        self
    }

    /// Delays a pin's interrupt after 10,000 EOIs in a row that found its line high, as Linux does, so that a guest
    /// whose handler does not serve the device can run other code. `hook` is called without a lock, on the thread that
    /// brought the EOI, with the time to wait ([`EOI_DELAY`]). The hook starts a timer, which then calls
    /// [`Ioapic::delayed_eoi`]. The chip has no clock and no thread; without a hook nothing is delayed.
    #[must_use]
    pub fn on_delayed_eoi(mut self, hook: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        self.on_delayed_eoi = Some(Box::new(hook));
        self
    }

    /// Makes the chip, as after power-on: all pins masked, all lines low.
    ///
    /// # Errors
    /// [`ConfigError::Pins`], [`ConfigError::Gsis`] and [`ConfigError::Id`].
    pub fn build(self, output: Arc<dyn MsiOutput>) -> std::result::Result<Ioapic, ConfigError> {
        let Self {
            pins,
            first_gsi,
            version,
            id,
            edge_eois,
            on_delayed_eoi,
        } = self;
        if !(1..=Ioapic::MAX_PINS).contains(&pins) {
            return Err(ConfigError::Pins { pins });
        }
        if first_gsi.0.checked_add(u32::from(pins)).is_none() {
            return Err(ConfigError::Gsis { first_gsi, pins });
        }
        if id > spec::MAX_ID {
            return Err(ConfigError::Id { id });
        }
        let shared = Arc::new(Shared::new(output));
        let line = |number: u8| {
            let gsi = Gsi(first_gsi.0 + u32::from(number));
            Line::new(gsi, IoapicPin::new(Arc::clone(&shared), number, gsi))
        };
        Ok(Ioapic {
            lines: (0..pins).map(line).collect(),
            events: (0..pins).map(|_| OnceLock::new()).collect(),
            shared,
            first_gsi,
            version,
            edge_eois,
            on_delayed_eoi,
            select: AtomicU8::new(0),
            id: AtomicU8::new(id),
            reset_id: id,
        })
    }
}

impl fmt::Debug for IoapicBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pins from {}, {:?}", self.pins, self.first_gsi, self.version)
    }
}

/// An IOAPIC in userspace.
///
/// Devices get a [`source`](Self::source) each, and listeners of EOIs [subscribe](EoiNotifier::subscribe). The guest's
/// accesses to the registers come in through [`read`](Self::read) and [`write`](Self::write), or as vm-device's
/// `DeviceMmio` (feature `vm-device`), its EOIs through [`eoi`](Self::eoi). The
/// chip sends its messages to an [`MsiOutput`].
///
/// # When a listener is told
/// * The EOI of a vector tells every listener of every pin whose entry has that vector, including masked pins and edge
///   pins, also when another pin sent the interrupt.
/// * A write of an entry that leaves a level pin unmasked, with a high line and no interrupt in service, tells the
///   listeners of that pin too, as in Linux since 6.3. The chip first lowers the sources that an EOI lowers
///   ([`LoweredBy::Eoi`]), and sends the interrupt if the line is high after that. So a device whose cause has ended
///   before the unmask makes no interrupt.
/// * If the line of a level pin is low, a write that unmasks the pin or changes its message tells the listeners of the
///   GSI. A signal that goes to the processor without this chip (an irqfd on the pin's GSI) may have been lost behind
///   the old entry.
///
/// # A new destination
/// When the guest moves an entry to another processor while its interrupt is in service, the output is told at the EOI.
/// KVM before 6.2 forgets an interrupt in service whose route goes to another CPU, and never reports its EOI. The
/// listeners of the GSI are told once more after that, because a signal that went to the processor without this chip may
/// have gone by the old message.
///
/// # Locks
/// An assertion, an EOI and a message take only the lock of their line, and allocate nothing. Writes of entries go one
/// at a time, also while [`MsiOutput::set_pin`] runs; levels and EOIs do not wait for these writes, except an EOI that
/// has to tell the output of a new destination. Listeners, messages and the hook of a delay are called without a lock.
pub struct Ioapic {
    lines: Box<[Arc<Line<IoapicPin>>]>,
    /// The sources of [`pulse`](Self::pulse), by pin; each is made by the pin's first event.
    events: Box<[OnceLock<Events>]>,
    shared: Arc<Shared>,
    first_gsi: Gsi,
    version: Version,
    edge_eois: bool,
    on_delayed_eoi: Option<DelayHook>,
    select: AtomicU8,
    id: AtomicU8,
    reset_id: u8,
}

impl Ioapic {
    /// The usual address of the first IOAPIC's registers.
    pub const BASE: u64 = 0xfec0_0000;
    /// The size of the registers' range, in bytes.
    pub const SIZE: u64 = 0x1000;

    /// The greatest number of pins that a chip can have.
    pub const MAX_PINS: u8 = 64;

    /// Starts describing a chip.
    pub fn builder() -> IoapicBuilder {
        IoapicBuilder {
            pins: 24,
            first_gsi: Gsi(0),
            version: Version::default(),
            id: 0,
            edge_eois: false,
            on_delayed_eoi: None,
        }
    }

    /// Adds a level source on the pin of `gsi`. The source does not assert yet.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn source(&self, gsi: Gsi, label: impl Into<String>, lowered_by: LoweredBy) -> Result<Arc<dyn LevelSource>> {
        let line = self.line(gsi)?;
        let source = line.source(label, lowered_by);
        Ok(if lowered_by == LoweredBy::Eoi && !self.edge_eois {
            Arc::new(PulsingSource {
                source,
                line: Arc::clone(line),
            })
        } else {
            Arc::new(source)
        })
    }

    /// Makes one interrupt of the pin of `gsi`, for devices that signal events and have no source: an edge of an
    /// edge-triggered pin. An event of a level-triggered pin that a mask or an interrupt in service holds back is carried
    /// when that ends; several such events are one interrupt.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI, and the errors of [`MsiOutput::send_msi`]. The event is carried with
    /// the next one, or at the next EOI.
    pub fn pulse(&self, gsi: Gsi) -> Result<Delivery> {
        let line = self.line(gsi)?;
        let events = &self.events[usize::from(line.pin().number())];
        if let Some(events) = events.get() {
            return events.signal();
        }
        let made = Events::new(line)?;
        events.get_or_init(|| made).signal()
    }

    /// The line of the pin of `gsi`.
    pub(crate) fn line(&self, gsi: Gsi) -> Result<&Arc<Line<IoapicPin>>> {
        let pin = gsi.0.checked_sub(self.first_gsi.0);
        pin.and_then(|pin| self.lines.get(pin as usize)).ok_or(Error::NotFound {
            operation: "IOAPIC pin",
            subject: EoiScope::Gsi(gsi),
        })
    }

    pub(crate) fn has_edge_eois(&self) -> bool {
        self.edge_eois
    }

    /// The level of the line of `gsi`: the OR of its sources.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn level(&self, gsi: Gsi) -> Result<Level> {
        self.line(gsi).map(|line| line.level())
    }

    /// The levels of the lines as the chip sees them: bit *n* is pin *n*.
    pub fn levels(&self) -> u64 {
        let bit = |(n, line): (usize, &Arc<Line<IoapicPin>>)| match line.pin().line() {
            Level::High => 1 << n,
            Level::Low => 0,
        };
        self.lines.iter().enumerate().map(bit).sum()
    }

    /// Drives the pin of `gsi` once more when its line is high. So a level that no processor took is sent again.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI, and the errors of [`MsiOutput::send_msi`].
    pub fn reassert(&self, gsi: Gsi) -> Result<Delivery> {
        self.line(gsi)?.reassert()
    }

    /// The redirection-table entry of the pin of `gsi`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn entry(&self, gsi: Gsi) -> Result<RedirectionEntry> {
        self.line(gsi).map(|line| line.pin().entry())
    }

    /// The events on the line of `gsi` since the chip was made.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn counts_of(&self, gsi: Gsi) -> Result<LineCounts> {
        self.line(gsi).map(|line| line.counts())
    }

    /// The failures so far that had no caller to return an error to.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// The current state. Stop the guest and the devices first; otherwise the parts of the state are from different
    /// moments.
    pub fn save(&self) -> IoapicState {
        IoapicState {
            version: self.version.number(),
            select: self.select.load(Ordering::Relaxed),
            id: self.id.load(Ordering::Relaxed),
            pins: self.lines.iter().map(|line| line.pin().save()).collect(),
        }
    }

    /// Takes over a saved state, and tells the output of every pin that differs. Call this before the sources state
    /// their levels and before the guest runs (law 17).
    ///
    /// For a chip behind a [`Router`](crate::Router), call [`Router::restore`](crate::Router::restore) instead.
    ///
    /// The sources own their levels. The saved level holds until each source has stated its level, or until the pin's
    /// next EOI or unmask. Sources that already assert continue to assert.
    ///
    /// # Errors
    /// [`StateError`]; the chip is unchanged, except after [`StateError::Route`].
    pub fn restore(&self, state: &IoapicState) -> std::result::Result<(), StateError> {
        state.check(self.version.number(), self.lines.len())?;
        self.select.store(state.select, Ordering::Relaxed);
        self.id.store(state.id, Ordering::Relaxed);
        // Every pin is restored, even if the output refuses the message of one.
        let mut told = Ok(());
        for (line, saved) in self.lines.iter().zip(&state.pins) {
            told = told.and(line.pin().restore(saved));
            self.shared
                .counters
                .send_errors
                .count_error(line.restore(saved.level()));
        }
        told.map_err(StateError::Route)
    }

    /// The level that the line of `gsi` had in a saved state.
    pub(crate) fn saved_level(&self, state: &IoapicState, gsi: Gsi) -> Level {
        let pin = gsi.0.checked_sub(self.first_gsi.0);
        let saved = pin.and_then(|pin| state.pins.get(pin as usize));
        saved.map_or(Level::Low, SavedPin::level)
    }

    /// Brings the chip to its state after power-on: everything masked. Sources keep their levels, and listeners stay.
    ///
    /// # Errors
    /// [`StateError::Route`].
    pub fn reset(&self) -> std::result::Result<(), StateError> {
        self.restore(&IoapicState {
            version: self.version.number(),
            select: 0,
            id: self.reset_id,
            pins: vec![SavedPin::RESET; self.lines.len()],
        })
    }
}

impl EoiNotifier for Ioapic {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        match self.line(subject.gsi()) {
            Ok(line) => line.subscribe(subject, listener),
            Err(_) => Err(Error::NotFound {
                operation: "subscribe",
                subject,
            }),
        }
    }

    fn exchange(&self, key: SourceKey, listener: Listener) -> Result<EoiGuard> {
        self.line(key.gsi())?.exchange(key, listener)
    }
}

impl fmt::Debug for Ioapic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = |line: &&Arc<Line<IoapicPin>>| {
            let pin = line.pin();
            pin.entry() != RedirectionEntry::RESET || pin.line() == Level::High
        };
        f.debug_list()
            .entries(self.lines.iter().filter(used).map(|line| line.pin()))
            .finish()
    }
}
