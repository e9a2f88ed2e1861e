// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One 8259: its inputs, its priorities, and the decision to ask for the processor.
//!
//! Nothing here calls out. What an EOI ends is returned as a set of inputs, and told by the pair without a lock.

use super::regs::{self, CASCADE, Command, Ocw2, Role, SPURIOUS};

/// The words that the chip waits for at its data port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Awaits {
    /// OCW1: the initialisation is over.
    #[default]
    Mask,
    /// ICW2.
    Icw2,
    /// ICW3.
    Icw3,
    /// ICW4.
    Icw4,
}

/// The state of one chip. Sets of inputs have bit *n* for input *n*.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SavedChip {
    /// Inputs that were high.
    pub high: u8,
    /// Inputs whose rise has not been acknowledged yet.
    pub edges: u8,
    /// Inputs in service.
    pub isr: u8,
    /// Inputs that are masked.
    pub imr: u8,
    /// Inputs that are level-triggered.
    pub elcr: u8,
    /// The input with the highest priority, 0 to 7; the others follow upwards, and round.
    pub highest: u8,
    /// The vector of input 0.
    pub base: u8,
    /// What the data port awaits.
    pub awaits: Awaits,
    /// ICW1 said that ICW4 follows.
    pub needs_icw4: bool,
    /// ICW1 said that ICW3 does not follow.
    pub single: bool,
    /// Interrupts end as they are acknowledged.
    pub auto_eoi: bool,
    /// Each automatic EOI rotates the priorities.
    pub rotate_on_auto_eoi: bool,
    /// What is masked holds nothing back, in service or not.
    pub special_mask: bool,
    /// The cascade holds nothing of the slave back.
    pub special_fully_nested: bool,
    /// The command port reads the inputs in service, and not the requests.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
}

/// One 8259.
#[derive(Debug)]
pub(super) struct Chip {
    role: Role,
    state: SavedChip,
    /// Inputs whose level comes from a saved state, and which no source has driven since.
    restored: u8,
}

fn bit(input: u8) -> u8 {
    1 << (input & 7)
}

impl SavedChip {
    /// After power-on: nothing masked, as 8259s are until they are initialised.
    pub(super) const RESET: Self = Self {
        high: 0,
        edges: 0,
        isr: 0,
        imr: 0,
        elcr: 0,
        highest: 0,
        base: 0,
        awaits: Awaits::Mask,
        needs_icw4: false,
        single: false,
        auto_eoi: false,
        rotate_on_auto_eoi: false,
        special_mask: false,
        special_fully_nested: false,
        read_isr: false,
        poll: false,
    };

    /// Inputs that ask for an interrupt: an edge until it is acknowledged, a level as long as it lasts.
    fn irr(&self) -> u8 {
        self.edges & !self.elcr | self.high & self.elcr
    }

    /// Of these inputs, the one with the highest priority.
    fn first_of(&self, inputs: u8) -> Option<u8> {
        let turned = inputs.rotate_right(self.highest.into());
        (turned != 0).then(|| (turned.trailing_zeros() as u8 + self.highest) & 7)
    }

    /// How far an input is from the highest priority.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.highest) & 7
    }
}

impl Chip {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            state: SavedChip::RESET,
            restored: 0,
        }
    }

    /// The one place that decides whether the chip asks for the processor, and for which input: the highest that asks and is
    /// not masked, unless one of the same or a higher priority is in service.
    pub(super) fn request(&self) -> Option<u8> {
        let state = &self.state;
        let input = state.first_of(state.irr() & !state.imr)?;
        let mut holding = state.isr;
        if state.special_mask {
            holding &= !state.imr;
        }
        if state.special_fully_nested && self.role == Role::Master {
            holding &= !bit(CASCADE);
        }
        match state.first_of(holding) {
            Some(in_service) if state.rank(in_service) <= state.rank(input) => None,
            _ => Some(input),
        }
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.state.base | input & 7
    }

    /// The input has this level now. Whether that is a new request; a masked one is none.
    pub(super) fn drive(&mut self, input: u8, high: bool) -> Driven {
        let input = bit(input);
        let state = &mut self.state;
        self.restored &= !input;
        if !high {
            // An edge that has been seen stays.
            state.high &= !input;
            return Driven::Nothing;
        }
        let asked = state.irr() & input != 0;
        if state.high & input == 0 && state.elcr & input == 0 {
            state.edges |= input;
        }
        state.high |= input;
        if state.imr & input != 0 {
            Driven::Masked
        } else if asked || state.irr() & input == 0 {
            Driven::Nothing
        } else {
            Driven::Asks
        }
    }

    /// The slave asks for the processor, or still does. The master latches that like an edge: when the slave has nothing to
    /// ask for any more by the time it is acknowledged, the processor gets the slave's spurious interrupt.
    pub(super) fn latch_cascade(&mut self) {
        self.state.edges |= bit(CASCADE);
    }

    /// The slave was polled: what the cascade has latched of it is answered.
    pub(super) fn unlatch_cascade(&mut self) {
        self.state.edges &= !bit(CASCADE);
    }

    /// The processor acknowledges this input's request. Returns what ends with that.
    pub(super) fn acknowledge(&mut self, input: u8) -> u8 {
        let state = &mut self.state;
        state.edges &= !bit(input);
        state.isr |= bit(input);
        if !state.auto_eoi {
            return 0;
        }
        let rotate = state.rotate_on_auto_eoi;
        self.end(input, rotate)
    }

    /// An interrupt has ended. Its input is to be told of that, and [`settled`](Self::settled) then.
    fn end(&mut self, input: u8, rotate: bool) -> u8 {
        self.state.isr &= !bit(input);
        if rotate {
            self.give_lowest(input);
        }
        bit(input)
    }

    fn give_lowest(&mut self, input: u8) {
        self.state.highest = (input + 1) & 7;
    }

    /// These inputs' sources have been asked for their level. A level that was restored, and that none stands by, is gone.
    pub(super) fn settled(&mut self, inputs: u8) {
        self.state.high &= !(self.restored & inputs);
        self.restored &= !inputs;
    }

    /// The guest writes the command port. Returns what ends with that.
    pub(super) fn write_command(&mut self, value: u8) -> u8 {
        match Command::decode(value) {
            Command::Icw1 { needs_icw4, single } => self.initialise(needs_icw4, single),
            Command::Ocw2(command) => self.write_ocw2(command),
            Command::Ocw3 {
                special_mask,
                poll,
                read_isr,
            } => {
                let state = &mut self.state;
                state.special_mask = special_mask.unwrap_or(state.special_mask);
                state.read_isr = read_isr.unwrap_or(state.read_isr);
                state.poll |= poll;
                0
            }
        }
    }

    /// ICW1. Edges that wait are dropped, and their sources told, so that one with a cause makes a new edge. Interrupts in
    /// service stay so otherwise, as with KVM's 8259.
    fn initialise(&mut self, needs_icw4: bool, single: bool) -> u8 {
        let state = &mut self.state;
        let dropped = state.edges & !state.elcr;
        // Spelled out, so that a new field is decided on. The high inputs stay: an edge takes a new rise.
        let SavedChip {
            high: _,
            edges,
            isr,
            imr,
            elcr: _,
            highest,
            base: _,
            awaits,
            needs_icw4: icw4_follows,
            single: is_single,
            auto_eoi,
            rotate_on_auto_eoi: _,
            special_mask,
            special_fully_nested,
            read_isr,
            poll,
        } = state;
        *edges = 0;
        *isr &= !dropped;
        *imr = 0;
        *highest = 0;
        *awaits = Awaits::Icw2;
        *icw4_follows = needs_icw4;
        *is_single = single;
        *special_mask = false;
        *read_isr = false;
        *poll = false;
        if !needs_icw4 {
            *auto_eoi = false;
            *special_fully_nested = false;
        }
        dropped
    }

    fn write_ocw2(&mut self, command: Ocw2) -> u8 {
        let state = &mut self.state;
        match command {
            Ocw2::NonSpecificEoi { rotate } => {
                // In special mask mode, what is masked is not the processor's to end without a name.
                let masked = if state.special_mask { state.imr } else { 0 };
                match state.first_of(state.isr & !masked) {
                    Some(input) => self.end(input, rotate),
                    None => 0,
                }
            }
            Ocw2::SpecificEoi { input, rotate } => self.end(input, rotate),
            Ocw2::RotateOnAutoEoi(rotate) => {
                state.rotate_on_auto_eoi = rotate;
                0
            }
            Ocw2::SetPriority { input } => {
                self.give_lowest(input);
                0
            }
            Ocw2::NoOperation => 0,
        }
    }

    /// The guest writes the data port.
    pub(super) fn write_data(&mut self, value: u8) {
        let state = &mut self.state;
        let last = if state.needs_icw4 { Awaits::Icw4 } else { Awaits::Mask };
        match state.awaits {
            Awaits::Mask => state.imr = value,
            Awaits::Icw2 => {
                state.base = regs::vector_base(value);
                state.awaits = if state.single { last } else { Awaits::Icw3 };
            }
            // The slave is on input 2, whatever the guest thinks.
            Awaits::Icw3 => state.awaits = last,
            Awaits::Icw4 => {
                state.auto_eoi = regs::is_auto_eoi(value);
                state.special_fully_nested = regs::is_special_fully_nested(value);
                state.awaits = Awaits::Mask;
            }
        }
    }

    /// The guest writes the edge/level control register. An input that changes asks by its level from now on, or by its next
    /// rise.
    pub(super) fn write_elcr(&mut self, value: u8) {
        let elcr = value & self.role.elcr_mask();
        self.state.edges &= !(self.state.elcr ^ elcr);
        self.state.elcr = elcr;
    }

    pub(super) fn read_elcr(&self) -> u8 {
        self.state.elcr
    }

    /// Whether the read that comes is a poll. It is one once.
    pub(super) fn takes_poll(&mut self) -> bool {
        std::mem::take(&mut self.state.poll)
    }

    pub(super) fn read_command(&self) -> u8 {
        if self.state.read_isr {
            self.state.isr
        } else {
            self.state.irr()
        }
    }

    pub(super) fn read_data(&self) -> u8 {
        self.state.imr
    }

    pub(super) fn save(&self) -> SavedChip {
        // Spelled out, so that a new field is decided on. Any saved level counts as restored.
        let Self {
            role: _,
            state,
            restored: _,
        } = self;
        state.clone()
    }

    pub(super) fn restore(&mut self, state: &SavedChip) {
        *self = Self {
            role: self.role,
            state: state.clone(),
            restored: u8::MAX,
        };
    }
}

/// What a driven input came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driven {
    /// A new request.
    Asks,
    /// The input is masked.
    Masked,
    /// Nothing new.
    Nothing,
}

/// What a poll reads, and what ends with it.
pub(super) fn poll(chip: &mut Chip) -> (u8, u8) {
    const INTERRUPT: u8 = 1 << 7;
    match chip.request() {
        Some(input) => (INTERRUPT | input, chip.acknowledge(input)),
        None => (SPURIOUS, 0),
    }
}
