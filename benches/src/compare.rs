// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compares two runs of the same host, and finds the changes beyond noise.

use crate::results::{Results, Spread};

/// The least relative distance of a median from the other run's spread.
const MARGIN: f64 = 0.05;

/// Returns a line for each figure that has changed beyond noise: its median is more than 5 % outside of the range of
/// the other run's turns. Latencies are compared as ratios to their floors, because the load of the host changes ratios
/// least.
pub fn changes(old: &Results, new: &Results) -> Vec<String> {
    let mut changes = Vec::new();
    if old.host.summary != new.host.summary {
        changes.push(format!(
            "another host: {} before, {} now",
            old.host.summary, new.host.summary
        ));
    }
    for group in &new.groups {
        let Some(before) = old
            .groups
            .iter()
            .find(|other| other.control.group == group.control.group)
        else {
            continue;
        };
        if before.control.eoi != group.control.eoi {
            changes.push(format!("{}: {} now", group.control.group, group.control.finding));
        }
        for way in &group.ways {
            let is_it = |other: &&crate::results::Figures| other.name == way.name && other.wait == way.wait;
            let Some(other) = before.ways.iter().find(is_it) else {
                continue;
            };
            let name = format!("{}: {}, {}", group.control.group, way.name, way.wait);
            if let Some((old, new)) = other.over_floor.zip(way.over_floor) {
                changes.extend(change(&format!("{name}: over floor"), old, new));
            }
            let (old, new) = (other.per_round_trip.system_calls, way.per_round_trip.system_calls);
            if let Some((old, new)) = old.zip(new).filter(|(old, new)| (old - new).abs() > 0.5) {
                changes.push(format!("{name}: {old:.1} system calls before, {new:.1} now"));
            }
        }
    }
    for (name, [low, median, high]) in &new.operations_ns {
        if let Some([old_low, old_median, old_high]) = old.operations_ns.get(name) {
            let spread = |least: &f64, median: &f64, most: &f64| Spread {
                least: *least,
                median: *median,
                most: *most,
            };
            let (old, new) = (spread(old_low, old_median, old_high), spread(low, median, high));
            changes.extend(change(&format!("{name}, ns"), old, new));
        }
    }
    for (name, new) in &new.instructions {
        if let Some(old) = old.instructions.get(name).filter(|old| (*old - new).abs() > 0.01 * new) {
            changes.push(format!("{name}: {old:.0} instructions before, {new:.0} now"));
        }
    }
    changes
}

/// Decides whether a change is beyond noise. No other function does.
fn change(what: &str, old: Spread, new: Spread) -> Option<String> {
    let beyond = new.median > old.most * (1.0 + MARGIN) || new.median < old.least * (1.0 - MARGIN);
    let apart = new.least > old.median || new.most < old.median;
    (beyond && apart).then(|| {
        let change = 100.0 * (new.median / old.median - 1.0);
        format!(
            "{what}: {:.3} before, {:.3} now ({change:+.0} %)",
            old.median, new.median
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(least: f64, median: f64, most: f64) -> Spread {
        Spread { least, median, most }
    }

    #[test]
    fn only_what_is_beyond_both_spreads_has_changed() {
        let old = spread(0.9, 1.0, 1.1);
        assert_eq!(change("x", old, spread(0.95, 1.05, 1.3)), None);
        assert_eq!(
            change("x", old, spread(0.95, 1.2, 1.3)),
            None,
            "its turns overlap the old median"
        );
        assert_eq!(
            change("x", old, spread(1.15, 1.2, 1.3)).unwrap(),
            "x: 1.000 before, 1.200 now (+20 %)"
        );
        assert_eq!(
            change("x", old, spread(0.5, 0.6, 0.7)).unwrap(),
            "x: 1.000 before, 0.600 now (-40 %)"
        );
    }
}
