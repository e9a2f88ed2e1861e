// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What testkit counts, it counts exactly: allocations, open fds, read and write system calls, eventfd counters.
#![allow(clippy::unwrap_used, reason = "a panic is how a trial fails")]

use std::hint::black_box;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
use testkit::counter::{count, wait_count};
use testkit::harness::Suite;
use testkit::process::{ThreadIo, fds, thread_io};
use vmm_sys_util::eventfd::EventFd;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    Suite::new("counting")
        .serial()
        .test("allocations_of_this_thread_only", &[], allocations)
        .test("fds_open_now", &[], open_fds)
        .test("reads_and_writes_of_this_thread_only", &[], reads_and_writes)
        .test("counter_is_taken_without_blocking", &[], counter_taken)
        .test("counter_is_waited_for_until_the_deadline", &[], counter_waited)
        .run()
}

fn allocations() {
    let before = allocations_on_this_thread();
    assert_eq!(allocations_on_this_thread(), before, "asking costs nothing");
    let mut grows = black_box(vec![0_u8; 1]);
    grows.reserve_exact(black_box(1000));
    assert_eq!(
        allocations_on_this_thread() - before,
        2,
        "one allocation, one reallocation"
    );
    drop(grows);
    assert_eq!(allocations_on_this_thread() - before, 2, "freeing is not allocating");
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let before = allocations_on_this_thread();
            drop(black_box(Box::new(1)));
            allocations_on_this_thread() - before
        });
        let before = allocations_on_this_thread();
        let theirs = other.join().unwrap();
        // join itself may allocate nothing on this thread.
        assert_eq!((allocations_on_this_thread() - before, theirs), (0, 1));
    });
}

fn open_fds() {
    let before = fds();
    let event = EventFd::new(0).unwrap();
    let copy = event.try_clone().unwrap();
    assert_eq!(fds(), before + 2);
    drop((event, copy));
    assert_eq!(fds(), before);
}

fn reads_and_writes() {
    let event = EventFd::new(0).unwrap();
    let before = thread_io();
    assert_eq!(thread_io().since(before), ThreadIo { reads: 0, writes: 0 });
    let before = thread_io();
    for _ in 0..3 {
        event.write(1).unwrap();
    }
    event.read().unwrap();
    assert_eq!(thread_io().since(before), ThreadIo { reads: 1, writes: 3 });
    let before = thread_io();
    thread::scope(|scope| scope.spawn(|| event.write(1).unwrap()).join().unwrap());
    assert_eq!(thread_io().since(before), ThreadIo { reads: 0, writes: 0 });
}

fn counter_taken() {
    // Blocking: a read of an empty one would never return.
    let event = EventFd::new(0).unwrap();
    assert_eq!(count(&event), 0);
    event.write(3).unwrap();
    event.write(4).unwrap();
    let owned = rustix::io::dup(testkit::counter::HoldsEventFd::eventfd(&event)).unwrap();
    assert_eq!(count(&owned), 7);
    assert_eq!(count(&owned.as_fd()), 0);
}

fn counter_waited() {
    let event = EventFd::new(0).unwrap();
    let start = Instant::now();
    assert_eq!(wait_count(&event, Duration::from_millis(20)), 0);
    assert!(start.elapsed() >= Duration::from_millis(20));
    thread::scope(|scope| {
        scope.spawn(|| event.write(2).unwrap());
        assert_eq!(wait_count(&event, Duration::from_secs(30)), 2);
    });
}
