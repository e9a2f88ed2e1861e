// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC: a line for each pin, the registers that the guest sees, and the EOIs that the chip is told of.

mod chip;
mod pin;
pub mod regs;
mod state;
mod window;

use std::fmt;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use interrupt_core::{
    EoiGuard, EoiNotifier, EoiScope, Error, Gsi, Level, Line, LineSource, Listener, LoweredBy, MsiOutput, Result,
};

use crate::ConfigError;

use chip::Chip;
use pin::AfterEoi;
use regs::RedirectionEntry;

pub use chip::{Counts, IoapicPin, Outcome};
pub use state::{IoapicState, SavedPin};

/// A level source on a pin of an [`Ioapic`].
pub type IoapicSource = LineSource<IoapicPin>;

/// Which IOAPIC the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Version 0x11, as KVM's own: an interrupt is ended by the local APIC's EOI broadcast, or by switching the pin to edge
    /// and back.
    V11,
    /// Version 0x20: has the EOI register too, which a guest that suppresses EOI broadcasts needs.
    #[default]
    V20,
}

impl Version {
    fn number(self) -> u8 {
        match self {
            Self::V11 => 0x11,
            Self::V20 => 0x20,
        }
    }
}

/// How long a pause is; see [`IoapicBuilder::on_pause`].
pub const PAUSE: Duration = Duration::from_millis(10);

type PauseHook = Box<dyn Fn(Duration) + Send + Sync>;

/// Describes an [`Ioapic`]. Starts from 24 pins, the first of which is GSI 0, version 0x20, and no pauses.
pub struct IoapicBuilder {
    pins: u8,
    first_gsi: Gsi,
    version: Version,
    id: u8,
    pause: Option<PauseHook>,
}

impl IoapicBuilder {
    /// The number of pins, 1 to 64.
    #[must_use]
    pub fn pins(mut self, pins: u8) -> Self {
        self.pins = pins;
        self
    }

    /// The GSI of pin 0; pin *n* has the *n*th after it.
    #[must_use]
    pub fn first_gsi(mut self, gsi: Gsi) -> Self {
        self.first_gsi = gsi;
        self
    }

    /// The IOAPIC's ID after a reset, 0 to 15; the ACPI table (MADT) has the same one. 0 unless this is called.
    #[must_use]
    pub fn id(mut self, id: u8) -> Self {
        self.id = id;
        self
    }

    /// Which IOAPIC the guest sees.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Pauses a pin whose line is still high after 10,000 EOIs in a row, as Linux does, so that a guest whose handler does
    /// not serve the device gets to run something else. `hook` is called without a lock, on the thread that brought the
    /// EOI, with the time to wait ([`PAUSE`]): it starts a timer, which then calls [`Ioapic::resume`]. The chip has no clock
    /// and no thread; without a hook it makes no pause.
    #[must_use]
    pub fn on_pause(mut self, hook: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        self.pause = Some(Box::new(hook));
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
            pause,
        } = self;
        if !(1..=Ioapic::MAX_PINS).contains(&pins) {
            return Err(ConfigError::Pins { pins });
        }
        if first_gsi.0.checked_add(u32::from(pins)).is_none() {
            return Err(ConfigError::Gsis { first_gsi, pins });
        }
        if id > regs::MAX_ID {
            return Err(ConfigError::Id { id });
        }
        let chip = Arc::new(Chip::new(output));
        let line = |number: u8| {
            let gsi = Gsi(first_gsi.0 + u32::from(number));
            Line::new(gsi, IoapicPin::new(Arc::clone(&chip), number, gsi))
        };
        Ok(Ioapic {
            lines: (0..pins).map(line).collect(),
            chip,
            first_gsi,
            version,
            pause,
            select: AtomicU8::new(0),
            id: AtomicU8::new(id),
            reset_id: id,
            writes: Mutex::new(()),
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
/// Devices get a [`source`](Self::source) each, and whoever wants to hear of EOIs [subscribes](EoiNotifier::subscribe). The
/// guest's accesses to the window come in as [`DeviceMmio`](vm_device::DeviceMmio), its EOIs through [`eoi`](Self::eoi). What
/// the chip sends goes to an [`MsiOutput`].
///
/// # What a listener is told of
/// * The EOI of a vector tells every listener of every pin whose entry has that vector, whether it is masked or not, level or
///   edge, and also when the interrupt was another's.
/// * A write of an entry that leaves a level pin unmasked, its line high and nothing in service, tells them too, as in Linux
///   since 6.4: sources that an EOI lowers ([`LoweredBy::Eoi`]) are lowered first, and what then is restated, or held by
///   others, is sent. A device that is quiet by the time its interrupt is unmasked causes none.
///
/// # Locks
/// Asserting, ending and sending take the locks of the one line and the one pin, and allocate nothing. Writes of entries go
/// one at a time, also while [`MsiOutput::set_pin`] runs; levels and EOIs do not wait for them. Listeners, messages and the
/// pause hook are called without a lock.
pub struct Ioapic {
    lines: Box<[Arc<Line<IoapicPin>>]>,
    chip: Arc<Chip>,
    first_gsi: Gsi,
    version: Version,
    pause: Option<PauseHook>,
    select: AtomicU8,
    id: AtomicU8,
    reset_id: u8,
    /// Held from the write of an entry until the output knows of it, so that it is told in the order of the writes.
    writes: Mutex<()>,
}

impl Ioapic {
    /// The usual address of the first IOAPIC's registers.
    pub const BASE: u64 = 0xfec0_0000;
    /// The size of the range that the registers are in, in bytes.
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
            pause: None,
        }
    }

    /// Adds a level source on the pin of `gsi`. It does not assert yet.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn source(&self, gsi: Gsi, label: impl Into<String>, lowered_by: LoweredBy) -> Result<IoapicSource> {
        Ok(self.line(gsi)?.source(label, lowered_by))
    }

    /// The line of the pin of `gsi`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn line(&self, gsi: Gsi) -> Result<&Arc<Line<IoapicPin>>> {
        let pin = gsi.0.checked_sub(self.first_gsi.0);
        pin.and_then(|pin| self.lines.get(pin as usize)).ok_or(Error::NotFound {
            operation: "IOAPIC pin",
            subject: EoiScope::Gsi(gsi),
        })
    }

    /// The redirection-table entry of the pin of `gsi`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when no pin has that GSI.
    pub fn entry(&self, gsi: Gsi) -> Result<RedirectionEntry> {
        self.line(gsi).map(|line| line.pin().state().entry())
    }

    /// The levels of the lines as the chip sees them: bit *n* is pin *n*.
    pub fn levels(&self) -> u64 {
        let bit = |(n, line): (usize, &Arc<Line<IoapicPin>>)| match line.pin().state().line() {
            Level::High => 1 << n,
            Level::Low => 0,
        };
        self.lines.iter().enumerate().map(bit).sum()
    }

    /// What has gone wrong so far.
    pub fn counts(&self) -> Counts {
        self.chip.counts()
    }

    /// A local APIC has ended a **level-triggered** interrupt with this vector: KVM_EXIT_IOAPIC_EOI on a split irqchip, the EOI
    /// broadcast of a local APIC otherwise. Tells the listeners, and sends again what is still high.
    ///
    /// Costs what the pins with that vector cost; for a vector that no pin has, one load.
    pub fn eoi(&self, vector: u8) {
        for pin in self.chip.pins_of(vector) {
            if let Some(line) = self.lines.get(pin) {
                self.end(line, vector);
            }
        }
    }

    /// A local APIC has ended an **edge-triggered** interrupt with this vector. Hardware does not tell the IOAPIC of that. KVM's
    /// irqchip tells the listeners, and so does a local APIC in userspace by this call. Nothing else happens: a level pin that
    /// shares the vector keeps its remote IRR.
    pub fn eoi_of_edge(&self, vector: u8) {
        for pin in self.chip.pins_of(vector) {
            if let Some(line) = self.lines.get(pin) {
                self.ask(line);
            }
        }
    }

    /// The time that the [pause hook](IoapicBuilder::on_pause) was given has passed: sends what is still high.
    pub fn resume(&self) {
        for line in &self.lines {
            let pin = line.pin();
            let send = pin.state().resume();
            pin.send_unasked(send);
        }
    }

    /// Asks the sources of a line to state their level: lowers what an EOI lowers, and tells the listeners.
    fn ask(&self, line: &Line<IoapicPin>) {
        self.chip.counters.listener_errors.count_error(line.eoi());
    }

    fn end(&self, line: &Line<IoapicPin>, vector: u8) {
        self.ask(line);
        let pin = line.pin();
        let after = pin.state().end(vector, self.pause.is_some());
        match after {
            AfterEoi::Nothing => {}
            AfterEoi::Send(send) => pin.send_unasked(Some(send)),
            AfterEoi::Pause => {
                if let Some(pause) = &self.pause {
                    pause(PAUSE);
                }
            }
        }
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
}

impl fmt::Debug for Ioapic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = |line: &&Arc<Line<IoapicPin>>| {
            let state = line.pin().state();
            state.entry() != RedirectionEntry::RESET || state.line() == Level::High
        };
        f.debug_list()
            .entries(self.lines.iter().filter(used).map(|line| line.pin()))
            .finish()
    }
}
