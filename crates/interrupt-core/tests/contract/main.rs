// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The contract of an EOI ("What an EOI is" in the crate's documentation) as a model, checked in every reachable state.
//!
//! One device behind a forwarder and one device that states its level itself share a guest's line. The model has the line, the
//! controller's pin, the guest's handler, the relay, the direct wiring, and two lines to route between; it takes every order
//! of the steps. With the rules of the contract each [`properties::Claim`] holds in every state. [`Flaws`] takes one rule away,
//! as a known implementation does, and the checker finds the shortest run that breaks a claim; each such test prints the run.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod actions;
mod guest;
mod properties;
mod state;
mod wiring;

use std::collections::HashMap;

use stateright::{Checker, Model};

use properties::Claim;
use state::{Contract, Flaws, State, Unmask};

/// Takes one rule away, and expects that `claim` is broken by that. Prints one of the shortest runs that do.
#[track_caller]
fn breaks(flaw: &str, claim: Claim, contract: Contract) {
    for depth in 1.. {
        let checker = contract.checker().target_max_depth(depth).spawn_bfs().join();
        if let Some(run) = checker.discovery(claim.sentence()) {
            println!("{flaw}: \"{claim}\" is broken by");
            return run.into_actions().iter().for_each(|action| println!("  {action}"));
        }
        assert_eq!(checker.max_depth(), depth, "{flaw}: nothing breaks \"{claim}\"");
    }
}

/// Explores every state, in which each claim is to hold.
#[track_caller]
fn holds(contract: Contract) {
    let checker = contract.checker().spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.is_done());
    assert_no_circle(&contract);
    println!(
        "{} states, longest way to one {} steps",
        checker.unique_state_count(),
        checker.max_depth()
    );
}

/// Every run comes to rest: the world outside acts a bounded number of times, and no circle of steps goes on without it.
#[track_caller]
fn assert_no_circle(contract: &Contract) {
    let mut left = HashMap::new();
    let mut way: Vec<(State, Vec<State>)> = Vec::new();
    let enter = |way: &mut Vec<_>, left: &mut HashMap<State, bool>, state: State| match left.get(&state) {
        Some(true) => {}
        Some(false) => panic!("a circle of steps through {state:?}"),
        None => {
            left.insert(state.clone(), false);
            let next = contract.next_states(&state);
            way.push((state, next));
        }
    };
    for state in contract.init_states() {
        enter(&mut way, &mut left, state);
    }
    while let Some((state, next)) = way.last_mut() {
        match next.pop() {
            Some(next) => enter(&mut way, &mut left, next),
            None => {
                left.insert(state.clone(), true);
                way.pop();
            }
        }
    }
}

#[test]
fn every_claim_holds_with_a_controller_that_looks_at_an_unmask() {
    holds(Contract::new(Unmask::Looks, Flaws::default()));
}

#[test]
fn every_claim_holds_with_a_controller_that_asks_at_an_unmask() {
    holds(Contract::new(Unmask::Asks, Flaws::default()));
}

/// KVM's IOAPIC since Linux 6.3: an unmask takes the pending level away and tells the resamplers, of which a KVM_IRQ_LINE
/// source is none.
#[test]
fn the_level_that_kvm_loses_at_an_unmask() {
    let flaws = Flaws {
        unmask_tells_resamplers_only: true,
        ..Flaws::default()
    };
    breaks(
        "level lost at the unmask",
        Claim::Seen,
        Contract::new(Unmask::Asks, flaws),
    );
}

/// The same unmask leaves the contribution of the resamplers set: the next KVM_IRQ_LINE(0) of another source finds the
/// line high.
#[test]
fn the_phantom_of_kvm_after_an_unmask() {
    let flaws = Flaws {
        unmask_keeps_contributions: true,
        ..Flaws::default()
    };
    breaks(
        "phantom after the unmask",
        Claim::Cause,
        Contract::new(Unmask::Asks, flaws),
    );
}

#[test]
fn an_eoi_that_does_not_look_at_the_line_again() {
    let flaws = Flaws {
        eoi_does_not_look: true,
        ..Flaws::default()
    };
    breaks("EOI without a look", Claim::Seen, Contract::new(Unmask::Looks, flaws));
}

/// KVM raises KVM_EXIT_IOAPIC_EOI for routes on GSIs below the reserved count only (law 11).
#[test]
fn a_route_on_gsi_24_of_a_split_irqchip() {
    let flaws = Flaws {
        second_line_is_above_the_pins: true,
        ..Flaws::default()
    };
    breaks("route on GSI 24", Claim::Seen, Contract::new(Unmask::Looks, flaws));
}

#[test]
fn a_device_that_is_told_before_its_line_is_low() {
    let flaws = Flaws {
        tells_before_lowering: true,
        ..Flaws::default()
    };
    for claim in [Claim::LowWhenTold, Claim::Seen, Claim::Unmasked] {
        breaks(
            "told before the line is low",
            claim,
            Contract::new(Unmask::Looks, flaws),
        );
    }
}

/// A forwarder that rewires without a last unmask: what the old wires dropped is not stated again.
#[test]
fn a_rewiring_that_does_not_unmask() {
    let flaws = Flaws {
        rewires_without_an_unmask: true,
        ..Flaws::default()
    };
    for claim in [Claim::Seen, Claim::Unmasked] {
        breaks("rewired without an unmask", claim, Contract::new(Unmask::Looks, flaws));
    }
}
