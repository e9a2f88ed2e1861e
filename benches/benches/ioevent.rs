// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cost of the userspace fallback of an ioeventfd, for a store that has already exited.
//!
//! * `find`: the lookup of a store that matches, at addresses in random order. The limits apply here: at 4096
//!   registrations a tenth of `eventfd write`, and 1.5 times the time at 16.
//! * `dispatch/miss`: the whole dispatch of a store without a registration, which every exit of the VM pays.
//! * `dispatch/hit` against `eventfd write`: the time that dispatch adds to the unavoidable system call.
//! * `register`: one registration and its removal, beside a number of others.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot start has to stop")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ioevent::{IoeventBus, Length, Match, Registration, Space};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BASE: u64 = 0xd000_0000;
/// Doorbells one page apart, the worst spread that devices choose.
const STRIDE: u64 = 0x1000;
const SIZES: [u64; 4] = [16, 256, 4096, 16_384];

struct Doorbells {
    bus: IoeventBus,
    event: Arc<EventFd>,
    /// All addresses in random order, so that the caches and the branch predictor see no pattern.
    addresses: Vec<u64>,
    _registrations: Vec<Registration>,
}

fn doorbells(count: u64) -> Doorbells {
    let bus = IoeventBus::userspace();
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let set = (0..count).map(|n| (Match::mmio(BASE + n * STRIDE, Length::Bytes4), event.clone()));
    let registrations = bus.register_all(set).unwrap();
    let mut addresses: Vec<_> = (0..count).map(|n| BASE + n * STRIDE).collect();
    shuffle(&mut addresses);
    Doorbells {
        bus,
        event,
        addresses,
        _registrations: registrations,
    }
}

/// Fisher and Yates, with xorshift64.
fn shuffle(addresses: &mut [u64]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..addresses.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        addresses.swap(last, (state % (last as u64 + 1)) as usize);
    }
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("find");
    for count in SIZES {
        let doorbells = doorbells(count);
        let mut next = doorbells.addresses.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                let address = *next.next().unwrap();
                doorbells
                    .bus
                    .find(Space::Mmio, black_box(address), black_box(&[1, 2, 3, 4]))
            });
        });
    }
    group.finish();

    // All registrations at one address, distinguished by the value: KVM walks a list, the bus makes a second lookup.
    let mut group = c.benchmark_group("find/datamatch");
    for count in [16u32, 256, 4096] {
        let bus = IoeventBus::userspace();
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let at = Match::mmio(BASE, Length::Bytes4);
        let set = (0..count).map(|n| (at.with_datamatch(n.into()), event.clone()));
        let _registrations = bus.register_all(set).unwrap();
        let mut values: Vec<u64> = (0..count.into()).collect();
        shuffle(&mut values);
        let mut next = values.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                let data = (*next.next().unwrap() as u32).to_ne_bytes();
                bus.find(Space::Mmio, black_box(BASE), black_box(&data))
            });
        });
    }
    group.finish();
}

fn dispatch(c: &mut Criterion) {
    let mut group = c.benchmark_group("dispatch/miss");
    for count in SIZES {
        let doorbells = doorbells(count);
        let mut next = doorbells.addresses.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                let address = *next.next().unwrap() + 8;
                doorbells
                    .bus
                    .dispatch(Space::Mmio, black_box(address), black_box(&[1, 2, 3, 4]))
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("dispatch/hit");
    for count in SIZES {
        let doorbells = doorbells(count);
        let mut next = doorbells.addresses.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                let address = *next.next().unwrap();
                doorbells
                    .bus
                    .dispatch(Space::Mmio, black_box(address), black_box(&[1, 2, 3, 4]))
            });
        });
        assert!(doorbells.event.read().unwrap() > 0);
    }
    group.finish();

    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    c.bench_function("eventfd write", |b| b.iter(|| event.write(1).unwrap()));
}

fn register(c: &mut Criterion) {
    let mut group = c.benchmark_group("register");
    for count in SIZES {
        let doorbells = doorbells(count);
        let at = Match::mmio(BASE + 8, Length::Bytes4);
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                doorbells
                    .bus
                    .register(at, doorbells.event.clone())
                    .unwrap()
                    .remove()
                    .unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, dispatch, register);
criterion_main!(benches);
