// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What there is: devices, lines, pins, the guest's processor, wires.

/// A device that shares the first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Behind a forwarder: masks itself when it signals, and is lowered by the EOI.
    Card,
    /// Drives its source itself, and lowers it itself: a KVM_IRQ_LINE source on KVM. It answers when it is told.
    Serial,
}

pub const DEVICES: [Device; 2] = [Device::Card, Device::Serial];

/// One of the guest's lines. The serial port stays on the first one; the card is routed between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineId {
    First,
    Second,
}

pub const LINES: [LineId; 2] = [LineId::First, LineId::Second];

/// What a controller does with a level at an unmask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmask {
    /// It looks at the line, as the 8259 and the userspace IOAPIC do.
    Looks,
    /// It samples the line anew, as at an EOI: KVM's IOAPIC since Linux 6.3.
    Asks,
}

/// The rules that are taken away. With the default, none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flaws {
    pub unmask_tells_resamplers_only: bool,
    pub unmask_keeps_contributions: bool,
    pub eoi_does_not_look: bool,
    pub second_line_is_above_the_pins: bool,
    pub tells_before_lowering: bool,
    pub rewires_without_an_unmask: bool,
}

/// The model: what its controller does, and the rules that it breaks.
#[derive(Clone, Copy, Debug)]
pub struct Contract {
    pub unmask: Unmask,
    pub flaws: Flaws,
}

impl Contract {
    pub fn new(unmask: Unmask, flaws: Flaws) -> Self {
        Self { unmask, flaws }
    }
}

/// One step of sampling a line, at an EOI or at an unmask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The controller takes the pending level away.
    Forget,
    /// What an EOI lowers is lowered.
    Lower,
    Tell(Device),
    /// The controller looks at the line again, and sends an interrupt if it is high.
    Look,
}

/// Why a line is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sampling {
    Eoi,
    Unmask,
}

/// A line and its pin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Line {
    /// The contribution of each device.
    pub held: [bool; 2],
    /// The level that the pin knows of.
    pub pending: bool,
    pub masked: bool,
    /// An interrupt has been sent and its EOI has not come: remote IRR.
    pub sent: bool,
    /// The processor has been sent it, and has not taken it.
    pub waits: bool,
    /// The steps that an EOI and an unmask have still to take.
    pub eoi: Vec<Step>,
    pub unmask: Vec<Step>,
    /// The card's contribution is one from before the EOI, and the unmask, that is under way.
    pub stale: [bool; 2],
}

/// Where the card's trigger leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    Relay,
    Irqfd,
}

/// How the card is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wiring {
    /// By the relay. With `hand_over`, the direct wiring follows the EOI of the interrupt that is under way.
    Relay { hand_over: bool },
    /// The device signals the line, and the line's EOI the device.
    Direct,
    /// Between the two: the device signals the relay, which notes and forwards nothing. The interrupt under way stays so.
    Held { to: Wire },
    /// Between two lines: nothing is forwarded, and the line is low.
    Quiesced { to: Wire },
}

/// The card and its wires.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Card {
    /// The device masked itself when it signalled.
    pub masked: bool,
    /// The device has written its trigger, and nobody has looked yet.
    pub signal: Option<Wire>,
    /// The EOI eventfd has been written, and nobody has looked yet.
    pub eoi: bool,
    pub wiring: Wiring,
    pub line: LineId,
    /// The relay has asserted the line, or may inherit an interrupt of the direct wiring.
    pub under_way: bool,
    /// The relay was told of a signal between two wirings.
    pub noted: bool,
}

/// What the guest's processor does. There is one, which does one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Processor {
    Idle,
    /// In the handler of a line: which devices it has still to look at, and whether one of them had a cause.
    Handler {
        line: LineId,
        to_look: [bool; 2],
        found: bool,
    },
    /// Its write to the EOI register is being carried out.
    Eoi(LineId),
}

/// What can come in between. Each does so once in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disturbance {
    /// The guest masks a line.
    Mask,
    /// The guest's driver serves the card without having been interrupted.
    Poll,
    HandOver,
    Route,
}

/// How often the world outside may still act. This bounds the model, and makes every run end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub raises: [u8; 2],
    pub disturbances: u8,
    pub spent: [bool; 4],
}

impl Budget {
    pub fn allows(&self, disturbance: Disturbance) -> bool {
        self.disturbances > 0 && !self.spent[disturbance as usize]
    }

    pub fn spend(&mut self, disturbance: Disturbance) {
        self.disturbances -= 1;
        self.spent[disturbance as usize] = true;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The device has something for the guest.
    pub cause: [bool; 2],
    pub card: Card,
    pub lines: [Line; 2],
    pub processor: Processor,
    pub budget: Budget,
    /// How many handler runs may find nothing: one for each signal that was still under way when the handler served its cause, and
    /// for each interrupt that was taken off its line after it had been sent. Hardware has both.
    pub excused: u8,
    /// Set by a step that broke a claim about steps.
    pub ran_for_nothing: bool,
    pub told_while_stale: bool,
    /// What has happened so far, so that the search cannot pass by being empty.
    pub restated: bool,
}

impl State {
    pub fn new(wiring: Wiring) -> Self {
        Self {
            cause: [false; 2],
            card: Card {
                masked: false,
                signal: None,
                eoi: false,
                wiring,
                line: LineId::First,
                under_way: false,
                noted: false,
            },
            lines: Default::default(),
            processor: Processor::Idle,
            budget: Budget {
                raises: [2, 1],
                disturbances: 2,
                spent: [false; 4],
            },
            excused: 0,
            ran_for_nothing: false,
            told_while_stale: false,
            restated: false,
        }
    }

    pub fn line(&mut self, line: LineId) -> &mut Line {
        &mut self.lines[line as usize]
    }

    /// Whether the device is wired to the line.
    pub fn is_on(&self, device: Device, line: LineId) -> bool {
        match device {
            Device::Card => self.card.line == line,
            Device::Serial => line == LineId::First,
        }
    }
}
