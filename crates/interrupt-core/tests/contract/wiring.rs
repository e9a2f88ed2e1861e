// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The forwarder's side: the card's mask, the relay, the direct wiring, and the changes between them.

use crate::state::{Contract, Device, LineId, State, Wire, Wiring};

impl State {
    fn trigger(&self) -> Wire {
        match self.card.wiring {
            Wiring::Direct => Wire::Irqfd,
            Wiring::Relay { .. } | Wiring::Held { .. } | Wiring::Quiesced { .. } => Wire::Relay,
        }
    }

    /// The card has a new cause.
    pub fn raise_card(&mut self) {
        self.cause[Device::Card as usize] = true;
        if !self.card.masked {
            self.signal();
        }
    }

    fn signal(&mut self) {
        self.card.masked = true;
        self.card.signal = Some(self.trigger());
    }

    /// With its cause still there the card signals again and stays masked.
    fn unmask_card(&mut self) {
        if !self.card.masked {
            return;
        }
        self.card.masked = false;
        if self.cause[Device::Card as usize] {
            self.restated = true;
            self.signal();
        }
    }

    /// Whoever watches the trigger takes its signal.
    pub fn take_signal(&mut self) {
        let signal = self.card.signal.take();
        match (signal, self.card.wiring) {
            (Some(Wire::Irqfd), _) => {
                let line = self.card.line;
                self.line(line).state_level(Device::Card, true);
            }
            (Some(Wire::Relay), Wiring::Relay { .. }) => {
                self.card.under_way = true;
                let line = self.card.line;
                self.line(line).state_level(Device::Card, true);
            }
            (Some(Wire::Relay), Wiring::Held { .. }) => self.card.noted = true,
            // Dropped: the last step is an unmask.
            (Some(Wire::Relay), _) | (None, _) => {}
        }
    }

    /// Whether somebody looks at the EOI eventfd.
    pub fn hears_eoi(&self) -> bool {
        self.card.eoi && matches!(self.card.wiring, Wiring::Relay { .. } | Wiring::Direct)
    }

    pub fn take_eoi(&mut self) {
        self.card.eoi = false;
        match self.card.wiring {
            Wiring::Direct => self.unmask_card(),
            Wiring::Relay { hand_over } if self.card.under_way => {
                self.card.under_way = false;
                let line = self.card.line;
                self.line(line).state_level(Device::Card, false);
                match hand_over {
                    true => self.card.wiring = Wiring::Held { to: Wire::Irqfd },
                    false => self.unmask_card(),
                }
            }
            // Another's interrupt has ended.
            Wiring::Relay { .. } | Wiring::Held { .. } | Wiring::Quiesced { .. } => {}
        }
    }

    /// Begins a hand-over on one line. The interrupt that is under way stays so.
    pub fn begin_hand_over(&mut self) {
        self.card.wiring = match self.card.wiring {
            Wiring::Relay { .. } if self.card.under_way => Wiring::Relay { hand_over: true },
            Wiring::Relay { .. } => Wiring::Held { to: Wire::Irqfd },
            _ => Wiring::Held { to: Wire::Relay },
        };
    }

    /// Takes the card off its line: its contribution goes, and so does what is under way through the old wires.
    pub fn park(&mut self) {
        let line = self.card.line;
        // A handler that was sent for finds nothing there.
        let serial = line == LineId::First && self.cause[Device::Serial as usize];
        self.excused += u8::from(self.line(line).waits && !serial);
        let to = match self.card.wiring {
            Wiring::Direct => Wire::Irqfd,
            _ => Wire::Relay,
        };
        self.card.wiring = Wiring::Quiesced { to };
        (self.card.masked, self.card.under_way, self.card.signal) = (true, false, None);
        self.line(line).state_level(Device::Card, false);
    }
}

impl Contract {
    /// Ends a change of wiring.
    pub fn rewire(&self, state: &mut State) {
        match state.card.wiring {
            Wiring::Held { to: Wire::Relay } => {
                // The EOI of an interrupt that the direct wiring brought unmasks the card too, also if it has come already.
                state.card.under_way = true;
                state.card.wiring = Wiring::Relay { hand_over: false };
                // What the device signalled meanwhile has not been on the line.
                let unread = state.card.signal.take_if(|wire| *wire == Wire::Relay).is_some();
                if std::mem::take(&mut state.card.noted) || unread {
                    self.last_step(state);
                }
            }
            Wiring::Held { to: Wire::Irqfd } => {
                state.card.wiring = Wiring::Direct;
                (state.card.masked, state.card.signal) = (true, None);
                (state.card.eoi, state.card.noted) = (false, false);
                self.last_step(state);
            }
            Wiring::Quiesced { to } => {
                state.card.line = match state.card.line {
                    LineId::First => LineId::Second,
                    LineId::Second => LineId::First,
                };
                state.card.wiring = match to {
                    Wire::Relay => Wiring::Relay { hand_over: false },
                    Wire::Irqfd => Wiring::Direct,
                };
                state.card.eoi = false;
                self.last_step(state);
            }
            Wiring::Relay { .. } | Wiring::Direct => {}
        }
    }

    fn last_step(&self, state: &mut State) {
        if !self.flaws.rewires_without_an_unmask {
            state.unmask_card();
        }
    }
}
