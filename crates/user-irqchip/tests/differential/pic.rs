// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The userspace 8259 pair and the kernel's, driven alike.

use std::sync::Arc;

use interrupt_core::{Gsi, LevelSource, LoweredBy};
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_irqchip__bindgen_ty_1, kvm_pic_state,
};
use testkit::kernel_rig::KernelRig;
use testkit::machine::PicChip;
use testkit::rig::{PicRig, ResampleLine, Rig};
use user_irqchip::pic::{Awaits, SavedChip};

use crate::guest::Guest;
use crate::rig::UserPicRig;
use crate::trace::{Difference, Flaws, Pair, Rng};

/// Inputs of both chips: edge-only ones, ones that can be levels, and those of the spurious interrupts.
const IRQS: [u32; 7] = [1, 4, 5, 7, 9, 12, 15];
/// Level sources at a time.
const SLOTS: usize = 4;

const COMMAND: [u16; 2] = [0x20, 0xa0];
const DATA: [u16; 2] = [0x21, 0xa1];
const ELCR: [u16; 2] = [0x4d0, 0x4d1];
const ICW1: u8 = 0x10;

/// One step. IRQs and slots are indices; chip 0 is the master. A step that makes no sense does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The IRQ's plain line goes high, or is stated high again.
    Raise(usize),
    /// The plain line goes low.
    Lower(usize),
    /// A level source is put on an IRQ.
    Bind(usize, usize),
    /// The source goes.
    Unbind(usize),
    /// The source asserts.
    Trigger(usize),
    /// The guest writes a port.
    Write(u16, u8),
    /// The processor's acknowledge cycle, if INTR is high.
    Acknowledge,
}

use Op::*;

/// What can be seen of one chip after a step. INTR shows in what the processor gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    levels: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    highest: u8,
    base: u8,
    init_state: u8,
    init4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    read_isr: bool,
}

impl View {
    fn of_model(chip: &SavedChip) -> Self {
        Self {
            levels: chip.high,
            irr: chip.edges & !chip.elcr | chip.high & chip.elcr,
            isr: chip.isr,
            imr: chip.imr,
            elcr: chip.elcr,
            highest: chip.highest,
            base: chip.base,
            init_state: match chip.awaits {
                Awaits::Mask => 0,
                Awaits::Icw2 => 1,
                Awaits::Icw3 => 2,
                Awaits::Icw4 => 3,
            },
            init4: chip.needs_icw4,
            auto_eoi: chip.auto_eoi,
            rotate_on_auto_eoi: chip.rotate_on_auto_eoi,
            special_fully_nested: chip.special_fully_nested,
            read_isr: chip.read_isr,
        }
    }

    fn of_kernel(chip: &kvm_pic_state) -> Self {
        Self {
            levels: chip.last_irr,
            irr: chip.irr,
            isr: chip.isr,
            imr: chip.imr,
            elcr: chip.elcr,
            highest: chip.priority_add,
            base: chip.irq_base,
            init_state: chip.init_state,
            init4: chip.init4 != 0,
            auto_eoi: chip.auto_eoi != 0,
            rotate_on_auto_eoi: chip.rotate_on_auto_eoi != 0,
            special_fully_nested: chip.special_fully_nested_mode != 0,
            read_isr: chip.read_reg_select != 0,
        }
    }
}

/// What KVM's 8259 is known to do otherwise. Each has a trial of its own, which notes a kernel that no longer has the difference.
pub mod flaw {
    /// The level of a source that goes stays as long as its GSI has another source.
    pub const STAYS: &str = "the level of a source that went stays";
    /// ICW1 forgets which lines are high, so that stating a level again is an edge, and leaves INTR as it was.
    pub const ICW1: &str = "ICW1 forgets the lines and leaves INTR";
    /// ICW4 changes what is asked for, and leaves INTR as it was.
    pub const ICW4: &str = "ICW4 leaves INTR";
    /// An input that becomes a level, or an edge, keeps the request that it had.
    pub const ELCR: &str = "the ELCR does not look at the line";
    /// Special mask mode is stored and not obeyed. No trace has it.
    pub const SPECIAL_MASK: &str = "special mask mode does nothing";
    /// A poll ends the interrupt that it acknowledges. No trace has one.
    pub const POLL: &str = "a poll ends the interrupt";
    /// ICW1's bit for a chip that is alone is ignored, and ICW3 is awaited. No trace has it.
    pub const SINGLE: &str = "a single chip awaits ICW3";
}

type Slots = [Option<Box<dyn ResampleLine>>; SLOTS];

fn told(slots: &Slots) -> [u64; SLOTS] {
    std::array::from_fn(|slot| slots[slot].as_ref().map_or(0, |line| line.n()))
}

struct Model {
    // The sources go before the pair.
    plain: Vec<Arc<dyn LevelSource>>,
    slots: Slots,
    rig: UserPicRig,
}

impl Model {
    fn new() -> Self {
        let rig = UserPicRig::new();
        let plain = |irq: &u32| rig.pic().source(Gsi(*irq), "plain line", LoweredBy::Device).unwrap();
        Self {
            plain: IRQS.iter().map(plain).collect(),
            slots: Slots::default(),
            rig,
        }
    }

    fn views(&self) -> [View; 2] {
        let state = self.rig.pic().save();
        [View::of_model(&state.master), View::of_model(&state.slave)]
    }
}

struct Kernel {
    slots: Slots,
    rig: KernelRig,
    guest: Guest,
    clean: [kvm_pic_state; 2],
}

const CHIPS: [(PicChip, u32); 2] = [
    (PicChip::Master, KVM_IRQCHIP_PIC_MASTER),
    (PicChip::Slave, KVM_IRQCHIP_PIC_SLAVE),
];

impl Kernel {
    fn new() -> Self {
        let mut rig = KernelRig::new();
        rig.machine().set_lvt0_extint(true);
        let mut clean = CHIPS.map(|(chip, _)| rig.machine().pic(chip));
        for chip in &mut clean {
            // The machine has masked them.
            chip.imr = 0;
        }
        let guest = Guest::start(rig.machine());
        Self {
            slots: Slots::default(),
            rig,
            guest,
            clean,
        }
    }

    fn reset(&mut self) {
        self.slots = Slots::default();
        for irq in IRQS {
            self.rig.set_line(irq, false);
        }
        let clean = self.clean;
        self.restore(clean);
    }

    fn restore(&mut self, chips: [kvm_pic_state; 2]) {
        // The slave first: whatever it asks for when the master is set is latched in the master.
        for ((_, chip_id), pic) in CHIPS.into_iter().zip(chips).rev() {
            let state = kvm_irqchip {
                chip_id,
                pad: 0,
                chip: kvm_irqchip__bindgen_ty_1 { pic },
            };
            self.rig.machine().vm().set_irqchip(&state).unwrap();
        }
    }

    fn chips(&mut self) -> [kvm_pic_state; 2] {
        CHIPS.map(|(chip, _)| self.rig.machine().pic(chip))
    }

    /// Gives the chips the requests and levels that the model has, and has them look at INTR.
    fn follow(&mut self, views: &[View; 2]) {
        let mut chips = self.chips();
        for (chip, view) in chips.iter_mut().zip(views) {
            chip.irr = view.irr;
            chip.last_irr = view.levels;
        }
        self.restore(chips);
    }
}

/// The two sides.
pub struct Pics {
    model: Model,
    kernel: Kernel,
    /// The IRQ that the source in a slot is on, and whether it asserts.
    sources: [Option<(usize, bool)>; SLOTS],
}

impl Pics {
    pub fn new() -> Self {
        Self {
            model: Model::new(),
            kernel: Kernel::new(),
            sources: [None; SLOTS],
        }
    }

    fn apply(&mut self, op: Op, flaws: &mut Flaws) -> Result<(), String> {
        let Self { model, kernel, sources } = self;
        match op {
            Raise(i) => {
                model.plain[i].assert().unwrap();
                kernel.rig.set_line(IRQS[i], true);
            }
            Lower(i) => {
                model.plain[i].deassert().unwrap();
                kernel.rig.set_line(IRQS[i], false);
            }
            Bind(slot, i) if sources[slot].is_none() => {
                model.slots[slot] = Some(model.rig.bind_resample(IRQS[i]));
                kernel.slots[slot] = Some(kernel.rig.bind_resample(IRQS[i]));
                sources[slot] = Some((i, false));
            }
            Bind(..) => {}
            Unbind(slot) => self.unbind(slot, flaws),
            Trigger(slot) => {
                if let Some((_, asserts)) = &mut sources[slot] {
                    *asserts = true;
                    for line in [&model.slots[slot], &kernel.slots[slot]].into_iter().flatten() {
                        line.trigger();
                    }
                    kernel.rig.settle();
                }
            }
            Write(port, value) => {
                model.rig.outb(port, value);
                kernel.guest.outb(kernel.rig.machine(), port, value);
            }
            Acknowledge => {
                let vectors = (model.rig.inta(), kernel.guest.take_interrupt(kernel.rig.machine()));
                if vectors.0 != vectors.1 {
                    return Err(format!("the model gives {:x?}, the kernel {:x?}", vectors.0, vectors.1));
                }
            }
        }
        Ok(())
    }

    fn unbind(&mut self, slot: usize, flaws: &mut Flaws) {
        let Some((i, asserted)) = self.sources[slot].take() else {
            return;
        };
        self.model.slots[slot] = None;
        self.kernel.slots[slot] = None;
        let on = |slot: &usize| self.sources[*slot].is_some_and(|(other, _)| other == i);
        let left: Vec<_> = (0..SLOTS).filter(on).collect();
        if asserted && !left.is_empty() && !self.sources.contains(&Some((i, true))) {
            // Off all at once, and on again: KVM lowers its resample source when the last one goes.
            left.iter().for_each(|&slot| self.kernel.slots[slot] = None);
            for slot in left {
                self.kernel.slots[slot] = Some(self.kernel.rig.bind_resample(IRQS[i]));
            }
            *flaws.entry(flaw::STAYS).or_default() += 1;
        }
    }

    /// Compares the two sides, and brings the kernel to where the model is when a known flaw explains the difference.
    fn compare(&mut self, op: Op, before: &[View; 2], flaws: &mut Flaws) -> Result<(), String> {
        let told = (told(&self.model.slots), told(&self.kernel.slots));
        for (source, &told) in self.sources.iter_mut().zip(&told.0) {
            if let Some((_, asserts)) = source {
                *asserts &= told == 0;
            }
        }
        let ours = self.model.views();
        let mut theirs = self.kernel.chips().map(|chip| View::of_kernel(&chip));
        if let Write(port, value) = op {
            let flaw = match COMMAND
                .iter()
                .chain(&DATA)
                .chain(&ELCR)
                .position(|&other| other == port)
            {
                Some(chip @ 0..2) if value & ICW1 != 0 => {
                    theirs[chip].levels = ours[chip].levels;
                    // Telling a source states the line again, which is an edge then.
                    theirs[chip].irr &= !ours[chip].levels | ours[chip].irr;
                    // What the slave asks for is latched at KVM's next look.
                    theirs[0].irr = theirs[0].irr & !4 | ours[0].irr & 4;
                    Some(flaw::ICW1)
                }
                Some(chip @ 2..4) if before[chip - 2].init_state == 3 => Some(flaw::ICW4),
                Some(chip @ 4..6) => {
                    let chip = chip - 4;
                    let changed = before[chip].elcr ^ ours[chip].elcr;
                    theirs[chip].irr = theirs[chip].irr & !changed | ours[chip].irr & changed;
                    theirs[0].irr = theirs[0].irr & !4 | ours[0].irr & 4;
                    (changed != 0).then_some(flaw::ELCR)
                }
                _ => None,
            };
            if let Some(flaw) = flaw
                && ours == theirs
            {
                self.kernel.follow(&ours);
                *flaws.entry(flaw).or_default() += 1;
            }
        }
        if told.0 != told.1 {
            return Err(format!(
                "after {op:x?}: told {:?} by the model, {:?} by the kernel",
                told.0, told.1
            ));
        }
        if ours != theirs {
            return Err(format!("after {op:x?}:\n  model  {ours:x?}\n  kernel {theirs:x?}"));
        }
        Ok(())
    }
}

impl Pair for Pics {
    type Op = Op;

    fn draw(rng: &mut Rng) -> Op {
        let (i, slot) = (rng.below(IRQS.len()), rng.below(SLOTS));
        let chip = rng.below(2);
        let input = rng.below(8) as u8;
        match rng.below(32) {
            0..4 => Raise(i),
            4..8 => Lower(i),
            8..10 => Bind(slot, i),
            10 => Unbind(slot),
            11..15 => Trigger(slot),
            // OCW1, or whatever the data port awaits: mostly little is masked.
            15..17 => Write(DATA[chip], (rng.next() & rng.next()) as u8),
            17 => Write(DATA[chip], rng.next() as u8),
            // OCW2: non-specific EOIs most of all.
            18..21 => Write(COMMAND[chip], 0x20),
            21 => Write(COMMAND[chip], rng.pick(&[0x00, 0x80, 0xa0, 0x40])),
            22..24 => Write(COMMAND[chip], rng.pick(&[0x60, 0x60, 0xe0, 0xc0]) | input),
            24 => Write(COMMAND[chip], rng.pick(&[0x0a, 0x0b])),
            25 => Write(ELCR[chip], rng.next() as u8),
            // ICW1, with ICW4 or without.
            26 if rng.below(4) == 0 => Write(COMMAND[chip], rng.pick(&[0x11, 0x11, 0x10, 0x19])),
            _ => Acknowledge,
        }
    }

    fn run(&mut self, trace: &[Op], flaws: &mut Flaws) -> Result<(), Difference> {
        self.model = Model::new();
        self.kernel.reset();
        self.sources = [None; SLOTS];
        for (step, &op) in trace.iter().enumerate() {
            let before = self.model.views();
            let outcome = self.apply(op, flaws).and_then(|()| self.compare(op, &before, flaws));
            outcome.map_err(|what| Difference { step, what })?;
        }
        Ok(())
    }
}
