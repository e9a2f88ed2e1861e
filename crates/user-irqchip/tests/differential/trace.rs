// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random traces: drawn from a seed, run, and made as short as they still fail.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use testkit::lab::in_lab;

/// How often a trace that failed is run again, to tell a difference of the chips from an accident of the host.
const REPEATS: usize = 5;

/// Steps of a trace.
pub const STEPS: usize = 200;
/// Traces of a run that is not limited by time.
pub const TRACES: u64 = 10_000;
/// Runs for so many seconds instead.
pub const SECONDS: &str = "DIFFERENTIAL_SECONDS";
/// How many in the lab, where everything is emulated, when nothing is said.
const LAB_SECONDS: u64 = 10;
/// Starts at this seed, with which the run before has failed, say.
pub const SEED: &str = "DIFFERENTIAL_SEED";

/// Random numbers: SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 != 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A difference between the model and the kernel.
#[derive(Debug)]
pub struct Difference {
    /// The step after which it showed.
    pub step: usize,
    /// What differs.
    pub what: String,
}

/// How often each flaw of the kernel that is known was met.
pub type Flaws = BTreeMap<&'static str, u64>;

/// A model and a kernel that are driven alike.
pub trait Pair {
    type Op: Clone + Debug;

    /// A random operation. Any sequence of operations is a valid one.
    fn draw(rng: &mut Rng) -> Self::Op;

    /// Runs a trace from a fresh state, and compares after every step.
    fn run(&mut self, trace: &[Self::Op], flaws: &mut Flaws) -> Result<(), Difference>;
}

/// Runs as many traces as the environment says. Panics with the shortest failing trace that was found, and with its seed.
pub fn compare<P: Pair>(name: &str, mut pair: P) {
    let asked = number(SECONDS);
    let seconds = asked.or(in_lab().then_some(LAB_SECONDS));
    let first = number(SEED).unwrap_or(match asked {
        // A long run looks elsewhere each time. What is run with every change does not.
        Some(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        None => 0,
    });
    let start = Instant::now();
    let mut flaws = Flaws::new();
    let mut traces = 0;
    let more = |traces| match seconds {
        Some(seconds) => start.elapsed() < Duration::from_secs(seconds),
        None => traces < TRACES,
    };
    while more(traces) {
        let seed = first.wrapping_add(traces);
        let mut rng = Rng::new(seed);
        let trace: Vec<_> = (0..STEPS).map(|_| P::draw(&mut rng)).collect();
        if let Err(difference) = pair.run(&trace, &mut flaws) {
            let (trace, difference) = shorten(&mut pair, trace, difference);
            let again = (0..REPEATS)
                .filter(|_| pair.run(&trace, &mut Flaws::new()).is_err())
                .count();
            let steps: String = trace.iter().map(|op| format!("    {op:?}\n")).collect();
            panic!(
                "{name}: {SEED}={seed} fails, and {again} times of {REPEATS} again:\n{steps}  {}",
                difference.what
            );
        }
        traces += 1;
    }
    println!(
        "{name}: {traces} traces of {STEPS} steps from {SEED}={first} in {:.1} s, and these flaws of the kernel: {flaws:?}",
        start.elapsed().as_secs_f64()
    );
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    match value.parse() {
        Ok(number) => Some(number),
        Err(error) => panic!("{variable}={value}: {error}"),
    }
}

/// Leaves out what can be left out: halves first, then single steps.
fn shorten<P: Pair>(pair: &mut P, mut trace: Vec<P::Op>, mut difference: Difference) -> (Vec<P::Op>, Difference) {
    trace.truncate(difference.step + 1);
    let mut size = trace.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < trace.len() {
            let mut shorter = trace.clone();
            shorter.drain(at..(at + size).min(trace.len()));
            match pair.run(&shorter, &mut Flaws::new()) {
                Err(still) => {
                    shorter.truncate(still.step + 1);
                    trace = shorter;
                    difference = still;
                }
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    (trace, difference)
}
