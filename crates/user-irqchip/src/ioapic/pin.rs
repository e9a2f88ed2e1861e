// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One pin: its entry, its state, and its message on the way to the output.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use interrupt_core::{Delivery, EveryStep, Gsi, Level, Msi, Pin, PinMask, Result, WiredOr};

use super::pin_state::{AfterEoi, AfterWrite, Driven, Output, PinState, Sent};
use super::saved::SavedPin;
use super::shared::Shared;
use super::spec::{Half, RedirectionEntry};
use crate::pulse::Pulse;
use crate::sync::{lock, try_lock};

/// A pin of an [`Ioapic`](super::Ioapic), as a [`Line`](interrupt_core::Line) drives it.
pub(crate) struct IoapicPin {
    shared: Arc<Shared>,
    number: u8,
    gsi: Gsi,
    state: Mutex<Locked>,
    /// The entry's bits but for remote IRR, which is in `state`. Written under [`Shared::writes`].
    entry: AtomicU64,
    /// The message that the output knows, see [`pack`]. Written under [`Shared::writes`].
    message: AtomicU64,
    /// The mask that the output knows. Written under [`Shared::writes`].
    masked: AtomicBool,
}

/// The state of the line and the state of the pin, under one lock: an assertion or an EOI takes this lock once.
#[derive(Debug)]
pub(crate) struct Locked {
    or: WiredOr,
    pin: PinState,
}

impl Locked {
    /// Makes one step, and returns the work that remains.
    pub(super) fn step<R>(&mut self, step: impl FnOnce(PinState) -> (PinState, R)) -> R {
        let (next, result) = step(self.pin);
        self.pin = next;
        result
    }

    /// The mask for the output, when the guest has unmasked the entry. The listeners are asked after the output has been
    /// told, unless an interrupt is in service: then the EOI asks them.
    fn unmask(&self, entry: RedirectionEntry) -> PinMask {
        if entry.is_level() && !self.pin.remote_irr() && self.or.has_listeners_of_gsi() {
            PinMask::Asked
        } else {
            PinMask::Unmasked
        }
    }
}

/// The rest of the work after a level was driven.
#[derive(Debug)]
pub(crate) struct Outcome(Driven);

/// The arguments of [`MsiOutput::set_pin`](interrupt_core::MsiOutput::set_pin).
#[derive(Clone, Copy)]
struct Program {
    message: Option<Msi>,
    mask: PinMask,
}

/// A message in one word; 0 means no message. The address of an IOAPIC's message has 32 bits.
fn pack(message: Option<Msi>) -> u64 {
    message.map_or(0, |message| message.address << 32 | u64::from(message.data))
}

fn unpack(word: u64) -> Option<Msi> {
    (word != 0).then_some(Msi {
        address: word >> 32,
        data: word as u32,
    })
}

fn mask_of(entry: RedirectionEntry) -> PinMask {
    if entry.is_masked() {
        PinMask::Masked
    } else {
        PinMask::Unmasked
    }
}

impl IoapicPin {
    pub(super) fn new(shared: Arc<Shared>, number: u8, gsi: Gsi) -> Self {
        shared.index(number, RedirectionEntry::RESET.vector());
        Self {
            shared,
            number,
            gsi,
            state: Mutex::new(Locked {
                or: WiredOr::default(),
                pin: PinState::RESET,
            }),
            entry: AtomicU64::new(RedirectionEntry::RESET.bits()),
            message: AtomicU64::new(0),
            masked: AtomicBool::new(true),
        }
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// The number of the last message.
    pub(super) fn sent(&self) -> Sent {
        self.lock().pin.sent()
    }

    fn step<R>(&self, step: impl FnOnce(PinState) -> (PinState, R)) -> R {
        self.lock().step(step)
    }

    pub(super) fn entry(&self) -> RedirectionEntry {
        self.whole(self.lock().pin)
    }

    fn whole(&self, state: PinState) -> RedirectionEntry {
        let mut entry = RedirectionEntry::from_bits(self.entry.load(Ordering::Relaxed));
        entry.set_remote_irr(state.remote_irr());
        entry
    }

    /// The level of the line as the pin sees it.
    pub(super) fn line(&self) -> Level {
        self.lock().pin.line()
    }

    /// The guest writes half of the entry. The output is told before this returns, in a step of `steps`.
    pub(super) fn write(&self, half: Half, value: u32, steps: &mut EveryStep) -> AfterWrite {
        let _writes = lock(&self.shared.writes);
        let entry = RedirectionEntry::from_bits(self.entry.load(Ordering::Relaxed)).written(half, value);
        if entry.is_masked() {
            // A masked pin sends nothing, so the output's message does not matter.
            let mut locked = self.lock();
            self.exchange(entry);
            let program = self.program(&mut locked, entry, None);
            drop(locked);
            if program.is_some_and(|program| !self.is_told(program, steps)) {
                self.step(|state| (state.untold(), ()));
            }
            return AfterWrite::Nothing;
        }
        let message = entry.message();
        if message.is_none() {
            self.shared.counters.illegal_entries.count();
        }
        // An error of the output is counted, because there is no caller to return it to.
        let unmasks = self.masked.load(Ordering::Relaxed) && pack(message) == self.message.load(Ordering::Relaxed);
        // Until the output has been told, this pin's state is masked, and the pin sends nothing.
        if unmasks {
            let mask = self.lock().unmask(entry);
            if self.is_told(Program { message, mask }, steps) {
                let mut locked = self.lock();
                self.exchange(entry);
                locked.pin = locked.pin.written(entry, Output::default()).told(message.is_some());
                let is_heard = locked.or.has_listeners_of_gsi();
                return locked.step(|state| state.after_write(is_heard));
            }
        }
        let mut locked = self.lock();
        self.exchange(entry);
        let program = self.program(&mut locked, entry, message);
        if let Some(mut program) = program.filter(|_| !unmasks) {
            program.mask = locked.unmask(entry);
            drop(locked);
            let told = self.is_told(program, steps);
            locked = self.lock();
            if told {
                locked.pin = locked.pin.told(program.message.is_some());
            }
        }
        let changed = program.is_some() && locked.or.has_listeners_of_gsi();
        locked.step(|state| state.after_write(changed))
    }

    /// Exchanges the entry. The caller holds [`Shared::writes`].
    fn exchange(&self, entry: RedirectionEntry) {
        let before = RedirectionEntry::from_bits(self.entry.load(Ordering::Relaxed));
        self.entry.store(entry.without_remote_irr().bits(), Ordering::Relaxed);
        self.shared.reindex(self.number, before.vector(), entry.vector());
    }

    /// Tells the output of the pin: of a new destination, after the interrupt in service that kept the old destination has
    /// ended, or of a pin that the output has refused. Sends the interrupt if the line is high.
    fn program_again(&self, writes: MutexGuard<'_, ()>) {
        let mut steps = EveryStep::default();
        let mut locked = self.lock();
        let entry = self.whole(locked.pin);
        if let Some(program) = self.program(&mut locked, entry, entry.message()) {
            drop(locked);
            let told = self.is_told(program, &mut steps);
            locked = self.lock();
            if told {
                locked.pin = locked.pin.told(program.message.is_some());
            }
        }
        let sent = locked.step(PinState::settled);
        drop((locked, writes));
        steps.take(|| self.send_unasked(sent));
        steps.end();
    }

    /// Tries again what the output has refused, unless an entry is being written: that write, or the next EOI, tries it.
    pub(super) fn tell_again(&self) {
        let writes = try_lock(&self.shared.writes);
        if let Some(writes) = writes.filter(|_| self.shared.refused().any(|pin| pin == self.number.into())) {
            self.program_again(writes);
        }
    }

    /// Takes an entry that the guest has written, and its message, into the state. Returns the change to tell the
    /// output. The caller holds [`Shared::writes`].
    fn program(&self, locked: &mut Locked, entry: RedirectionEntry, message: Option<Msi>) -> Option<Program> {
        let known = unpack(self.message.load(Ordering::Relaxed));
        let masked = entry.is_masked();
        let differs = !masked && message != known;
        let output = Output {
            mask: masked != self.masked.load(Ordering::Relaxed),
            message: differs,
            destination: differs && message.map(|new| new.data) == known.map(|old| old.data),
        };
        locked.pin = locked.pin.written(entry, output);
        // A masked pin keeps its message, and so does a pin in service: its interrupt was sent by this message.
        let keeps = masked || locked.pin.is_moved();
        let message = if keeps { known } else { message };
        let mask = mask_of(entry);
        (locked.pin.is_stale() || output.mask).then_some(Program { message, mask })
    }

    /// Tells the output. An output that panics has refused.
    fn is_told(&self, program: Program, steps: &mut EveryStep) -> bool {
        steps.take(|| self.tell(program)).is_some_and(|told| told.is_ok())
    }

    fn tell(&self, Program { message, mask }: Program) -> Result<()> {
        // Noted beforehand, because an output that panics has refused.
        self.shared.set_refused(self.number, true);
        let told = self.shared.output.set_pin(self.gsi, message, mask);
        if told.is_ok() {
            self.shared.set_refused(self.number, false);
            self.message.store(pack(message), Ordering::Release);
            self.masked.store(mask.is_masked(), Ordering::Relaxed);
        } else {
            self.shared.counters.route_errors.count();
        }
        told
    }

    /// Does the work that remains after an EOI. Returns whether a delay begins.
    pub(super) fn ended(&self, after: AfterEoi) -> bool {
        match after {
            AfterEoi::Nothing => {}
            AfterEoi::Send(sent) => self.send_unasked(Some(sent)),
            AfterEoi::Program => self.program_again(lock(&self.shared.writes)),
            AfterEoi::Delay => return true,
        }
        false
    }

    /// Call this after the sources were asked for their level: sends the interrupt if the line is high.
    pub(super) fn resampled(&self) {
        self.send_unasked(self.step(PinState::settled));
    }

    /// Ends the delay, if there is one, and sends the interrupt if the line is high.
    pub(super) fn delay_over(&self) {
        self.send_unasked(self.step(PinState::delay_over));
    }

    /// Sends a message, without a lock: the receiver may end the interrupt at once.
    fn send(&self, sent: Sent) -> Result<Delivery> {
        let Some(message) = unpack(self.message.load(Ordering::Acquire)) else {
            // The guest has just changed the entry to one without a message.
            self.step(|state| (state.refused(sent), ()));
            return Ok(Delivery::Pending);
        };
        // An output that panics has not sent the message.
        let mut steps = EveryStep::default();
        let delivered = steps.take(|| self.shared.output.send_msi(self.gsi, message));
        if matches!(delivered, Some(Ok(Delivery::Delivered(0)) | Err(_)) | None) {
            if matches!(delivered, Some(Ok(_))) {
                self.shared.counters.refused_messages.count();
            }
            let state = self.step(|state| (state.refused(sent), state.refused(sent)));
            if state.is_moved() && !state.remote_irr() {
                steps.take(|| self.program_again(lock(&self.shared.writes)));
            }
        }
        steps.end();
        delivered.unwrap_or(Ok(Delivery::Pending))
    }

    /// Sends a message outside of an assertion. An error is counted, because no source waits for the outcome.
    pub(super) fn send_unasked(&self, sent: Option<Sent>) {
        if let Some(sent) = sent {
            self.shared.counters.send_errors.count_error(self.send(sent));
        }
    }

    pub(super) fn save(&self) -> SavedPin {
        let state = self.lock().pin;
        let entry = self.whole(state);
        let known = unpack(self.message.load(Ordering::Relaxed)).map(|message| message.address);
        let current = entry.message().map(|message| message.address);
        SavedPin {
            entry: entry.bits(),
            high: state.line() == Level::High,
            edge: state.edge(),
            sent_to: known.filter(|_| entry.remote_irr() && known != current),
        }
    }

    /// Takes over a saved state, and tells the output of the message, also of a masked entry: the EOI of an interrupt
    /// in service comes back by this route.
    pub(super) fn restore(&self, saved: &SavedPin) -> Result<()> {
        let SavedPin {
            entry,
            high,
            edge,
            sent_to,
        } = *saved;
        let entry = RedirectionEntry::from_bits(entry);
        let _writes = lock(&self.shared.writes);
        self.exchange(entry);
        let current = entry.message();
        let message = current.map(|message| Msi {
            address: sent_to.unwrap_or(message.address),
            ..message
        });
        let output = Output {
            mask: entry.is_masked() != self.masked.load(Ordering::Relaxed),
            message: pack(message) != self.message.load(Ordering::Relaxed),
            destination: message != current && !entry.is_masked(),
        };
        let mut locked = self.lock();
        locked.pin = locked.pin.restored(entry, high, edge, output);
        if !locked.pin.is_stale() {
            return Ok(());
        }
        drop(locked);
        let mask = mask_of(entry);
        let told = self.tell(Program { message, mask });
        if told.is_ok() {
            self.step(|state| (state.told(message.is_some()), ()));
        }
        told
    }
}

impl Pin for IoapicPin {
    type State = Locked;
    type Outcome = Outcome;

    fn lock(&self) -> MutexGuard<'_, Locked> {
        lock(&self.state)
    }

    fn wired_or<'a>(&self, locked: &'a mut Locked) -> &'a mut WiredOr {
        &mut locked.or
    }

    fn drive(&self, locked: &mut Locked, level: Level) -> Result<Outcome> {
        Ok(Outcome(locked.step(|state| state.drive(level))))
    }

    fn deliver(&self, outcome: Outcome) -> Result<Delivery> {
        match outcome.0 {
            Driven::Send(sent) => self.send(sent),
            Driven::Tell => {
                self.tell_again();
                Ok(Delivery::Pending)
            }
            Driven::Nothing(delivery) => Ok(delivery),
        }
    }
}

impl Pulse for IoapicPin {
    fn is_open_edge(&self) -> bool {
        PinState::from_bits(self.entry.load(Ordering::Acquire)).is_open_edge()
    }
}

impl fmt::Debug for IoapicPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pin {}: {}, {}", self.number, self.line(), self.entry())
    }
}
