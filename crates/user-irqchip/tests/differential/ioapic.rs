// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The userspace IOAPIC and the kernel's, with a local APIC each, driven alike.

use std::fmt;

use interrupt_core::{Gsi, Msi, MsiOutput};
use kvm_bindings::{kvm_ioapic_state, kvm_lapic_state, kvm_msi};
use testkit::kernel_rig::KernelRig;
use testkit::need::Need;
use testkit::rig::{LEVEL, MASKED, REMOTE_IRR, ResampleLine, Rig};
use user_irqchip::testing::Registers;

use crate::guest::Guest;
use crate::rig::UserRig;
use crate::trace::{Difference, Flaws, Pair, Rng};

/// What a host must have: the model does as kernels do that ask for the level at an unmask.
pub fn needs() -> Vec<Need> {
    [KernelRig::NEEDS, &[Need::KernelAtLeast(6, 3)]].concat()
}

/// Pins that no 8259 shares.
const PINS: [u32; 3] = [18, 19, 20];
/// Two of one priority class, and one of another.
const VECTORS: [u8; 3] = [0x31, 0x32, 0x51];
/// Level sources at a time.
const SLOTS: usize = 4;

const REDIRECTION_TABLE: u32 = 0x10;
const MSR_SVR: u32 = 0x80f;

/// One step. Pins and slots are indices. A step that makes no sense (a trigger of an empty slot, say) does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The pin's plain line goes high, or is stated high again.
    Raise(usize),
    /// The plain line goes low.
    Lower(usize),
    /// The plain line goes high and low, as an edge irqfd drives it.
    Pulse(usize),
    /// A level source is put on a pin.
    Bind(usize, usize),
    /// The source goes.
    Unbind(usize),
    /// The source asserts.
    Trigger(usize),
    /// The guest masks the pin.
    Mask(usize),
    /// The guest unmasks the pin.
    Unmask(usize),
    /// The guest gives the pin another vector.
    Vector(usize, u8),
    /// The guest makes the pin a level pin, or an edge pin.
    Level(usize, bool),
    /// The guest writes the high half of the entry, which stays the same.
    High(usize),
    /// The processor takes what waits.
    Accept,
    /// The guest ends what is in service.
    Eoi,
    /// Another device's MSI comes in, with a vector that pins have too, and is an edge or a level.
    Foreign(u8, bool),
    /// The guest enables the local APIC, or disables it.
    Enable(bool),
}

use Op::*;

impl Op {
    /// The pin whose entry the guest writes.
    fn writes(self) -> Option<usize> {
        match self {
            Mask(p) | Unmask(p) | Vector(p, _) | Level(p, _) | High(p) => Some(p),
            _ => None,
        }
    }
}

/// What can be seen of either side after a step.
#[derive(Clone, PartialEq, Eq)]
struct View {
    rte: [u64; PINS.len()],
    irr: [bool; PINS.len()],
    /// In the local APIC: what waits, what is in service, and which of those came in as a level.
    waiting: [bool; VECTORS.len()],
    in_service: [bool; VECTORS.len()],
    level: [bool; VECTORS.len()],
    /// How often each source was told since the step before.
    told: [u64; SLOTS],
}

impl View {
    /// The pin's level has been sent to nobody, and would be sent if it were stated again.
    fn is_untaken(&self, p: usize) -> bool {
        self.irr[p] && self.rte[p] & (LEVEL | MASKED | REMOTE_IRR) == LEVEL
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = |bits: [bool; 3]| bits.map(u8::from);
        write!(f, "entries {:x?}, irr {:?}, ", self.rte, bits(self.irr))?;
        write!(
            f,
            "waiting {:?}, in service {:?}, ",
            bits(self.waiting),
            bits(self.in_service)
        )?;
        write!(f, "level {:?}, told {:?}", bits(self.level), self.told)
    }
}

/// The level sources of one side.
type Slots = [Option<Box<dyn ResampleLine>>; SLOTS];

fn told(slots: &Slots) -> [u64; SLOTS] {
    std::array::from_fn(|slot| slots[slot].as_ref().map_or(0, |line| line.n()))
}

struct Model {
    rig: UserRig,
    slots: Slots,
}

impl Model {
    fn new() -> Self {
        Self {
            rig: UserRig::new(),
            slots: Slots::default(),
        }
    }

    fn view(&mut self) -> View {
        let Registers { irr, isr, tmr } = self.rig.apics().registers(0);
        View {
            rte: PINS.map(|pin| self.rig.rte(pin)),
            irr: PINS.map(|pin| self.rig.irr(pin)),
            waiting: VECTORS.map(|v| irr.contains(v)),
            in_service: VECTORS.map(|v| isr.contains(v)),
            level: VECTORS.map(|v| tmr.contains(v) && (irr.contains(v) || isr.contains(v))),
            told: told(&self.slots),
        }
    }

    fn send_msi(&self, vector: u8, level: bool) {
        let message = Msi {
            address: 0xfee0_0000,
            data: u32::from(vector) | u32::from(level) << 15,
        };
        self.rig.apics().send_msi(Gsi(0), message).unwrap();
    }
}

struct Kernel {
    rig: KernelRig,
    guest: Guest,
    slots: Slots,
    clean_ioapic: kvm_ioapic_state,
    clean_lapic: kvm_lapic_state,
}

impl Kernel {
    fn new() -> Self {
        let mut rig = KernelRig::new();
        let clean_ioapic = rig.machine().ioapic();
        let clean_lapic = rig.machine().vcpu().get_lapic().unwrap();
        let guest = Guest::start(rig.machine());
        Self {
            rig,
            guest,
            slots: Slots::default(),
            clean_ioapic,
            clean_lapic,
        }
    }

    /// As fresh. A new machine takes some milliseconds, this some microseconds.
    fn reset(&mut self) {
        self.slots = Slots::default();
        for pin in PINS {
            self.rig.set_line(pin, false);
        }
        self.rig.machine().restore_ioapic(self.clean_ioapic);
        self.rig.machine().vcpu().set_lapic(&self.clean_lapic).unwrap();
    }

    fn view(&mut self) -> View {
        let machine = self.rig.machine();
        let lapic = machine.lapic();
        View {
            rte: PINS.map(|pin| machine.rte(pin)),
            irr: PINS.map(|pin| machine.ioapic_irr(pin)),
            waiting: VECTORS.map(|v| lapic.irr(v)),
            in_service: VECTORS.map(|v| lapic.isr(v)),
            level: VECTORS.map(|v| lapic.tmr(v) && (lapic.irr(v) || lapic.isr(v))),
            told: told(&self.slots),
        }
    }

    fn write_entry(&mut self, pin: u32, half: u32, value: u32) {
        let register = REDIRECTION_TABLE + 2 * pin + half;
        self.guest.write_ioapic(self.rig.machine(), register, value);
    }

    fn send_msi(&mut self, vector: u8, level: bool) {
        let msi = kvm_msi {
            address_lo: 0xfee0_0000,
            data: u32::from(vector) | u32::from(level) << 15,
            ..Default::default()
        };
        self.rig.machine().vm().signal_msi(msi).unwrap();
    }

    fn enable(&mut self, enabled: bool) {
        let enable = u32::from(enabled) << 8;
        self.guest.wrmsr(self.rig.machine(), MSR_SVR, 0xff | enable);
    }

    /// Takes the sources in these slots off their pin, all at once, and puts them on again: the one way to make KVM forget
    /// what its resample source has asserted.
    fn rebind(&mut self, slots: &[usize], pin: usize) {
        for &slot in slots {
            self.slots[slot] = None;
        }
        for &slot in slots {
            self.slots[slot] = Some(self.rig.bind_resample(PINS[pin]));
        }
    }

    /// Makes the local APIC's registers say of a vector what the model's say.
    fn set_vector(&mut self, vector: u8, waiting: bool, level: bool) {
        let mut lapic = self.rig.machine().vcpu().get_lapic().unwrap();
        for (register, on) in [(0x200, waiting), (0x180, level)] {
            let byte = &mut lapic.regs[register + usize::from(vector) / 32 * 16 + usize::from(vector) % 32 / 8];
            let bit = 1 << (vector % 8);
            *byte = if on { *byte | bit } else { *byte & !bit };
        }
        self.rig.machine().vcpu().set_lapic(&lapic).unwrap();
    }
}

/// Known differences of KVM's irqchip. Each has a trial of its own, which notes a kernel that no longer has the difference.
pub mod flaw {
    /// A plain line that is high, masked, on a GSI with a level source: the unmask drops the level (row 63).
    pub const LOST: &str = "a held level is lost at the unmask";
    /// After an unmask that asked an idle source, lowering the plain line raises the pin (row 64).
    pub const PHANTOM: &str = "a lowered line raises the pin after an unmask";
    /// A pulse on a GSI whose plain line is high lowers it (row 65).
    pub const PULSE: &str = "a pulse ends a held level";
    /// The level of a source that goes stays as long as its GSI has another source.
    pub const STAYS: &str = "the level of a source that went stays";
    /// A pin's bit in the state's irr is 0 after an edge was delivered, although the line is high.
    pub const HIDDEN: &str = "the state hides the line after an edge";
    /// The EOI of a level interrupt sends an edge pin that has its vector again, when the line is high.
    pub const RESENT: &str = "an EOI sends an edge pin again";
    /// Not a flaw: a level that nobody took is tried again whenever the GSI is driven high, also by a source that does not
    /// change the line's level. A line of this workspace drives its pin when the level changes, and when it is restated.
    pub const RETRIED: &str = "a level that nobody took is tried again";
    /// A vector below 16 is sent and sets remote IRR, and can never be accepted nor ended. No trace has one.
    pub const ILLEGAL: &str = "a level pin with an illegal vector waits for ever";
}

/// What the harness has to remember to foresee the kernel's flaws.
#[derive(Default)]
struct Notes {
    enabled: bool,
    plain: [bool; PINS.len()],
    /// A level was sent to nobody, as of the step before: see [`flaw::RETRIED`].
    untaken: [bool; PINS.len()],
    /// KVM's resample source is still asserted, although an unmask has asked it and cleared irr.
    stale: [bool; PINS.len()],
    /// An edge was delivered: see [`flaw::HIDDEN`].
    edge_sent: [bool; PINS.len()],
    /// The vector, by index, that this step's EOI has ended, if it came in as a level.
    ended_level: Option<usize>,
    /// The pin that the source in a slot is on, and whether it asserts.
    sources: [Option<(usize, bool)>; SLOTS],
}

impl Notes {
    fn on(&self, pin: usize) -> Vec<usize> {
        let on = |slot: &usize| self.sources[*slot].is_some_and(|(other, _)| other == pin);
        (0..SLOTS).filter(on).collect()
    }

    fn any_asserts(&self, pin: usize) -> bool {
        self.sources.contains(&Some((pin, true)))
    }

    fn lowered(&mut self, pin: usize) {
        for source in self.sources.iter_mut().flatten().filter(|(other, _)| *other == pin) {
            source.1 = false;
        }
    }
}

/// The two sides.
pub struct Ioapics {
    model: Model,
    kernel: Kernel,
    notes: Notes,
}

impl Ioapics {
    pub fn new() -> Self {
        Self {
            model: Model::new(),
            kernel: Kernel::new(),
            notes: Notes::default(),
        }
    }

    /// Does the step on both sides. An error is a difference in what it answers.
    fn apply(&mut self, op: Op, flaws: &mut Flaws) -> Result<(), String> {
        let Self { model, kernel, notes } = self;
        notes.ended_level = None;
        match op {
            Raise(p) => {
                self.rises(p);
                let Self { model, kernel, notes } = self;
                let answers = (model.rig.set_line(PINS[p], true), kernel.rig.set_line(PINS[p], true));
                notes.plain[p] = true;
                // Without a taker, KVM says now this, now that.
                if answers.0 != answers.1 && notes.enabled {
                    return Err(format!("the model answers {:?}, the kernel {:?}", answers.0, answers.1));
                }
            }
            Lower(p) => {
                self.forget_stale(p, flaws);
                self.model.rig.set_line(PINS[p], false);
                self.kernel.rig.set_line(PINS[p], false);
                self.notes.plain[p] = false;
            }
            Pulse(p) if notes.plain[p] => *flaws.entry(flaw::PULSE).or_default() += 1,
            Pulse(p) => {
                self.forget_stale(p, flaws);
                self.rises(p);
                for high in [true, false] {
                    self.model.rig.set_line(PINS[p], high);
                    self.kernel.rig.set_line(PINS[p], high);
                }
            }
            Bind(slot, p) if notes.sources[slot].is_none() => {
                model.slots[slot] = Some(model.rig.bind_resample(PINS[p]));
                kernel.slots[slot] = Some(kernel.rig.bind_resample(PINS[p]));
                notes.sources[slot] = Some((p, false));
            }
            Bind(..) => {}
            Unbind(slot) => self.unbind(slot, flaws),
            Trigger(slot) => {
                let Some((p, asserts)) = &mut notes.sources[slot] else {
                    return Ok(());
                };
                let p = *p;
                *asserts = true;
                notes.stale[p] = false;
                self.rises(p);
                for line in [&self.model.slots[slot], &self.kernel.slots[slot]]
                    .into_iter()
                    .flatten()
                {
                    line.trigger();
                }
                self.kernel.rig.settle();
            }
            Mask(p) => self.write_low(p, |low| low | MASKED, flaws),
            Unmask(p) => self.write_low(p, |low| low & !MASKED, flaws),
            Vector(p, vector) => self.write_low(p, |low| low & !0xff | u64::from(vector), flaws),
            Level(p, true) => self.write_low(p, |low| low | LEVEL, flaws),
            Level(p, false) => self.write_low(p, |low| low & !LEVEL, flaws),
            High(p) => {
                let entry = model.rig.rte(PINS[p]);
                let asked = self.asks(p, entry);
                self.model.rig.write_rte_high(PINS[p], (entry >> 32) as u32);
                self.kernel.write_entry(PINS[p], 1, (entry >> 32) as u32);
                self.asked(p, asked, flaws);
            }
            Accept if notes.enabled => {
                let answers = (model.rig.accept(), kernel.rig.machine().accept());
                if answers.0 != answers.1 {
                    return Err(format!(
                        "the model accepts {:x?}, the kernel {:x?}",
                        answers.0, answers.1
                    ));
                }
            }
            Accept => {}
            Eoi => {
                let Registers { isr, tmr, .. } = model.rig.apics().registers(0);
                let ended = (0..VECTORS.len()).rfind(|&v| isr.contains(VECTORS[v]));
                notes.ended_level = ended.filter(|&v| tmr.contains(VECTORS[v]));
                model.rig.eoi();
                kernel.guest.eoi(kernel.rig.machine());
            }
            Foreign(vector, level) => {
                model.send_msi(vector, level);
                kernel.send_msi(vector, level);
            }
            Enable(enabled) => {
                model.rig.set_lapic_enabled(enabled);
                kernel.enable(enabled);
                notes.enabled = enabled;
            }
        }
        Ok(())
    }

    /// The pin's line is about to be driven high.
    fn rises(&mut self, p: usize) {
        let entry = self.model.rig.rte(PINS[p]);
        self.notes.edge_sent[p] |= entry & (LEVEL | MASKED) == 0 && !self.model.rig.irr(PINS[p]);
    }

    /// Before something makes the kernel look at the stale source.
    fn forget_stale(&mut self, p: usize, flaws: &mut Flaws) {
        if std::mem::take(&mut self.notes.stale[p]) {
            self.kernel.rebind(&self.notes.on(p), p);
            *flaws.entry(flaw::PHANTOM).or_default() += 1;
            // That has driven the line once more, if it is high.
            if self.kernel.rig.machine().rte(PINS[p]) == self.model.rig.rte(PINS[p]) | REMOTE_IRR {
                self.model.rig.restate(PINS[p]);
            }
        }
    }

    fn unbind(&mut self, slot: usize, flaws: &mut Flaws) {
        let Some((p, asserted)) = self.notes.sources[slot].take() else {
            return;
        };
        self.model.slots[slot] = None;
        self.kernel.slots[slot] = None;
        let left = self.notes.on(p);
        if left.is_empty() {
            self.notes.stale[p] = false;
        } else if asserted && !self.notes.any_asserts(p) {
            self.kernel.rebind(&left, p);
            self.notes.stale[p] = false;
            *flaws.entry(flaw::STAYS).or_default() += 1;
        }
    }

    fn write_low(&mut self, p: usize, change: impl FnOnce(u64) -> u64, flaws: &mut Flaws) {
        let entry = change(self.model.rig.rte(PINS[p]));
        let asked = self.asks(p, entry);
        self.model.rig.write_rte_low(PINS[p], entry as u32);
        self.kernel.write_entry(PINS[p], 0, entry as u32);
        self.asked(p, asked, flaws);
    }

    /// Whether writing this entry makes the chip ask the pin's sources instead of sending.
    fn asks(&mut self, p: usize, entry: u64) -> bool {
        let in_service = self.model.rig.rte(PINS[p]) & REMOTE_IRR != 0;
        let lets_through = entry & (LEVEL | MASKED) == LEVEL && !in_service && self.model.rig.irr(PINS[p]);
        lets_through && !self.notes.on(p).is_empty()
    }

    fn asked(&mut self, p: usize, asked: bool, flaws: &mut Flaws) {
        if !asked {
            return;
        }
        self.notes.stale[p] |= self.notes.any_asserts(p);
        self.notes.lowered(p);
        if self.notes.plain[p] && !self.kernel.rig.machine().ioapic_irr(PINS[p]) {
            self.kernel.rig.set_line(PINS[p], true);
            *flaws.entry(flaw::LOST).or_default() += 1;
        }
    }

    /// Compares the two sides, and brings the kernel to where the model is when a known flaw explains the difference.
    fn compare(&mut self, op: Op, flaws: &mut Flaws) -> Result<(), String> {
        let Self { model, kernel, notes } = self;
        let (mut ours, mut theirs) = (model.view(), kernel.view());
        for (slot, source) in notes.sources.iter_mut().enumerate() {
            if let Some((p, asserts)) = source
                && ours.told[slot] > 0
            {
                *asserts = false;
                notes.stale[*p] &= op != Eoi;
            }
        }
        if ours == theirs {
            notes.untaken = std::array::from_fn(|p| ours.is_untaken(p));
            return Ok(());
        }
        for (p, &pin) in PINS.iter().enumerate() {
            let untaken = notes.untaken[p] && ours.is_untaken(p) && op.writes() != Some(p);
            if untaken && theirs.rte[p] == ours.rte[p] | REMOTE_IRR {
                model.rig.restate(pin);
                ours = View {
                    told: ours.told,
                    ..model.view()
                };
                *flaws.entry(flaw::RETRIED).or_default() += 1;
            }
        }
        if let Some(v) = notes.ended_level {
            let is_resent = |p: &usize| {
                let entry = ours.rte[*p];
                ours.irr[*p] && entry & (LEVEL | MASKED) == 0 && entry & 0xff == u64::from(VECTORS[v])
            };
            let resent: Vec<_> = (0..PINS.len()).filter(is_resent).collect();
            let same = (ours.waiting[v], ours.level[v]) == (theirs.waiting[v], theirs.level[v]);
            if !same && !resent.is_empty() {
                kernel.set_vector(VECTORS[v], ours.waiting[v], ours.level[v]);
                theirs.waiting[v] = ours.waiting[v];
                theirs.level[v] = ours.level[v];
                *flaws.entry(flaw::RESENT).or_default() += 1;
            }
            resent.into_iter().for_each(|p| notes.edge_sent[p] = true);
        }
        for p in 0..PINS.len() {
            notes.edge_sent[p] &= !theirs.irr[p];
            if notes.edge_sent[p] && ours.irr[p] {
                theirs.irr[p] = true;
                *flaws.entry(flaw::HIDDEN).or_default() += 1;
            }
        }
        notes.untaken = std::array::from_fn(|p| ours.is_untaken(p));
        if ours == theirs {
            Ok(())
        } else {
            Err(format!("after {op:?}:\n  model  {ours:?}\n  kernel {theirs:?}"))
        }
    }
}

impl Pair for Ioapics {
    type Op = Op;

    fn draw(rng: &mut Rng) -> Op {
        let (p, slot) = (rng.below(PINS.len()), rng.below(SLOTS));
        match rng.below(32) {
            0..3 => Raise(p),
            3..6 => Lower(p),
            6 => Pulse(p),
            7..9 => Bind(slot, p),
            9 => Unbind(slot),
            10..14 => Trigger(slot),
            14..16 => Mask(p),
            16..20 => Unmask(p),
            20 => Vector(p, rng.pick(&VECTORS)),
            21 => Level(p, rng.coin()),
            22 => Level(p, true),
            23 => High(p),
            24..27 => Accept,
            27..30 => Eoi,
            30 => Foreign(rng.pick(&VECTORS), rng.coin()),
            // Mostly enabled.
            _ => Enable(rng.below(4) > 0),
        }
    }

    fn run(&mut self, trace: &[Op], flaws: &mut Flaws) -> Result<(), Difference> {
        self.model = Model::new();
        self.kernel.reset();
        self.notes = Notes {
            enabled: true,
            ..Notes::default()
        };
        // Vectors first: below 16 there is a flaw of its own.
        let start = (0..PINS.len()).map(|p| Vector(p, VECTORS[p]));
        for op in start {
            self.apply(op, flaws)
                .and_then(|()| self.compare(op, flaws))
                .map_err(|what| Difference { step: 0, what })?;
        }
        for (step, &op) in trace.iter().enumerate() {
            let outcome = self.apply(op, flaws).and_then(|()| self.compare(op, flaws));
            outcome.map_err(|what| Difference { step, what })?;
        }
        Ok(())
    }
}
