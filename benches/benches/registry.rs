// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of the registry: registering, changing the path, and the steady state between.
//!
//! * `register a pair`: a producer and a consumer, connected and disconnected again, beside a number of other pairs.
//!   The time should be the same beside 1 and beside 4096.
//! * `change of path`: one [`Connection::restrict`] of a model device on an in-kernel irqchip, relay to kernel loop and
//!   back, against the time of deassigning and assigning a resample irqfd in the same run. The limit is 200 us at the
//!   99th percentile.
//! * `round trip`: one relayed interrupt from the device's level to its unmask, with and without a registry, in turn in
//!   one run. The limit is 2 %.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::scaling::{PAIRS, Pairs};
use criterion::{BenchmarkId, Criterion, criterion_group};
use interrupt_core::forward::GuestLine;
use interrupt_core::forward::{Connection, EventfdId, Path, Registry};
use interrupt_core::testing::RecordingPin;
use interrupt_core::{Gsi, Irqchip, LevelSource, Line, LoweredBy};
use kvm_irqfd::KvmInterrupts;
use vfio_intx::{Intx, ModelIntx, Relay};

fn register(c: &mut Criterion) {
    let mut group = c.benchmark_group("register a pair");
    for others in PAIRS {
        let pairs = Pairs::new(others).unwrap();
        group.bench_function(BenchmarkId::from_parameter(others), |b| {
            b.iter(|| pairs.come_and_go().unwrap());
        });
    }
    group.finish();
}

/// A model device on a relayed line. The benchmark runs the relay's steps in turn, instead of a relay thread.
struct Relayed {
    device: Arc<ModelIntx>,
    line: Arc<Line<RecordingPin>>,
    relay: Relay,
    _intx: Arc<Intx>,
    _connected: (
        Connection,
        Option<(Registry, [interrupt_core::forward::Registration; 2])>,
    ),
}

impl Relayed {
    fn new(registry: bool) -> Self {
        let device = Arc::new(ModelIntx::new("model"));
        let (intx, mut relay) = Intx::new(device.clone()).unwrap();
        let intx = Arc::new(intx);
        let line = Line::new(Gsi(11), RecordingPin::default());
        let source: Arc<dyn LevelSource> = Arc::new(line.source("model", LoweredBy::Eoi));
        let guest = GuestLine::relay(source, line.clone(), "the bench");
        let connection = Connection::new(Arc::<Intx>::clone(&intx));
        let registered = if registry {
            let registry = Registry::default();
            let device = registry.add_producer(EventfdId(1), intx.clone()).unwrap();
            let line = registry.add_consumer(EventfdId(1), Arc::new(guest)).unwrap();
            Some((registry, [device, line]))
        } else {
            connection.set_consumer(Some(Arc::new(guest))).unwrap();
            None
        };
        intx.enable().unwrap();
        relay.wait(Some(Duration::ZERO)).unwrap();
        Self {
            device,
            line,
            relay,
            _intx: intx,
            _connected: (connection, registered),
        }
    }

    fn round(&mut self) {
        self.device.raise(1);
        self.relay.wait(None).unwrap();
        self.device.acknowledge(1);
        self.line.eoi().unwrap();
        self.relay.wait(None).unwrap();
        assert!(!self.device.is_masked());
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100].as_nanos() as f64 / 1000.0
}

/// Medians of turns. Each turn measures both, so that a disturbance affects both.
fn round_trips() {
    const TURNS: usize = 400;
    const ROUNDS: u32 = 200;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // Make new doubles for each turn, because a double records every level.
    for turn in 0..TURNS {
        let mut worlds = [(Relayed::new(false), &mut without), (Relayed::new(true), &mut with)];
        if turn % 2 == 1 {
            worlds.reverse();
        }
        for (world, times) in &mut worlds {
            (0..20).for_each(|_| world.round());
            let start = Instant::now();
            (0..ROUNDS).for_each(|_| world.round());
            times.push(start.elapsed() / ROUNDS);
        }
    }
    let (without, with) = (percentile(&mut without, 50), percentile(&mut with, 50));
    println!(
        "round trip: p50 {without:.3} us without a registry, {with:.3} us with, ratio {:.4}",
        with / without
    );
}

fn changes_of_path() {
    const CHANGES: usize = 2_000;
    const ID: EventfdId = EventfdId(1);
    let vm = match kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => Arc::new(vm),
        Err(error) => return println!("left out: change of path: {error}"),
    };
    if let Err(error) = vm.create_irq_chip() {
        return println!("left out: change of path: {error}");
    }
    let interrupts = KvmInterrupts::new(vm).unwrap();
    assert_eq!(interrupts.irqchip(), Irqchip::Kernel);
    let source = interrupts.resample_source(Gsi(11), "bench").unwrap();
    let device = Arc::new(ModelIntx::new("model"));
    let (intx, _relay) = Intx::new(device).unwrap();
    let intx = Arc::new(intx);
    let registry = Registry::default();
    let _device = registry.add_producer(ID, intx.clone()).unwrap();
    let line = GuestLine::kernel(source.clone(), Arc::new(interrupts.clone()));
    let _line = registry.add_consumer(ID, Arc::new(line)).unwrap();
    let connection = registry.connection(ID).unwrap();
    intx.enable().unwrap();
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..CHANGES {
        for (path, times) in [Path::Relay, Path::KernelLoop].into_iter().zip(&mut times) {
            let start = Instant::now();
            let came = connection.restrict(Some(path)).unwrap();
            times.push(start.elapsed());
            assert_eq!(came, Some(path));
        }
        let start = Instant::now();
        source.force_deassert().unwrap();
        times[2].push(start.elapsed());
    }
    for (what, times) in ["to relay", "to kernel loop", "resample irqfd off and on"]
        .into_iter()
        .zip(&mut times)
    {
        println!(
            "change of path, {what}: p50 {:.1} us, p99 {:.1} us, max {:.1} us of {CHANGES}",
            percentile(times, 50),
            percentile(times, 99),
            percentile(times, 100)
        );
    }
}

criterion_group!(benches, register);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    round_trips();
    changes_of_path();
}
