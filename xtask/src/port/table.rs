// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table of before and after.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::counts::Counts;
use super::runs::Seen;

/// All turns of one card and VMM.
#[derive(Debug, PartialEq)]
pub struct Row {
    pub card: String,
    pub vmm: &'static str,
    pub pings: u32,
    pub answered: u32,
    interrupts: u64,
    watchdogs: u32,
    counts: Counts,
    /// In ms; none when nothing was answered.
    median: Option<f64>,
}

/// One row for each card and VMM, in the order of their first turns.
pub fn rows(results: &[Seen]) -> Vec<Row> {
    let mut keys: Vec<(String, &'static str)> = Vec::new();
    for seen in results {
        let key = (seen.card.to_string(), seen.vmm);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.into_iter().map(|(card, vmm)| row(card, vmm, results)).collect()
}

fn row(card: String, vmm: &'static str, results: &[Seen]) -> Row {
    let of_row = || {
        results
            .iter()
            .filter(|seen| seen.card.to_string() == card && seen.vmm == vmm)
    };
    let mut round_trips: Vec<f64> = of_row().flat_map(|seen| seen.guest.round_trips.clone()).collect();
    round_trips.sort_by(f64::total_cmp);
    let sum = |of: fn(&Counts) -> u64| of_row().map(|seen| of(&seen.counts)).sum();
    Row {
        vmm,
        pings: of_row().map(|seen| seen.pings).sum(),
        answered: of_row().map(|seen| seen.guest.answered).sum(),
        interrupts: of_row().map(|seen| seen.guest.interrupts).sum(),
        watchdogs: of_row().map(|seen| seen.guest.watchdogs).sum(),
        counts: Counts {
            eoi_exits: sum(|counts| counts.eoi_exits),
            routing_ioctls: sum(|counts| counts.routing_ioctls),
            other_ioctls: sum(|counts| counts.other_ioctls),
            other_calls: sum(|counts| counts.other_calls),
        },
        median: round_trips.get(round_trips.len() / 2).copied(),
        card,
    }
}

pub fn text(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<7} {:<9} {:>14} {:>11} {:>10} {:>14} {:>13} {:>12} {:>12}\n",
        "card",
        "VMM",
        "pings answered",
        "interrupts",
        "EOI exits",
        "routing ioctls",
        "other ioctls",
        "other calls",
        "rtt p50"
    );
    for row in rows {
        let Counts {
            eoi_exits,
            routing_ioctls,
            other_ioctls,
            other_calls,
        } = row.counts;
        let answered = format!("{} of {}", row.answered, row.pings);
        let median = row.median.map_or("-".to_owned(), |ms| format!("{ms:.2} ms"));
        let watchdogs = match row.watchdogs {
            0 => String::new(),
            times => format!("  NETDEV WATCHDOG ({times})"),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<7} {:<9} {answered:>14} {:>11} {eoi_exits:>10} {routing_ioctls:>14} {other_ioctls:>13} {other_calls:>12} \
             {median:>12}{watchdogs}",
            row.card, row.vmm, row.interrupts
        );
    }
    text
}

pub fn json(rows: &[Row]) -> Result<String> {
    let row = |row: &Row| {
        json!({
            "card": row.card,
            "vmm": row.vmm,
            "pings": row.pings,
            "answered": row.answered,
            "interrupts": row.interrupts,
            "watchdogs": row.watchdogs,
            "eoi_exits": row.counts.eoi_exits,
            "routing_ioctls": row.counts.routing_ioctls,
            "other_ioctls": row.counts.other_ioctls,
            "other_calls": row.counts.other_calls,
            "round_trip_median_ms": row.median,
        })
    };
    Ok(serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?)
}

#[cfg(test)]
mod tests {
    use super::super::guest_report::GuestReport;
    use super::super::runs::{Card, PATCHED, UPSTREAM};
    use super::*;

    #[test]
    fn the_turns_of_a_card_and_vmm_are_one_row() {
        let seen = |vmm, answered, round_trips: &[f64]| Seen {
            card: Card::E1000,
            vmm,
            pings: 3,
            guest: GuestReport {
                answered,
                round_trips: round_trips.to_vec(),
                ..GuestReport::default()
            },
            counts: Counts {
                eoi_exits: 2,
                ..Counts::default()
            },
        };
        let results = [
            seen(UPSTREAM, 0, &[]),
            seen(PATCHED, 3, &[1.0, 9.0, 2.0]),
            seen(PATCHED, 2, &[3.0, 4.0]),
            seen(UPSTREAM, 0, &[]),
        ];
        let rows = rows(&results);
        let shown = |row: &Row| (row.vmm, row.answered, row.pings, row.counts.eoi_exits, row.median);
        assert_eq!(
            rows.iter().map(shown).collect::<Vec<_>>(),
            [(UPSTREAM, 0, 6, 4, None), (PATCHED, 5, 6, 4, Some(3.0))]
        );
        assert!(text(&rows).contains("5 of 6"), "{}", text(&rows));
    }
}
