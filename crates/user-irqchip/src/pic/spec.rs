// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The 8259's ports, and the meaning of the words that the guest writes to them.
//!
//! Source: Intel 8259A datasheet, "Programming the 8259A"; the edge/level control registers are the PIIX's (82371
//! datasheet, 4.1.3). Bits for an 8080 processor are ignored, and so is ICW1's level bit, whose place the control
//! registers have taken.

/// One of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// IRQ 0 to 7.
    Master,
    /// IRQ 8 to 15, on the master's IRQ 2.
    Slave,
}

/// The master's input that the slave is connected to.
pub(super) const CASCADE: u8 = 2;
/// The input whose vector the processor gets when there is no request.
pub(super) const SPURIOUS: u8 = 7;

impl Role {
    /// The inputs that can be level-triggered. The others are the timer, the keyboard, the cascade, the clock and the
    /// FPU.
    pub(super) fn elcr_mask(self) -> u8 {
        match self {
            Self::Master => 0xf8,
            Self::Slave => 0xde,
        }
    }
}

/// A register that a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// A0 low: ICW1, OCW2 and OCW3; reads the register that OCW3 has selected.
    Command,
    /// A0 high: ICW2 to ICW4 and OCW1; reads the mask.
    Data,
    /// The edge/level control register: a set bit makes the input level-triggered.
    Elcr,
}

/// The register behind `port`.
pub(super) fn port(port: u16) -> Option<(Role, Register)> {
    Some(match port {
        0x20 => (Role::Master, Register::Command),
        0x21 => (Role::Master, Register::Data),
        0xa0 => (Role::Slave, Register::Command),
        0xa1 => (Role::Slave, Register::Data),
        0x4d0 => (Role::Master, Register::Elcr),
        0x4d1 => (Role::Slave, Register::Elcr),
        _ => return None,
    })
}

/// A word written to the command port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// ICW1: the initialisation begins.
    Icw1 {
        /// ICW4 will follow.
        needs_icw4: bool,
        /// The chip is alone, and ICW3 will not follow.
        single: bool,
    },
    /// OCW2.
    Ocw2(Ocw2),
    /// OCW3.
    Ocw3 {
        /// Sets or clears special mask mode.
        special_mask: Option<bool>,
        /// The next read is a poll.
        poll: bool,
        /// The reads that follow show the inputs in service, or else the requests.
        read_isr: Option<bool>,
    },
}

/// OCW2: the end of an interrupt, or a rotation of the priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ocw2 {
    /// Ends the interrupt of the highest priority in service.
    NonSpecificEoi {
        /// The input then gets the lowest priority.
        rotate: bool,
    },
    /// Ends the interrupt of one input.
    SpecificEoi {
        /// The input.
        input: u8,
        /// The input then gets the lowest priority.
        rotate: bool,
    },
    /// Whether each automatic EOI gives its input the lowest priority.
    RotateOnAutoEoi(bool),
    /// Gives an input the lowest priority.
    SetPriority {
        /// The input.
        input: u8,
    },
    /// Nothing.
    NoOperation,
}

impl Command {
    /// The meaning of a byte that is written to the command port.
    pub(super) fn decode(value: u8) -> Self {
        let bit = |n: u8| value & 1 << n != 0;
        if bit(4) {
            return Self::Icw1 {
                needs_icw4: bit(0),
                single: bit(1),
            };
        }
        if bit(3) {
            return Self::Ocw3 {
                special_mask: bit(6).then_some(bit(5)),
                poll: bit(2),
                read_isr: bit(1).then_some(bit(0)),
            };
        }
        let input = value & 0b111;
        Self::Ocw2(match value >> 5 {
            0b000 => Ocw2::RotateOnAutoEoi(false),
            0b100 => Ocw2::RotateOnAutoEoi(true),
            0b001 => Ocw2::NonSpecificEoi { rotate: false },
            0b101 => Ocw2::NonSpecificEoi { rotate: true },
            0b011 => Ocw2::SpecificEoi { input, rotate: false },
            0b111 => Ocw2::SpecificEoi { input, rotate: true },
            0b110 => Ocw2::SetPriority { input },
            _ => Ocw2::NoOperation,
        })
    }
}

/// The vector of input 0 in an ICW2: its upper five bits.
pub(super) fn vector_base(icw2: u8) -> u8 {
    icw2 & 0xf8
}

/// ICW4: interrupts end as they are acknowledged.
pub(super) fn is_auto_eoi(icw4: u8) -> bool {
    icw4 & 1 << 1 != 0
}

/// ICW4: the cascade does not hold back higher inputs of the slave while it is in service.
pub(super) fn is_special_fully_nested(icw4: u8) -> bool {
    icw4 & 1 << 4 != 0
}
