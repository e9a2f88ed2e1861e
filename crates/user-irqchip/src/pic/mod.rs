// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The 8259 pair: a line for each input, the ports, and the acknowledge cycle.

mod chip;
mod saved;
mod spec;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use interrupt_core::{
    Delivery, EoiGuard, EoiNotifier, EoiScope, Error, EveryStep, Gsi, Level, LevelSource, Line, Listener, LoweredBy,
    Pin, Result, SourceKey, WiredOr,
};
#[cfg(feature = "vm-device")]
use vm_device::DevicePio;
#[cfg(feature = "vm-device")]
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::counter::Counter;
use crate::error::StateError;
use crate::sync::lock;

use chip::{Chip, Driven};
use spec::{CASCADE, Register, Role, SPURIOUS};

pub use saved::{Awaits, PicState, SavedChip};

/// The inputs of both chips, the cascade among them.
const INPUTS: u8 = 16;

/// Failures in a [`Pic`] that had no caller to return an error to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ignored accesses: to other ports, or of more than one byte. Such a read returns 0.
    pub ignored_accesses: u64,
    /// Acknowledge cycles without a request, which got the vector of IRQ 7 or 15.
    pub spurious: u64,
    /// Listeners that could not be told of an EOI, because their eventfd could not be written.
    pub listener_errors: u64,
}

#[derive(Debug, Default)]
struct Counters {
    ignored_accesses: Counter,
    spurious: Counter,
    listener_errors: Counter,
}

/// A set of IRQs: bit *n* for IRQ *n*.
type Irqs = u16;

/// The two chips and the wire between them.
#[derive(Debug)]
pub(crate) struct Pair {
    master: Chip,
    slave: Chip,
    /// The lines' part of the state, by IRQ.
    lines: [WiredOr; INPUTS as usize],
}

impl Pair {
    fn chip(&mut self, role: Role) -> &mut Chip {
        match role {
            Role::Master => &mut self.master,
            Role::Slave => &mut self.slave,
        }
    }

    fn request(&mut self) -> bool {
        if self.slave.request().is_some() {
            self.master.latch_cascade();
        }
        self.master.request().is_some()
    }
}

fn irqs(role: Role, inputs: u8) -> Irqs {
    match role {
        Role::Master => Irqs::from(inputs),
        Role::Slave => Irqs::from(inputs) << 8,
    }
}

fn place(irq: u8) -> (Role, u8) {
    if irq < 8 {
        (Role::Master, irq)
    } else {
        (Role::Slave, irq - 8)
    }
}

/// The parts that the inputs share.
struct Shared {
    pair: Mutex<Pair>,
    /// The level of INTR. Written with the pair's lock.
    intr: AtomicBool,
    /// The chips have changed since INTR was last set to their request. Written with the pair's lock.
    stale: AtomicBool,
    on_intr: Box<dyn Fn() + Send + Sync>,
    counters: Counters,
}

impl Shared {
    fn pair(&self) -> MutexGuard<'_, Pair> {
        lock(&self.pair)
    }

    /// Sets INTR to the chips' request. Returns whether INTR rises; the caller then calls the hook without the lock.
    #[must_use]
    fn update(&self, pair: &mut Pair) -> bool {
        let request = pair.request();
        let before = self.intr.load(Ordering::Relaxed);
        self.intr.store(request, Ordering::Release);
        self.stale.store(false, Ordering::Relaxed);
        request && !before
    }

    fn raise(&self, rises: bool) {
        if rises {
            (self.on_intr)();
        }
    }
}

/// An input of a [`Pic`], as a [`Line`] drives it.
pub(crate) struct PicPin {
    shared: Arc<Shared>,
    irq: u8,
}

/// The rest of the work after a level was driven.
#[derive(Debug)]
pub(crate) struct Outcome {
    delivery: Delivery,
    rises: bool,
}

impl Pin for PicPin {
    type State = Pair;
    type Outcome = Outcome;

    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.shared.pair()
    }

    fn wired_or<'a>(&self, pair: &'a mut Pair) -> &'a mut WiredOr {
        &mut pair.lines[usize::from(self.irq)]
    }

    fn drive(&self, pair: &mut Pair, level: Level) -> Result<Outcome> {
        let (role, input) = place(self.irq);
        let driven = pair.chip(role).drive(input, level == Level::High);
        Ok(Outcome {
            delivery: match driven {
                Driven::Asks => Delivery::Delivered(1),
                Driven::Masked => Delivery::Pending,
                Driven::Nothing => Delivery::Coalesced,
            },
            rises: self.shared.update(pair),
        })
    }

    fn deliver(&self, outcome: Outcome) -> Result<Delivery> {
        self.shared.raise(outcome.rises);
        Ok(outcome.delivery)
    }
}

impl fmt::Debug for PicPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IRQ {}", self.irq)
    }
}

/// A pair of 8259s in userspace, with the edge/level control registers of a PC.
///
/// GSI *n* is IRQ *n*, 0 to 15; IRQ 2 is the cascade and has no line. Devices get a [`source`](Self::source) each, and
/// listeners of EOIs [subscribe](EoiNotifier::subscribe). The guest's accesses to the [ports](Self::PORTS) come in
/// through [`read`](Self::read) and [`write`](Self::write), or as vm-device's `DevicePio` (feature `vm-device`). When INTR rises, the pair calls the hook; the processor then takes the interrupt with
/// [`acknowledge`](Self::acknowledge).
///
/// # When a listener is told
/// * OCW2 ends its IRQ, by a specific or a non-specific EOI. For IRQ 8 to 15 this is the slave's OCW2; the master's
///   OCW2 for the cascade tells no listener. A specific EOI also tells if its IRQ is not in service.
/// * The processor acknowledges its IRQ, with automatic EOI.
/// * ICW1 drops a waiting edge of its IRQ.
///
/// An unmask tells no listener: the interrupt that waited behind the mask is delivered, as on hardware.
pub struct Pic {
    /// By IRQ; the line of the cascade is never handed out.
    lines: Box<[Arc<Line<PicPin>>]>,
    shared: Arc<Shared>,
}

impl Pic {
    /// The ports: first and number, of the master, the slave and the edge/level control registers.
    pub const PORTS: [(u16, u16); 3] = [(0x20, 2), (0xa0, 2), (0x4d0, 2)];

    /// A pair that has not been initialised by the guest. `on_intr` is called, without a lock, whenever INTR rises, and
    /// again after an acknowledge cycle if another request waits. The hook has to make the processor look at
    /// [`intr`](Self::intr).
    pub fn new(on_intr: impl Fn() + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            pair: Mutex::new(Pair {
                master: Chip::new(Role::Master),
                slave: Chip::new(Role::Slave),
                lines: Default::default(),
            }),
            intr: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            on_intr: Box::new(on_intr),
            counters: Counters::default(),
        });
        let line = |irq: u8| {
            let shared = Arc::clone(&shared);
            Line::new(Gsi(irq.into()), PicPin { shared, irq })
        };
        Self {
            lines: (0..INPUTS).map(line).collect(),
            shared,
        }
    }

    /// Adds a level source on an IRQ. The source does not assert yet.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such input: from GSI 16 up, and GSI 2, which is the cascade.
    pub fn source(&self, gsi: Gsi, label: impl Into<String>, lowered_by: LoweredBy) -> Result<Arc<dyn LevelSource>> {
        Ok(Arc::new(self.line(gsi)?.source(label, lowered_by)))
    }

    /// The level of the line of an IRQ: the OR of its sources.
    ///
    /// # Errors
    /// As [`source`](Self::source).
    pub fn level(&self, gsi: Gsi) -> Result<Level> {
        self.line(gsi).map(|line| line.level())
    }

    /// Drives the input of an IRQ once more when its line is high.
    ///
    /// # Errors
    /// As [`source`](Self::source).
    pub fn reassert(&self, gsi: Gsi) -> Result<Delivery> {
        self.line(gsi)?.reassert()
    }

    /// The line of an IRQ.
    pub(crate) fn line(&self, gsi: Gsi) -> Result<&Arc<Line<PicPin>>> {
        let line = self.lines.get(gsi.0 as usize);
        line.filter(|_| gsi != Gsi(CASCADE.into())).ok_or(Error::NotFound {
            operation: "8259 input",
            subject: EoiScope::Gsi(gsi),
        })
    }

    /// The level of INTR: whether an acknowledge cycle would find a request.
    pub fn intr(&self) -> bool {
        self.shared.intr.load(Ordering::Acquire)
    }

    /// The processor's acknowledge cycle (INTA): the vector of the request with the highest priority, which is then in
    /// service, or has ended with automatic EOI. Without a request: the vector of IRQ 7, and no IRQ is in service. If
    /// the slave's request has gone: the vector of IRQ 15, and the cascade is in service.
    pub fn acknowledge(&self) -> u8 {
        let mut pair = self.shared.pair();
        // INTR goes low with the cycle, so that a second request makes it rise again.
        self.shared.intr.store(false, Ordering::Release);
        let (vector, ended) = acknowledge(&mut pair, &self.shared.counters);
        self.finish(pair, ended);
        vector
    }

    /// The failures so far that had no caller to return an error to.
    pub fn counts(&self) -> Counts {
        let Counters {
            ignored_accesses,
            spurious,
            listener_errors,
        } = &self.shared.counters;
        Counts {
            ignored_accesses: ignored_accesses.get(),
            spurious: spurious.get(),
            listener_errors: listener_errors.get(),
        }
    }

    /// Finishes an access to the chips: tells the listeners of the IRQs that have ended, without the lock, and sets
    /// INTR to the chips' request after that.
    fn finish(&self, pair: MutexGuard<'_, Pair>, mut ended: Irqs) {
        if ended != 0 {
            self.shared.stale.store(true, Ordering::Relaxed);
            drop(pair);
            let mut steps = EveryStep::default();
            while ended != 0 {
                if let Some(line) = self.lines.get(ended.trailing_zeros() as usize) {
                    let told = steps.take(|| line.eoi()).unwrap_or(Ok(Level::Low));
                    self.shared.counters.listener_errors.count_error(told);
                }
                ended &= ended - 1;
            }
            // Unless lowering a line has already updated INTR.
            if self.shared.stale.load(Ordering::Relaxed) {
                steps.take(|| self.update(self.shared.pair()));
            }
            return steps.end();
        }
        self.update(pair);
    }

    fn update(&self, mut pair: MutexGuard<'_, Pair>) {
        let rises = self.shared.update(&mut pair);
        drop(pair);
        self.shared.raise(rises);
    }

    /// The current state. Stop the guest and the devices first; otherwise the parts of the state are from different
    /// moments.
    pub fn save(&self) -> PicState {
        let pair = self.shared.pair();
        PicState {
            master: pair.master.save(),
            slave: pair.slave.save(),
        }
    }

    /// Takes over a saved state, and raises INTR if the state has a request. Call this before the sources state their
    /// levels and before the guest runs (law 17).
    ///
    /// For a pair behind a [`Router`](crate::Router), call [`Router::restore`](crate::Router::restore) instead.
    ///
    /// The sources own their levels. The saved level holds until each source has stated its level, or until the next
    /// EOI of the IRQ. Sources that already assert continue to assert.
    ///
    /// # Errors
    /// [`StateError::Impossible`]; the chips are unchanged.
    pub fn restore(&self, state: &PicState) -> std::result::Result<(), StateError> {
        state.check()?;
        self.take_over(state);
        Ok(())
    }

    /// Brings the chips to their state after power-on. Sources keep their levels, and listeners stay.
    pub fn reset(&self) {
        self.take_over(&PicState {
            master: SavedChip::RESET,
            slave: SavedChip::RESET,
        });
    }

    fn take_over(&self, state: &PicState) {
        let PicState { master, slave } = state;
        let mut pair = self.shared.pair();
        pair.master.restore(master);
        pair.slave.restore(slave);
        self.finish(pair, 0);
        for (irq, line) in (0..INPUTS).zip(&self.lines).filter(|(irq, _)| *irq != CASCADE) {
            // An 8259 takes every level.
            line.restore(state.level(Gsi(irq.into()))).ok();
        }
    }
}

fn acknowledge(pair: &mut Pair, counters: &Counters) -> (u8, Irqs) {
    // The slave's current request is on the cascade already: every change of either chip ends with `update`.
    let Some(input) = pair.master.request() else {
        counters.spurious.count();
        return (pair.master.vector(SPURIOUS), 0);
    };
    let ended = irqs(Role::Master, pair.master.acknowledge(input));
    if input != CASCADE {
        return (pair.master.vector(input), ended);
    }
    let Some(input) = pair.slave.request() else {
        counters.spurious.count();
        return (pair.slave.vector(SPURIOUS), ended);
    };
    let ended_by_slave = irqs(Role::Slave, pair.slave.acknowledge(input));
    (pair.slave.vector(input), ended | ended_by_slave)
}

impl EoiNotifier for Pic {
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

/// [`Pic::read`] and [`Pic::write`] on vm-device's bus.
#[cfg(feature = "vm-device")]
#[cfg_attr(docsrs, doc(cfg(feature = "vm-device")))]
impl DevicePio for Pic {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.read(base.0.saturating_add(offset), data);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.write(base.0.saturating_add(offset), data);
    }
}

impl Pic {
    /// The guest reads this port: one byte of one of the [ports](Self::PORTS). Everything else reads as 0, and is
    /// [counted](Counts::ignored_accesses).
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match (spec::port(port), data) {
            (Some((role, register)), [data]) => *data = self.read_register(role, register),
            (_, data) => {
                data.fill(0);
                self.shared.counters.ignored_accesses.count();
            }
        }
    }

    /// The guest writes this port: one byte to one of the [ports](Self::PORTS). Everything else is ignored, and is
    /// [counted](Counts::ignored_accesses).
    pub fn write(&self, port: u16, data: &[u8]) {
        match (spec::port(port), data) {
            (Some((role, register)), &[value]) => self.write_register(role, register, value),
            _ => self.shared.counters.ignored_accesses.count(),
        }
    }

    fn read_register(&self, role: Role, register: Register) -> u8 {
        let mut pair = self.shared.pair();
        let chip = pair.chip(role);
        match register {
            Register::Elcr => chip.read_elcr(),
            _ if chip.takes_poll() => {
                let (value, ended) = chip::poll(chip);
                if role == Role::Slave {
                    pair.master.unlatch_cascade();
                }
                self.finish(pair, irqs(role, ended));
                value
            }
            Register::Command => chip.read_command(),
            Register::Data => chip.read_data(),
        }
    }

    fn write_register(&self, role: Role, register: Register, value: u8) {
        let mut pair = self.shared.pair();
        let chip = pair.chip(role);
        let mut ended = 0;
        match register {
            Register::Command => ended = chip.write_command(value),
            Register::Data => chip.write_data(value),
            Register::Elcr => chip.write_elcr(value),
        }
        self.finish(pair, irqs(role, ended));
    }
}

impl fmt::Debug for Pic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pair = self.shared.pair();
        write!(f, "INTR {}, {:?}, {:?}", self.intr(), pair.master, pair.slave)
    }
}
