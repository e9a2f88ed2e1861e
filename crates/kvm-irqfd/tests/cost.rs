// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a round trip costs in steady state: no allocation, and the system calls of a loop written by hand. A guest answers
//! each interrupt with the EOI of its 8259 and does nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use iced_x86::code_asm::*;
use interrupt_core::{EoiNotifier, Gsi, LevelSource, Listener};
use kvm_irqfd::{KvmInterrupts, WaitMode, Waiter};
use rustix::event::{EventfdFlags, eventfd};
use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
use testkit::harness::Suite;
use testkit::machine::{End, Machine, PicChip};
use testkit::need::Need;
use testkit::process::thread_io;
use testkit::program::{DATA, EXIT_PORT, PROGRAM, assemble};
use vm_memory::{Bytes, GuestAddress};

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
    const STOP: u64 = DATA;
    const HANDLER: u64 = PROGRAM + 0x100;
    let mut machine = Machine::full();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    machine.set_lvt0_extint(true);
    machine.init_pics(0x20, false);
    machine.set_elcr(PicChip::Master, 1 << GSI.0);
    machine.set_pic_mask(PicChip::Master, !(1 << GSI.0));
    let idle = assemble(PROGRAM, |a| {
        let mut again = a.create_label();
        a.sti()?;
        a.set_label(&mut again)?;
        a.cmp(byte_ptr(STOP as u32), 0)?;
        a.je(again)?;
        a.out(i32::from(EXIT_PORT), al)
    });
    let handler = assemble(HANDLER, |a| {
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iret()
    });
    machine.load(PROGRAM, &idle);
    machine.load(HANDLER, &handler);
    machine.set_handler(0x20 + GSI.0 as u8, HANDLER);
    let memory = machine.memory().clone();
    thread::scope(|scope| {
        let guest = scope.spawn(move || machine.run(PROGRAM).end);
        device(&interrupts);
        memory.write_obj(1u8, GuestAddress(STOP)).unwrap();
        assert!(matches!(guest.join().unwrap(), End::Exit(_)));
    });
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
