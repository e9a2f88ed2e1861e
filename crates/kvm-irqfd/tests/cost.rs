// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a round trip costs in steady state: no allocation, and the system calls of a loop written by hand, all of them
//! counted. A guest answers each interrupt with the EOI of its 8259 or its GIC and does nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use interrupt_core::{EoiNotifier, Gsi, Listener};
use kvm_irqfd::{KvmInterrupts, WaitMode, Waiter};
use rustix::event::{EventfdFlags, eventfd};
use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::responder::Responder;

#[path = "common/syscalls.rs"]
mod syscalls;
use syscalls::{TRACED, count, mark};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const GSI: Gsi = Gsi(5);
const ROUNDS: u64 = 200;

fn main() -> ExitCode {
    if let Ok(what) = std::env::var(TRACED) {
        traced(&what);
        return ExitCode::SUCCESS;
    }
    #[cfg(target_arch = "aarch64")]
    let guest = Need::FullIrqchip;
    #[cfg(target_arch = "x86_64")]
    let guest = Need::GenuinePicEoi;
    let needs = [guest, Need::Host("ptrace of a child", can_trace)];
    Suite::new("kvm-irqfd::cost")
        .serial()
        .test("a_round_trip_is_one_write_and_one_read", &needs, || {
            assert_cost("block", &[(libc::SYS_write, 1), (libc::SYS_read, 1)]);
        })
        .test("a_callback_is_one_write_and_one_epoll_wait", &needs, || {
            // epoll reports each signal as an edge, so that none is read.
            assert_cost("callback", &[(libc::SYS_write, 1), (EPOLL_WAIT, 1)]);
        })
        .test("an_edge_is_one_write", &needs, || {
            assert_cost("edge", &[(libc::SYS_write, 1)])
        })
        .test("polling_reads_and_does_nothing_else", &needs, || {
            assert_only("spin", &[libc::SYS_write, libc::SYS_preadv2]);
        })
        .test("adaptive_waiting_reads_and_does_nothing_else", &needs, || {
            assert_only("adaptive", &[libc::SYS_write, libc::SYS_preadv2, libc::SYS_read]);
        })
        .run()
}

/// What rustix makes of `epoll_wait`.
const EPOLL_WAIT: i64 = libc::SYS_epoll_pwait;

/// That each round makes these system calls, so often, and no other.
fn assert_cost(what: &str, expected: &[(i64, u64)]) {
    let (counts, succeeded) = count(what).unwrap();
    assert!(succeeded, "{what}: see above");
    let expected = expected.iter().map(|(number, each)| (*number, each * ROUNDS)).collect();
    assert_eq!(counts, expected, "{what}: by number of the system call");
}

/// That a round makes these system calls and no other, one write among them.
fn assert_only(what: &str, allowed: &[i64]) {
    let (counts, succeeded) = count(what).unwrap();
    assert!(succeeded, "{what}: see above");
    assert_eq!(counts.get(&libc::SYS_write), Some(&ROUNDS), "{what}");
    assert!(
        counts.keys().all(|number| allowed.contains(number)),
        "{what}: {counts:?}"
    );
}

fn can_trace() -> Result<(), String> {
    match count("nothing") {
        Ok((counts, true)) if counts.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// What the child does, beside a guest that ends each interrupt of the line.
fn traced(what: &str) {
    if what == "nothing" {
        mark();
        mark();
        return;
    }
    let (_guest, interrupts) = Responder::start(&[GSI.0 as u8], |vm| KvmInterrupts::new(vm.clone()).unwrap());
    match what {
        "block" => by_eventfd(&interrupts, WaitMode::Block),
        "spin" => by_eventfd(&interrupts, WaitMode::Spin),
        "adaptive" => by_eventfd(&interrupts, WaitMode::Adaptive),
        "callback" => by_callback(&interrupts),
        "edge" => {
            let edge = interrupts.edge_irqfd(GSI).unwrap();
            measure(|| edge.signal().unwrap());
        }
        other => panic!("{other}"),
    }
}

/// Runs `round` until it is warm, then between two marks.
fn measure(mut round: impl FnMut()) {
    (0..100).for_each(|_| round());
    let before = allocations_on_this_thread();
    mark();
    (0..ROUNDS).for_each(|_| round());
    mark();
    assert_eq!(allocations_on_this_thread(), before, "a round allocates");
}

fn by_eventfd(interrupts: &KvmInterrupts, mode: WaitMode) {
    let line = interrupts.resample_source(GSI, "device").unwrap();
    let eoi = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let listener = Listener::fd(eoi.try_clone().unwrap());
    let _guard = interrupts.subscribe(line.key().into(), listener).unwrap();
    let mut waiter = Waiter::new(mode);
    measure(|| {
        line.assert().unwrap();
        assert_eq!(waiter.wait(eoi.as_fd()).unwrap(), 1);
    });
}

fn by_callback(interrupts: &KvmInterrupts) {
    let line = interrupts.resample_source(GSI, "device").unwrap();
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let _guard = interrupts.subscribe(line.key().into(), listener).unwrap();
    measure(|| {
        line.assert().unwrap();
        assert_eq!(interrupts.dispatch(None).unwrap(), 1);
    });
    assert_eq!(told.load(Ordering::Relaxed), ROUNDS as u32 + 100);
}
