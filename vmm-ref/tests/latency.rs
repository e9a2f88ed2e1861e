// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Latencies: what is recorded comes back as percentiles and as ranges.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use vmm_ref::latency::Latency;

#[test]
fn percentiles_of_a_known_distribution() {
    let mut latency = Latency::new();
    for us in (1..=1000).rev() {
        latency.record(Duration::from_micros(us));
    }
    let all = latency.percentiles().unwrap();
    for (value, expected) in [
        (all.min, 1.0),
        (all.p50, 500.0),
        (all.p90, 900.0),
        (all.p99, 990.0),
        (all.max, 1000.0),
    ] {
        assert!(
            (value - expected).abs() <= expected * 0.001,
            "{value} is not {expected}"
        );
    }
}

#[test]
fn buckets_hold_all_latencies_at_about_their_values() {
    let (mut one, mut other) = (Latency::new(), Latency::new());
    (0..7).for_each(|_| one.record(Duration::from_micros(10)));
    (0..5).for_each(|_| other.record(Duration::from_micros(300)));
    one.merge(&other);
    let buckets = one.buckets();
    assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 12);
    let near = |value: f64, of: u64| {
        buckets
            .iter()
            .any(|(at, count)| (at / value - 1.0).abs() < 0.06 && *count == of)
    };
    assert!(near(10.0, 7) && near(300.0, 5), "{buckets:?}");
    let total = one.total().as_secs_f64() / Duration::from_micros(7 * 10 + 5 * 300).as_secs_f64();
    assert!((total - 1.0).abs() < 0.001, "{total}");
}

#[test]
fn nothing_recorded_has_no_percentiles() {
    assert_eq!(Latency::new().percentiles(), None);
}

#[test]
fn a_latency_beyond_all_bounds_is_kept_as_the_longest() {
    let mut latency = Latency::new();
    latency.record(Duration::from_secs(1_000_000));
    assert!(latency.percentiles().unwrap().max >= 99_000_000.0);
}
