// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One 8259's priority resolver over its whole state space, against the rules of the datasheet.
//!
//! [`Chip::request`] is by definition `resolve(asking, holding, highest)`. Each of the four functions on the right is a function
//! of few bits, and is tried with every value of every bit that it can read: `irr` of 2^24, `asking` of 2^16, `holding` of
//! 2^19, `resolve` of 2^19. So every combination of IRR, ISR, IMR, priority and mode is covered.

use super::*;

/// Input `n` of a set.
fn has(inputs: u8, n: u8) -> bool {
    inputs / (1 << n) % 2 == 1
}

fn chip(role: Role, state: SavedChip) -> Chip {
    Chip { role, state }
}

/// 8259A datasheet, "Interrupt Request Register": an edge-triggered input asks from its rise until it is acknowledged, a
/// level-triggered one while it is high (82371, ELCR).
#[test]
fn requests_are_edges_or_levels_by_elcr() {
    // The rule, for one input; then the whole byte is the eight inputs side by side.
    let rule = |edge: bool, high: bool, is_level: bool| if is_level { high } else { edge };
    let by_input: Vec<bool> = (0..8).map(|n: u8| rule(n & 1 != 0, n & 2 != 0, n & 4 != 0)).collect();
    let mut state = SavedChip::RESET;
    for word in 0..1u32 << 24 {
        let [edges, high, elcr, _] = word.to_le_bytes();
        (state.edges, state.high, state.elcr) = (edges, high, elcr);
        let irr = state.irr();
        let mut expected = 0;
        let mut n = 0;
        while n < 8 {
            let index = usize::from((edges >> n & 1) | (high >> n & 1) << 1 | (elcr >> n & 1) << 2);
            expected |= u8::from(by_input[index]) << n;
            n += 1;
        }
        assert_eq!(irr, expected, "edges {edges:#x}, high {high:#x}, ELCR {elcr:#x}");
    }
}

/// OCW1: a set bit masks its input.
#[test]
fn a_masked_input_does_not_ask() {
    for word in 0..=u16::MAX {
        let [high, imr] = word.to_le_bytes();
        let state = SavedChip {
            high,
            elcr: 0xff,
            imr,
            ..SavedChip::RESET
        };
        let asking = chip(Role::Slave, state).asking();
        for n in 0..8 {
            assert_eq!(
                has(asking, n),
                has(high, n) && !has(imr, n),
                "IRR {high:#x}, IMR {imr:#x}"
            );
        }
    }
}

/// "Special mask mode": a masked input in service inhibits nothing. "Special fully nested mode": the slave in service does not
/// lock out the slave. The datasheet has lower inputs of the master wait for the slave even so; KVM and QEMU let them through,
/// and so do we.
#[test]
fn an_input_in_service_holds_back_unless_a_mode_says_otherwise() {
    for word in 0..1u32 << 19 {
        let [isr, imr, modes, _] = word.to_le_bytes();
        let [special_mask, special_fully_nested, is_master] = [0, 1, 2].map(|n| has(modes, n));
        let state = SavedChip {
            isr,
            imr,
            special_mask,
            special_fully_nested,
            ..SavedChip::RESET
        };
        let role = if is_master { Role::Master } else { Role::Slave };
        let holding = chip(role, state).holding();
        for n in 0..8 {
            let inhibits_nothing = special_mask && has(imr, n);
            let is_nested_slave = special_fully_nested && is_master && n == 2;
            let expected = has(isr, n) && !inhibits_nothing && !is_nested_slave;
            assert_eq!(
                has(holding, n),
                expected,
                "ISR {isr:#x}, IMR {imr:#x}, modes {modes:#b}, input {n}"
            );
        }
    }
}

/// "Fully nested mode" and "Automatic rotation": the priorities go down from one input, and round. While an input is in
/// service, further interrupts of its own and of lower priorities are inhibited.
#[test]
fn the_resolver_grants_the_first_input_that_none_inhibits() {
    for highest in 0..8 {
        for word in 0..=u16::MAX {
            let [asking, holding] = word.to_le_bytes();
            let mut granted = None;
            for step in 0..8 {
                let input = (highest + step) % 8;
                if has(holding, input) {
                    break;
                }
                if has(asking, input) {
                    granted = Some(input);
                    break;
                }
            }
            let resolved = resolve(asking, holding, highest);
            assert_eq!(
                resolved, granted,
                "asking {asking:#x}, holding {holding:#x}, highest {highest}"
            );
        }
    }
}

/// "End of interrupt": without a name, the highest input in service; in special mask mode, a masked one is not ended so.
#[test]
fn an_eoi_without_a_name_ends_the_highest_in_service() {
    for word in 0..1u32 << 20 {
        let [isr, imr, modes, _] = word.to_le_bytes();
        let (highest, special_mask) = (modes % 8, modes >= 8);
        let state = SavedChip {
            isr,
            imr,
            highest,
            special_mask,
            ..SavedChip::RESET
        };
        let order = (0..8).map(|step| (highest + step) % 8);
        let expected = order.clone().find(|&n| has(isr, n) && !(special_mask && has(imr, n)));
        let ended = chip(Role::Master, state).first_in_service();
        assert_eq!(ended, expected, "ISR {isr:#x}, IMR {imr:#x}, highest {highest}");
    }
}

/// What the definition above says, on states of chance: the four parts make the request.
#[test]
fn a_request_is_made_of_its_parts() {
    let mut chance = 1u64;
    for _ in 0..100_000 {
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let [edges, high, elcr, imr, isr, modes, ..] = chance.rotate_left(29).to_le_bytes();
        let state = SavedChip {
            edges,
            high,
            elcr,
            imr,
            isr,
            highest: modes % 8,
            special_mask: has(modes, 3),
            special_fully_nested: has(modes, 4),
            ..SavedChip::RESET
        };
        let chip = chip(if has(modes, 5) { Role::Master } else { Role::Slave }, state);
        assert_eq!(chip.request(), resolve(chip.asking(), chip.holding(), modes % 8));
    }
}
