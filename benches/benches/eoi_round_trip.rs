// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The round trip of a level interrupt: the device asserts, the guest's handler ends the interrupt at its 8259, the device is told.
//!
//! * `block`, `spin`, `adaptive`: through interrupt-core's traits and kvm-irqfd, waiting in that way.
//! * `floor/block`: the same guest and the same VM, but a `write` and a blocking `read` on eventfds that were bound by bare ioctls.
//!
//! After criterion's own figures the ratios are printed, from rounds of all kinds in turn: what a change of the host's load does to
//! one it does to all. The negative control comes first: with a handler that does not end its interrupt, nobody is told.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group};
use interrupt_core::{EoiGuard, EoiNotifier, Gsi, LevelSource, Listener};
use kvm_irqfd::{KvmInterrupts, WaitMode, Waiter};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use testkit::ioctl::assign_resample;
use testkit::need::Need;
use testkit::responder::{Handler, Responder};
use vmm_sys_util::eventfd::EventFd;

const MODES: [(&str, WaitMode); 3] = [
    ("block", WaitMode::Block),
    ("spin", WaitMode::Spin),
    ("adaptive", WaitMode::Adaptive),
];

/// One way round.
trait RoundTrip {
    fn go(&mut self);
}

/// Through this workspace.
struct Library {
    _guard: EoiGuard,
    source: Arc<dyn LevelSource>,
    eoi: OwnedFd,
    waiter: Waiter,
}

impl Library {
    fn new(interrupts: &KvmInterrupts, gsi: u32, mode: WaitMode) -> Self {
        let source = interrupts.resample_source(Gsi(gsi), "bench").unwrap();
        let eoi = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let listener = Listener::fd(eoi.try_clone().unwrap());
        Self {
            _guard: interrupts.subscribe(source.key().into(), listener).unwrap(),
            source: Arc::new(source),
            eoi,
            waiter: Waiter::new(mode),
        }
    }
}

impl RoundTrip for Library {
    fn go(&mut self) {
        self.source.assert().unwrap();
        self.waiter.wait(self.eoi.as_fd()).unwrap();
    }
}

/// By hand.
struct Floor {
    trigger: EventFd,
    resample: EventFd,
}

impl RoundTrip for Floor {
    fn go(&mut self) {
        self.trigger.write(1).unwrap();
        self.resample.read().unwrap();
    }
}

struct Setup {
    ways: Vec<(String, Box<dyn RoundTrip>)>,
    // Goes last: its VM is what the others are bound to.
    _guest: Responder,
}

fn setup() -> Setup {
    let (guest, ways) = Responder::start(&[3, 4, 5, 6], Handler::Ends, |vm| {
        // Before the library looks after the VM, and on a GSI that it is not asked for.
        let floor = Floor {
            trigger: EventFd::new(0).unwrap(),
            resample: EventFd::new(0).unwrap(),
        };
        assign_resample(vm, &floor.trigger, &floor.resample, 3).unwrap();
        let interrupts = KvmInterrupts::new(vm.clone()).unwrap();
        let mut ways: Vec<(String, Box<dyn RoundTrip>)> = vec![("floor/block".into(), Box::new(floor))];
        for (gsi, (name, mode)) in (4..).zip(MODES) {
            ways.push((name.into(), Box::new(Library::new(&interrupts, gsi, mode))));
        }
        ways
    });
    Setup { ways, _guest: guest }
}

fn round_trips(c: &mut Criterion) {
    let mut group = c.benchmark_group("eoi_round_trip/8259");
    for (name, way) in &mut setup().ways {
        group.bench_function(name.as_str(), |b| b.iter(|| way.go()));
    }
    group.finish();
}

/// Whether anybody is told of an interrupt that the guest does not end.
fn negative_control() {
    let (_guest, (source, _guard, eoi)) = Responder::start(&[5], Handler::DoesNotEnd, |vm| {
        let interrupts = KvmInterrupts::new(vm.clone()).unwrap();
        let source = interrupts.resample_source(Gsi(5), "bench").unwrap();
        let eoi = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let listener = Listener::fd(eoi.try_clone().unwrap());
        let guard = interrupts.subscribe(source.key().into(), listener).unwrap();
        (source, guard, eoi)
    });
    source.assert().unwrap();
    let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
    let told = poll(&mut [PollFd::new(&eoi, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(
        told, 0,
        "the host ended the interrupt by itself: what follows would not be EOI round trips"
    );
    println!("negative control: a handler without EOI, nobody told within 1 s");
}

/// Percentiles of rounds in turn.
fn ratios() {
    const TURNS: usize = 200;
    const ROUNDS: usize = 100;
    let mut setup = setup();
    let mut times = vec![Vec::with_capacity(TURNS * ROUNDS); setup.ways.len()];
    for _ in 0..TURNS {
        for ((_, way), times) in setup.ways.iter_mut().zip(&mut times) {
            // A change of waiting takes a few rounds to settle.
            (0..10).for_each(|_| way.go());
            for _ in 0..ROUNDS {
                let start = Instant::now();
                way.go();
                times.push(start.elapsed());
            }
        }
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    let at = |times: &[Duration], percent: usize| times[times.len() * percent / 100].as_nanos() as f64 / 1000.0;
    let (floor, block) = (at(&times[0], 50), at(&times[1], 50));
    println!("{} rounds each, in turns of {ROUNDS}; us", TURNS * ROUNDS);
    println!(
        "{:12} {:>8} {:>8} {:>8} {:>10} {:>10}",
        "", "p50", "p90", "p99", "p50/floor", "p50/block"
    );
    for ((name, _), times) in setup.ways.iter().zip(&times) {
        let p50 = at(times, 50);
        println!(
            "{name:12} {p50:8.2} {:8.2} {:8.2} {:10.3} {:10.3}",
            at(times, 90),
            at(times, 99),
            p50 / floor,
            p50 / block
        );
    }
}

criterion_group!(benches, round_trips);

fn main() {
    if let Err(missing) = Need::GenuinePicEoi.probe() {
        println!("left out: eoi_round_trip: {}", missing.reason);
        return;
    }
    negative_control();
    benches();
    Criterion::default().configure_from_args().final_summary();
    ratios();
}
