// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can happen next, in any order.

use std::fmt;

use crate::guest::{look_at, poll_card};
use crate::state::{Contract, DEVICES, Device, Disturbance, LINES, LineId, Processor, Sampling, State, Step, Wiring};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    // What the world outside does, as often as its budget allows.
    Raise(Device),
    Mask(LineId),
    Poll,
    HandOver,
    Route,
    // What follows by itself, sooner or later.
    Unmask(LineId),
    Accept(LineId),
    LookAt(Device, LineId),
    Eoi(LineId),
    Sample(LineId, Sampling, Step),
    TakeSignal,
    TakeEoi,
    Rewire,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raise(device) => write!(f, "the {device:?} gets a cause"),
            Self::Mask(line) => write!(f, "the guest masks the {line:?} line"),
            Self::Poll => f.write_str("the guest's driver polls the Card"),
            Self::HandOver => f.write_str("a hand-over of the Card begins"),
            Self::Route => f.write_str("the Card is taken off its line, to be routed to the other"),
            Self::Unmask(line) => write!(f, "the guest unmasks the {line:?} line"),
            Self::Accept(line) => write!(f, "the guest's handler of the {line:?} line starts"),
            Self::LookAt(device, _) => write!(f, "the handler looks at the {device:?}"),
            Self::Eoi(line) => write!(f, "the guest ends the interrupt of the {line:?} line"),
            Self::Sample(line, why, step) => write!(f, "{why:?} of the {line:?} line: {step}"),
            Self::TakeSignal => f.write_str("the Card's trigger is read"),
            Self::TakeEoi => f.write_str("the Card's EOI eventfd is read"),
            Self::Rewire => f.write_str("the Card's change of wiring ends"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forget => f.write_str("the controller takes the pending level away"),
            Self::Lower => f.write_str("the contributions that an EOI lowers are lowered"),
            Self::Tell(device) => write!(f, "the {device:?} is told"),
            Self::Look => f.write_str("the controller looks at the line again"),
        }
    }
}

impl Contract {
    /// What follows without anybody outside.
    pub fn follows(state: &State, actions: &mut Vec<Action>) {
        for line in LINES {
            let here = &state.lines[line as usize];
            if here.masked && here.unmask.is_empty() {
                actions.push(Action::Unmask(line));
            }
            let eoi = here.eoi.last().map(|step| Action::Sample(line, Sampling::Eoi, *step));
            let unmask = here
                .unmask
                .last()
                .map(|step| Action::Sample(line, Sampling::Unmask, *step));
            actions.extend(eoi.into_iter().chain(unmask));
        }
        match state.processor {
            Processor::Idle => {
                let waits = |line: &LineId| state.lines[*line as usize].waits;
                actions.extend(LINES.into_iter().filter(waits).map(Action::Accept));
            }
            Processor::Handler { line, to_look, .. } => {
                match DEVICES.into_iter().find(|device| to_look[*device as usize]) {
                    Some(device) => actions.push(Action::LookAt(device, line)),
                    None => actions.push(Action::Eoi(line)),
                }
            }
            Processor::Eoi(_) => {}
        }
        if state.card.signal.is_some() {
            actions.push(Action::TakeSignal);
        }
        if state.hears_eoi() {
            actions.push(Action::TakeEoi);
        }
        if matches!(state.card.wiring, Wiring::Held { .. } | Wiring::Quiesced { .. }) {
            actions.push(Action::Rewire);
        }
    }

    /// What the world outside can do.
    pub fn can_be_done(state: &State, actions: &mut Vec<Action>) {
        for device in DEVICES {
            if state.budget.raises[device as usize] > 0 && !state.cause[device as usize] {
                actions.push(Action::Raise(device));
            }
        }
        for line in LINES {
            let here = &state.lines[line as usize];
            if state.budget.allows(Disturbance::Mask) && !here.masked && here.unmask.is_empty() {
                actions.push(Action::Mask(line));
            }
        }
        // On the only processor, and not within a handler.
        let idle = state.processor == Processor::Idle;
        if idle && state.budget.allows(Disturbance::Poll) && state.cause[Device::Card as usize] {
            actions.push(Action::Poll);
        }
        if let Wiring::Relay { hand_over: false } | Wiring::Direct = state.card.wiring {
            if state.budget.allows(Disturbance::HandOver) {
                actions.push(Action::HandOver);
            }
            if state.budget.allows(Disturbance::Route) {
                actions.push(Action::Route);
            }
        }
    }

    pub fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Raise(device) => {
                state.budget.raises[device as usize] -= 1;
                match device {
                    Device::Card => state.raise_card(),
                    Device::Serial => {
                        state.cause[Device::Serial as usize] = true;
                        state.line(LineId::First).state_level(Device::Serial, true);
                    }
                }
            }
            Action::Mask(line) => {
                state.budget.spend(Disturbance::Mask);
                state.line(line).masked = true;
            }
            Action::Poll => {
                state.budget.spend(Disturbance::Poll);
                poll_card(self, state);
            }
            Action::HandOver => {
                state.budget.spend(Disturbance::HandOver);
                state.begin_hand_over();
            }
            Action::Route => {
                state.budget.spend(Disturbance::Route);
                state.park();
            }
            Action::Unmask(line) => self.begin_unmask(state, line),
            Action::Accept(line) => {
                state.line(line).waits = false;
                let to_look = DEVICES.map(|device| state.is_on(device, line));
                state.processor = Processor::Handler {
                    line,
                    to_look,
                    found: false,
                };
            }
            Action::LookAt(device, line) => look_at(state, line, device),
            Action::Eoi(line) => {
                self.begin_eoi(state, line);
                if state.line(line).eoi.is_empty() {
                    state.processor = Processor::Idle;
                }
            }
            Action::Sample(line, why, _) => self.sample(state, line, why),
            Action::TakeSignal => state.take_signal(),
            Action::TakeEoi => state.take_eoi(),
            Action::Rewire => self.rewire(state),
        }
    }
}
