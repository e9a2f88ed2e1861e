// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's side: pins, the sampling of a line, the handler.

use crate::state::{Contract, Device, Line, LineId, Processor, Sampling, State, Step, Unmask};

impl Line {
    /// A source states its level: the wired-OR is driven onto the pin.
    pub fn state_level(&mut self, device: Device, high: bool) {
        self.held[device as usize] = high;
        if device == Device::Card {
            self.stale = [false; 2];
        }
        self.drive();
    }

    fn drive(&mut self) {
        self.pending = self.held.contains(&true);
        self.look();
    }

    fn look(&mut self) {
        if self.pending && !self.masked && !self.sent {
            (self.sent, self.waits) = (true, true);
        }
    }
}

impl Contract {
    /// The steps that a controller takes, last one first.
    fn steps(&self, why: Sampling, line: LineId) -> Vec<Step> {
        use Step::{Forget, Look, Lower, Tell};
        let (card, serial) = (Tell(Device::Card), Tell(Device::Serial));
        let flaws = &self.flaws;
        let mut steps = match why {
            Sampling::Eoi if flaws.second_line_is_above_the_pins && line == LineId::Second => return Vec::new(),
            Sampling::Eoi if flaws.tells_before_lowering => vec![card, serial, Lower, Look],
            Sampling::Eoi if flaws.eoi_does_not_look => vec![Lower, card, serial],
            Sampling::Eoi => vec![Lower, card, serial, Look],
            Sampling::Unmask => match self.unmask {
                Unmask::Looks => vec![Look],
                Unmask::Asks if flaws.unmask_tells_resamplers_only => vec![Forget, card],
                Unmask::Asks if flaws.unmask_keeps_contributions => vec![Forget, card, serial],
                Unmask::Asks => vec![Forget, Lower, card, serial, Look],
            },
        };
        steps.reverse();
        steps
    }

    /// The guest writes the EOI register: the handler is over.
    pub fn begin_eoi(&self, state: &mut State, line: LineId) {
        if let Processor::Handler { found: false, .. } = state.processor {
            match state.excused.checked_sub(1) {
                Some(left) => state.excused = left,
                None => state.ran_for_nothing = true,
            }
        }
        state.processor = Processor::Eoi(line);
        let steps = self.steps(Sampling::Eoi, line);
        let line = state.line(line);
        line.stale[Sampling::Eoi as usize] = line.held[Device::Card as usize];
        line.eoi = steps;
    }

    pub fn begin_unmask(&self, state: &mut State, line: LineId) {
        let steps = self.steps(Sampling::Unmask, line);
        let line = state.line(line);
        line.masked = false;
        // While an interrupt is in service nothing is to be done before its EOI.
        if !line.sent && line.pending {
            line.stale[Sampling::Unmask as usize] = line.held[Device::Card as usize];
            line.unmask = steps;
        }
    }

    /// Takes the next step of sampling a line.
    pub fn sample(&self, state: &mut State, line: LineId, why: Sampling) {
        let taken = match why {
            Sampling::Eoi => &mut state.line(line).eoi,
            Sampling::Unmask => &mut state.line(line).unmask,
        };
        match taken.pop() {
            None => {}
            Some(Step::Forget) => state.line(line).pending = false,
            Some(Step::Lower) => state.line(line).state_level(Device::Card, false),
            Some(Step::Look) => {
                let line = state.line(line);
                if why == Sampling::Eoi {
                    line.sent = false;
                }
                line.look();
            }
            Some(Step::Tell(device)) => tell(state, line, device, why),
        }
        let eoi_is_over = state.line(line).eoi.is_empty();
        if why == Sampling::Eoi && eoi_is_over && state.processor == Processor::Eoi(line) {
            // Also when the controller does not look again.
            if self.flaws.eoi_does_not_look {
                state.line(line).sent = false;
            }
            state.processor = Processor::Idle;
        }
    }
}

/// Being told means "state your level now".
fn tell(state: &mut State, line: LineId, device: Device, why: Sampling) {
    if !state.is_on(device, line) {
        return;
    }
    match device {
        Device::Card => {
            state.told_while_stale |= state.line(line).stale[why as usize];
            state.card.eoi = true;
        }
        Device::Serial => {
            let high = state.cause[Device::Serial as usize];
            state.restated |= high;
            state.line(line).state_level(Device::Serial, high);
        }
    }
}

/// The driver looks at the card without having been interrupted, and serves it.
pub fn poll_card(contract: &Contract, state: &mut State) {
    let here = state.card.line;
    state.cause[Device::Card as usize] = false;
    let line = state.line(here);
    // What has been sent is taken. What waits behind a mask is sent at the unmask, unless the controller asks.
    let comes = line.waits || line.held[Device::Card as usize] && contract.unmask == Unmask::Looks;
    state.excused += u8::from(comes) + u8::from(state.card.signal.is_some());
}

/// The handler looks at a device and serves it.
pub fn look_at(state: &mut State, line: LineId, device: Device) {
    let served = std::mem::take(&mut state.cause[device as usize]);
    if let Processor::Handler { to_look, found, .. } = &mut state.processor {
        to_look[device as usize] = false;
        *found |= served;
    }
    match device {
        // A signal that is not on this line yet will come for nothing.
        Device::Card => state.excused += u8::from(served && (state.card.signal.is_some() || state.card.line != line)),
        Device::Serial => state.line(line).state_level(Device::Serial, false),
    }
}
