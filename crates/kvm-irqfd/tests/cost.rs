// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a round trip costs in steady state: no allocation, and the system calls of a loop written by hand. A guest answers
//! each interrupt with the EOI of its 8259 and does nothing else.
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
use testkit::process::thread_io;
use testkit::responder::{Handler, Responder};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const GSI: Gsi = Gsi(5);
const ROUNDS: u64 = 1000;

fn main() -> ExitCode {
    let needs = [Need::GenuinePicEoi];
    Suite::new("kvm-irqfd::cost")
        .serial()
        .test("a_round_trip_is_one_write_and_one_read", &needs, || {
            by_eventfd(WaitMode::Block, Some(1))
        })
        .test("polling_allocates_nothing", &needs, || by_eventfd(WaitMode::Spin, None))
        .test("adaptive_waiting_allocates_nothing", &needs, || {
            by_eventfd(WaitMode::Adaptive, None)
        })
        .test("a_callback_allocates_nothing_and_reads_nothing", &needs, by_callback)
        .run()
}

/// Runs `device` beside a guest that ends each interrupt of the line.
fn with_guest(device: impl FnOnce(&KvmInterrupts)) {
    let (_guest, interrupts) = Responder::start(&[GSI.0 as u8], Handler::Ends, |vm| {
        KvmInterrupts::new(vm.clone()).unwrap()
    });
    device(&interrupts);
}

/// Runs `round` until it is warm, then counts what it costs.
fn cost_of(mut round: impl FnMut()) -> (u64, testkit::process::ThreadIo) {
    (0..100).for_each(|_| round());
    let (allocations, io) = (allocations_on_this_thread(), thread_io());
    (0..ROUNDS).for_each(|_| round());
    let io = thread_io().since(io);
    // What asking for the system calls allocates is not the round's.
    (allocations_on_this_thread() - allocations, io)
}

fn by_eventfd(mode: WaitMode, reads: Option<u64>) {
    with_guest(|interrupts| {
        let line = interrupts.resample_source(GSI, "device").unwrap();
        let eoi = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let listener = Listener::fd(eoi.try_clone().unwrap());
        let _guard = interrupts.subscribe(line.key().into(), listener).unwrap();
        let mut waiter = Waiter::new(mode);
        let (allocations, io) = cost_of(|| {
            line.assert().unwrap();
            assert_eq!(waiter.wait(eoi.as_fd()).unwrap(), 1);
        });
        assert_eq!(allocations, 0);
        assert_eq!(io.writes, ROUNDS, "one write for each assert");
        if let Some(reads) = reads {
            assert_eq!(io.reads, reads * ROUNDS, "one read for each EOI");
        }
    });
}

fn by_callback() {
    with_guest(|interrupts| {
        let line = interrupts.resample_source(GSI, "device").unwrap();
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        let listener = Listener::callback(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let _guard = interrupts.subscribe(line.key().into(), listener).unwrap();
        let (allocations, io) = cost_of(|| {
            line.assert().unwrap();
            assert_eq!(interrupts.dispatch(None).unwrap(), 1);
        });
        assert_eq!(told.load(Ordering::Relaxed), ROUNDS as u32 + 100);
        assert_eq!(allocations, 0);
        assert_eq!(
            (io.writes, io.reads),
            (ROUNDS, 0),
            "epoll reports each signal as an edge, so none is read"
        );
    });
}
