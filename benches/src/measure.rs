// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The method of measuring. All subjects are measured in turns, so that a change of the host's load affects all of them
//! alike. The ratio of two subjects is the median of their ratios within each turn.

use vmm_ref::latency::Latency;

use crate::Result;
use crate::counters::Counters;
use crate::results::{Figures, PerRoundTrip, Spread};

/// Something that makes round trips.
pub struct Subject<'a> {
    /// The subject's name.
    pub name: String,
    /// How the subject waits for EOIs.
    pub wait: String,
    /// The index of the subject's floor among the subjects; `None` for a floor.
    pub floor: Option<usize>,
    /// Makes this many round trips.
    pub round_trips: Box<dyn FnMut(u64) -> Result<Latency> + 'a>,
}

impl std::fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.name, self.wait)
    }
}

/// The extent of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Turns, at least 1.
    pub turns: usize,
    /// Round trips of each subject in each turn, at least 1.
    pub rounds: u64,
}

/// Measures all subjects in turns. `on_step` is called before each step, `turns + 1` times for each subject.
///
/// # Errors
/// The first round trip that fails.
pub fn in_turns(
    subjects: &mut [Subject<'_>],
    extent: Extent,
    counters: &mut Counters,
    on_step: &mut dyn FnMut(),
) -> Result<Vec<Figures>> {
    let mut all = vec![Latency::new(); subjects.len()];
    let mut medians = vec![Vec::with_capacity(extent.turns); subjects.len()];
    for _ in 0..extent.turns {
        for (n, subject) in subjects.iter_mut().enumerate() {
            on_step();
            let latency = (subject.round_trips)(extent.rounds)?;
            medians[n].extend(latency.percentiles().map(|of| of.p50));
            all[n].merge(&latency);
        }
    }
    let mut figures = Vec::with_capacity(subjects.len());
    for (n, subject) in subjects.iter_mut().enumerate() {
        on_step();
        let over_floor = subject.floor.map(|floor| ratio(&medians[n], &medians[floor]));
        let Some(percentiles) = all[n].percentiles() else {
            anyhow::bail!("{subject:?}: no round trip was timed");
        };
        figures.push(Figures {
            name: subject.name.clone(),
            wait: subject.wait.clone(),
            floor: subject.floor,
            round_trips: extent.rounds * extent.turns as u64,
            latency_us: percentiles.into(),
            p50_us: Spread::of(&medians[n]),
            over_floor,
            per_round_trip: per_round_trip(subject, extent.rounds, counters)?,
            buckets: all[n].buckets(),
        });
    }
    Ok(figures)
}

/// The ratios of two series, turn by turn.
pub fn ratio(of: &[f64], over: &[f64]) -> Spread {
    let ratios: Vec<f64> = of.iter().zip(over).map(|(of, over)| of / over).collect();
    Spread::of(&ratios)
}

/// The cost of a long run minus the cost of a short run, which excludes set-up and tear-down.
fn per_round_trip(subject: &mut Subject<'_>, rounds: u64, counters: &mut Counters) -> Result<PerRoundTrip> {
    let mut of = |count| {
        let before = counters.read();
        (subject.round_trips)(count)?;
        Ok::<_, anyhow::Error>(counters.read().since(before))
    };
    // The turns have done the work that only a first run does.
    let extra = rounds.div_ceil(2);
    let (short, long) = (of(rounds - extra + 1)?, of(rounds + 1)?);
    let per = |short: u64, long: u64| (long as f64 - short as f64) / extra as f64;
    Ok(PerRoundTrip {
        system_calls: short
            .system_calls
            .zip(long.system_calls)
            .map(|(short, long)| per(short, long)),
        context_switches: short
            .context_switches
            .zip(long.context_switches)
            .map(|(short, long)| per(short, long)),
        allocations: per(short.allocations, long.allocations),
    })
}
