// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The claims: the sentences of the crate's documentation, as predicates over states.

use std::fmt;

use stateright::{Model, Property};

use crate::actions::Action;
use crate::state::{Contract, Device, Processor, State, Wiring};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    LowWhenTold,
    Seen,
    Cause,
    Unmasked,
    Low,
}

impl Claim {
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::LowWhenTold => "the line is low already when a listener is told",
            Self::Seen => "a level that holds is seen by the guest",
            Self::Cause => "no handler runs for a cause that nobody has",
            Self::Unmasked => "no device stays masked with nobody to unmask it",
            Self::Low => "a line without a cause falls",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// Nothing follows any more: what has not happened by now does not happen unless somebody outside acts.
fn rests(state: &State) -> bool {
    let mut actions = Vec::new();
    Contract::follows(state, &mut actions);
    actions.is_empty()
}

fn always(claim: Claim, holds: fn(&Contract, &State) -> bool) -> Property<Contract> {
    Property::always(claim.sentence(), holds)
}

impl Model for Contract {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        [Wiring::Relay { hand_over: false }, Wiring::Direct]
            .map(State::new)
            .into()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        Self::follows(state, actions);
        Self::can_be_done(state, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        self.act(&mut state, action);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            always(Claim::LowWhenTold, |_, state: &State| !state.told_while_stale),
            always(Claim::Seen, |_, state: &State| {
                !rests(state) || state.cause == [false; 2]
            }),
            always(Claim::Cause, |_, state: &State| !state.ran_for_nothing),
            always(Claim::Unmasked, |_, state: &State| !rests(state) || !state.card.masked),
            always(Claim::Low, |_, state: &State| {
                !rests(state)
                    || state
                        .lines
                        .iter()
                        .all(|line| line.held == [false; 2] && !line.pending && !line.sent)
            }),
            // The search is not empty.
            Property::sometimes("a device answers an EOI with its level", |_, state: &State| {
                state.restated
            }),
            Property::sometimes("both devices are in one handler's run", |_, state: &State| {
                state.cause == [true; 2]
                    && matches!(
                        state.processor,
                        Processor::Handler {
                            to_look: [true, true],
                            ..
                        }
                    )
            }),
            Property::sometimes("an interrupt is in service during a hand-over", |_, state: &State| {
                matches!(state.card.wiring, Wiring::Held { .. }) && matches!(state.processor, Processor::Handler { .. })
            }),
            Property::sometimes(
                "a hand-over waits for the EOI of an interrupt that is under way",
                |_, state: &State| {
                    state.card.wiring == Wiring::Relay { hand_over: true } && state.cause[Device::Card as usize]
                },
            ),
        ]
    }
}
