// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts of the VMM on a real KVM, taken apart and put together in ways that the program does not offer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::process::{fds, thread_io};
use vmm_ref::composition::options::{Composition, Controller, Eoi, Source, Wait, Without};
use vmm_ref::roundtrip::guest::program::{Idle, Program};
use vmm_ref::roundtrip::machine::{Machine, Running};
use vmm_ref::roundtrip::parts::Parts;
use vmm_ref::roundtrip::run::run;
use vmm_ref::roundtrip::summary::{Options, Outcome, Summary};
use vmm_ref::roundtrip::traffic::{Progress, Traffic, WATCHED};
use vmm_ref::vm::irqchip::Controllers;
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};
use vmm_ref::vm::stall::{STALL_LIMIT, StallDetector};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    let needs = [Need::GenuinePicEoi];
    Suite::new("vmm-ref::library")
        .serial()
        .test(
            "a_round_trip_is_one_write_and_one_read_and_no_allocation",
            &needs,
            || {
                costs_nothing_but_calls(
                    composition(Source::Resample, Eoi::Resamplefd, Wait::Block),
                    Some((1, 1)),
                )
            },
        )
        .test("notify_only_costs_the_same", &needs, || {
            costs_nothing_but_calls(composition(Source::Resample, Eoi::Gsi, Wait::Block), Some((1, 1)))
        })
        .test("polling_allocates_nothing", &needs, || {
            costs_nothing_but_calls(composition(Source::Resample, Eoi::Resamplefd, Wait::Spin), None);
            costs_nothing_but_calls(composition(Source::Resample, Eoi::Resamplefd, Wait::Adaptive), None);
        })
        .test(
            "irq_line_reads_and_writes_no_eventfd_and_allocates_nothing",
            &needs,
            || costs_nothing_but_calls(composition(Source::Line, Eoi::Gsi, Wait::Block), Some((0, 0))),
        )
        .test(
            "a_blocking_wait_sleeps_and_a_spinning_one_does_not",
            &needs,
            waits_as_asked,
        )
        .test("stopping_is_not_taken_for_an_eoi", &needs, stopping_is_no_eoi)
        .test("a_run_leaves_no_fd_and_no_thread_behind", &needs, leaves_nothing_behind)
        .test(
            "a_refused_composition_leaves_no_fd_behind",
            &needs,
            refusal_leaves_nothing_behind,
        )
        .test(
            "an_interrupt_that_nobody_raised_is_spurious",
            &needs,
            a_phantom_is_counted,
        )
        .test(
            "a_request_whose_device_is_never_told_is_lost",
            &needs,
            a_lost_eoi_is_counted,
        )
        .test("dropping_a_machine_stops_its_guest", &needs, dropping_stops)
        .run()
}

fn composition(source: Source, eoi: Eoi, wait: Wait) -> Composition {
    Composition {
        source,
        eoi,
        wait,
        ..Composition::in_kernel(Controller::Pic)
    }
}

/// A guest that runs, and the parts of its composition.
fn set_up(
    composition: &Composition,
    without: Option<Without>,
) -> (Running, Controllers, vmm_ref::roundtrip::guest::status::Status, Parts) {
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let program = Program {
        controller: composition.controller,
        devices: composition.sharers,
        edu: false,
        acknowledge: composition.acknowledge(),
        without,
        idle: Idle::Halt,
    };
    let machine = Machine::new(&kvm, &program.assemble().unwrap(), composition.irqchip).unwrap();
    let controllers = machine.controllers().unwrap();
    let status = machine.status().unwrap();
    let parts = Parts::compose(&controllers, &status, composition).unwrap();
    let devices = Arc::clone(&parts.devices);
    let running = machine
        .start(&controllers, move || {
            Ok(devices.iter().try_for_each(|device| device.update().map(drop))?)
        })
        .unwrap();
    (running, controllers, status, parts)
}

fn options(composition: Composition, count: u64) -> Options {
    Options {
        composition,
        count,
        without: None,
        swap_every: None,
    }
}

/// `calls` are the writes and reads of each round trip, where they are to be counted.
fn costs_nothing_but_calls(composition: Composition, calls: Option<(u64, u64)>) {
    const ROUNDS: u64 = 1000;
    let (running, _, _, mut parts) = set_up(&composition, None);
    // The round trips that are watched come first and are not what is measured.
    let progress = Progress::default();
    Traffic::new(Arc::clone(&parts.devices), WATCHED + 100)
        .run(&mut parts.eois, &progress)
        .unwrap();
    let mut traffic = Traffic::new(Arc::clone(&parts.devices), ROUNDS).unwatched();
    let (allocations, io) = (allocations_on_this_thread(), thread_io());
    traffic.run(&mut parts.eois, &progress).unwrap();
    let io = thread_io().since(io);
    let allocations = allocations_on_this_thread() - allocations;
    running.stop().unwrap();
    assert_eq!(traffic.done, ROUNDS);
    assert_eq!(allocations, 0);
    if let Some((writes, reads)) = calls {
        assert_eq!((io.writes, io.reads), (writes * ROUNDS, reads * ROUNDS));
    }
}

/// How often the calling thread has gone to sleep.
fn sleeps() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

fn waits_as_asked() {
    const ROUNDS: u64 = 500;
    let sleeps_of = |source, eoi, wait| {
        let (running, _, _, mut parts) = set_up(&composition(source, eoi, wait), None);
        let mut traffic = Traffic::new(Arc::clone(&parts.devices), ROUNDS).unwatched();
        let before = sleeps();
        traffic.run(&mut parts.eois, &Progress::default()).unwrap();
        let sleeps = sleeps() - before;
        running.stop().unwrap();
        sleeps
    };
    for (source, eoi) in [(Source::Resample, Eoi::Resamplefd), (Source::Line, Eoi::Gsi)] {
        let (blocking, spinning) = (sleeps_of(source, eoi, Wait::Block), sleeps_of(source, eoi, Wait::Spin));
        assert!(blocking > ROUNDS / 2, "{source:?}: blocking slept {blocking} times");
        assert!(spinning < ROUNDS / 10, "{source:?}: spinning slept {spinning} times");
    }
}

fn stopping_is_no_eoi() {
    for (source, eoi) in [(Source::Resample, Eoi::Resamplefd), (Source::Line, Eoi::Gsi)] {
        let (running, _controllers, _, mut parts) = set_up(&composition(source, eoi, Wait::Block), None);
        parts.eois.stop().stop().unwrap();
        assert_eq!(parts.eois.try_wait().unwrap(), 0, "{source:?}");
        assert_eq!(parts.eois.wait().unwrap(), 0, "{source:?}");
        running.stop().unwrap();
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn leaves_nothing_behind() {
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let never = AtomicBool::new(false);
    let once = |source, eoi| {
        let options = options(composition(source, eoi, Wait::Block), 50);
        let summary = run(Some(&kvm), &options, &never, &mut |_| {}).unwrap();
        assert_eq!(summary.outcome, Outcome::Ok);
    };
    // What is made once for a process is made by now.
    once(Source::Resample, Eoi::Resamplefd);
    let (fds_before, threads_before) = (fds(), threads());
    for (source, eoi) in [
        (Source::Resample, Eoi::Resamplefd),
        (Source::Resample, Eoi::Gsi),
        (Source::Line, Eoi::Gsi),
    ] {
        once(source, eoi);
        assert_eq!(fds(), fds_before, "{source:?} {eoi:?}");
        // KVM's own threads of a VM end a moment after it.
        let mut stall = StallDetector::new(STALL_LIMIT);
        while threads() > threads_before {
            assert!(!stall.is_stalled(0), "{source:?} {eoi:?}: a thread is left");
            thread::yield_now();
        }
    }
}

fn refusal_leaves_nothing_behind() {
    let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
    let before = fds();
    for refused in [
        composition(Source::Line, Eoi::Resamplefd, Wait::Block),
        Composition {
            sharers: 0,
            ..Composition::in_kernel(Controller::Pic)
        },
    ] {
        run(Some(&kvm), &options(refused, 1), &AtomicBool::new(false), &mut |_| {}).unwrap_err();
        assert_eq!(fds(), before);
    }
}

fn a_phantom_is_counted() {
    let composition = Composition::in_kernel(Controller::Pic);
    let (running, controllers, status, mut parts) = set_up(&composition, None);
    let gsi = composition.controller.gsi();
    let stray = controllers
        .source(Source::Resample, gsi, "nobody's".to_owned())
        .unwrap();
    stray.assert().unwrap();
    // It is over when the devices are told of its EOI.
    assert_eq!(parts.eois.wait().unwrap(), 1);
    let mut traffic = Traffic::new(Arc::clone(&parts.devices), 10);
    traffic.run(&mut parts.eois, &Progress::default()).unwrap();
    running.stop().unwrap();
    let summary = Summary::new(
        &options(composition, 10),
        &traffic,
        &parts.devices,
        &status,
        false,
        None,
        false,
    );
    assert_eq!((summary.asserted, summary.serviced, summary.lost), (10, 10, 0));
    assert_eq!((summary.handler_runs, summary.found_nothing), (11, 1));
    assert_eq!((summary.spurious, summary.outcome), (1, Outcome::Spurious));
}

fn a_lost_eoi_is_counted() {
    let composition = Composition::in_kernel(Controller::Pic);
    // A guest that does not end its interrupt is, to the device, an EOI that is lost.
    let (running, _, status, parts) = set_up(&composition, Some(Without::Eoi));
    let Parts { devices, mut eois, .. } = parts;
    let (stop, mut traffic) = (eois.stop(), Traffic::new(Arc::clone(&devices), 10));
    let thread = thread::spawn(move || {
        traffic.run(&mut eois, &Progress::default()).unwrap();
        traffic
    });
    let mut stall = StallDetector::new(STALL_LIMIT);
    while devices[0].raised() == 0 || !devices[0].is_served() {
        assert!(!stall.is_stalled(0), "the handler does not run");
        thread::yield_now();
    }
    stop.stop().unwrap();
    let traffic = thread.join().unwrap();
    running.stop().unwrap();
    let summary = Summary::new(
        &options(composition, 10),
        &traffic,
        &devices,
        &status,
        false,
        None,
        false,
    );
    assert_eq!((summary.asserted, summary.serviced, summary.resampled), (1, 1, 0));
    assert_eq!((summary.lost, summary.outcome), (1, Outcome::Lost));
}

fn dropping_stops() {
    let (running, _, status, mut parts) = set_up(&Composition::in_kernel(Controller::Pic), None);
    let before = threads();
    drop(running);
    assert!(threads() < before, "the vCPU's thread is still there");
    parts.devices[0].request().unwrap();
    // Nobody takes the interrupt: there is nothing to wait for.
    assert_eq!(parts.eois.try_wait().unwrap(), 0);
    assert_eq!(status.handler_runs(), 0);
}
