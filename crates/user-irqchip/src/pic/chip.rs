// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One 8259: its inputs, its priorities, and the decision to request an interrupt.
//!
//! The chip calls no callback. An EOI returns the inputs that it ends, and the pair tells their listeners without a
//! lock.

use super::saved::{Awaits, SavedChip};
use super::spec::{self, CASCADE, Command, Ocw2, Role, SPURIOUS};

/// One 8259.
#[derive(Debug)]
pub(super) struct Chip {
    role: Role,
    state: SavedChip,
}

fn bit(input: u8) -> u8 {
    1 << (input & 7)
}

impl SavedChip {
    /// Inputs that ask for an interrupt: an edge until it is acknowledged, a level as long as it lasts.
    fn irr(&self) -> u8 {
        self.edges & !self.elcr | self.high & self.elcr
    }
}

/// The distance of the first of these inputs from input `highest`, which has the highest priority; 8 if the set is
/// empty.
fn rank(inputs: u8, highest: u8) -> u32 {
    inputs.rotate_right(highest.into()).trailing_zeros()
}

/// The input at this distance from the highest priority.
fn at_rank(rank: u32, highest: u8) -> u8 {
    (rank as u8).wrapping_add(highest) & 7
}

/// The priority resolver: of the inputs that ask, the one with the highest priority, unless an input of the same or a
/// higher priority holds it back.
fn resolve(asking: u8, holding: u8, highest: u8) -> Option<u8> {
    let first = rank(asking, highest);
    (first < rank(holding, highest)).then(|| at_rank(first, highest))
}

impl Chip {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            state: SavedChip::RESET,
        }
    }

    /// Decides whether the chip requests an interrupt, and for which input; no other code does.
    pub(super) fn request(&self) -> Option<u8> {
        let asking = self.asking();
        if asking == 0 {
            // As the resolver says, and most often so for a slave.
            return None;
        }
        resolve(asking, self.holding(), self.state.highest)
    }

    fn asking(&self) -> u8 {
        self.state.irr() & !self.state.imr
    }

    /// The inputs in service that hold back inputs of the same or a lower priority.
    fn holding(&self) -> u8 {
        let state = &self.state;
        let mut holding = state.isr;
        if state.special_mask {
            holding &= !state.imr;
        }
        if state.special_fully_nested && self.role == Role::Master {
            holding &= !bit(CASCADE);
        }
        holding
    }

    /// The input that a non-specific EOI ends: the input in service with the highest priority. In special mask mode
    /// only a specific EOI ends a masked input in service.
    fn first_in_service(&self) -> Option<u8> {
        let state = &self.state;
        let masked = if state.special_mask { state.imr } else { 0 };
        let first = rank(state.isr & !masked, state.highest);
        (first < 8).then(|| at_rank(first, state.highest))
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.state.base | input & 7
    }

    /// The input has this level now. Returns whether this is a new request; a masked input makes none.
    pub(super) fn drive(&mut self, input: u8, high: bool) -> Driven {
        let input = bit(input);
        let state = &mut self.state;
        if !high {
            // A latched edge stays.
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

    /// The slave requests an interrupt, or still does. The master latches the request like an edge: if the slave has no
    /// request any more at the acknowledge cycle, the processor gets the slave's spurious interrupt.
    pub(super) fn latch_cascade(&mut self) {
        self.state.edges |= bit(CASCADE);
    }

    /// The slave was polled, which answers the slave's request that the cascade has latched.
    pub(super) fn unlatch_cascade(&mut self) {
        self.state.edges &= !bit(CASCADE);
    }

    /// The processor acknowledges this input's request. Returns the interrupts that end with it.
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

    /// An interrupt has ended. Its listeners are to be told.
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

    /// The guest writes the command port. Returns the interrupts that end with the write.
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

    /// ICW1. Waiting edges are dropped, and their sources are told, so that a source with a cause makes a new edge. The
    /// other inputs in service stay in service, as on KVM's 8259.
    fn initialise(&mut self, needs_icw4: bool, single: bool) -> u8 {
        let state = &mut self.state;
        let dropped = state.edges & !state.elcr;
        // Every field is listed, so that a new field needs a decision here. The high inputs stay: an edge needs a new
        // rise.
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
        match command {
            Ocw2::NonSpecificEoi { rotate } => self.first_in_service().map_or(0, |input| self.end(input, rotate)),
            Ocw2::SpecificEoi { input, rotate } => self.end(input, rotate),
            Ocw2::RotateOnAutoEoi(rotate) => {
                self.state.rotate_on_auto_eoi = rotate;
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
                state.base = spec::vector_base(value);
                state.awaits = if state.single { last } else { Awaits::Icw3 };
            }
            // The slave is on input 2, whatever the guest writes.
            Awaits::Icw3 => state.awaits = last,
            Awaits::Icw4 => {
                state.auto_eoi = spec::is_auto_eoi(value);
                state.special_fully_nested = spec::is_special_fully_nested(value);
                state.awaits = Awaits::Mask;
            }
        }
    }

    /// The guest writes the edge/level control register. A changed input makes requests by its level from now on, or by
    /// its next rise.
    pub(super) fn write_elcr(&mut self, value: u8) {
        let elcr = value & self.role.elcr_mask();
        self.state.edges &= !(self.state.elcr ^ elcr);
        self.state.elcr = elcr;
    }

    pub(super) fn read_elcr(&self) -> u8 {
        self.state.elcr
    }

    /// Whether the next read is a poll. Clears the poll, which lasts for one read.
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
        self.state.clone()
    }

    pub(super) fn restore(&mut self, state: &SavedChip) {
        self.state = state.clone();
    }
}

/// The result of driving an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driven {
    /// A new request.
    Asks,
    /// The input is masked.
    Masked,
    /// Nothing new.
    Nothing,
}

/// The value that a poll reads, and the interrupts that end with the poll.
pub(super) fn poll(chip: &mut Chip) -> (u8, u8) {
    const INTERRUPT: u8 = 1 << 7;
    match chip.request() {
        Some(input) => (INTERRUPT | input, chip.acknowledge(input)),
        None => (SPURIOUS, 0),
    }
}

#[cfg(test)]
#[path = "../../tests/whole_space/pic.rs"]
mod whole_space;
