// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What dispatch costs in allocations and system calls, and what a registration leaves behind. One at a time: file
//! descriptors are counted for the whole process.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use ioevent::{IoeventBus, Length, Match, Path, Registration, Space};
use rustix::io::Errno as Code;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::backends::{Books, Call, Faulty};
use support::guest::{Guest, Setup, vm};
use support::{Doorbell, eventfd};
use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
use testkit::counter::count;
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::process::{fds, thread_io};
use vmm_sys_util::eventfd::EventFd;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    Suite::new("hot_path")
        .serial()
        .test("dispatch_does_not_allocate", &[], dispatch_does_not_allocate)
        .test("dispatch_is_one_write", &[], dispatch_is_one_write)
        .test(
            "a_full_counter_never_stops_a_vcpu",
            &[],
            a_full_counter_never_stops_a_vcpu,
        )
        .test("model/no_fd_is_left", &[], || {
            no_fd_is_left(IoeventBus::new(Books::default()))
        })
        .test("kernel/no_fd_is_left", &[Need::Kvm], || {
            let mut guest = Guest::new(Setup::Kernel);
            no_fd_is_left(IoeventBus::new(ioevent::Kvm::new(vm(&mut guest))));
        })
        .test("model/row_144_without_a_free_fd", &[], || {
            without_a_free_fd(IoeventBus::new(Books::default()));
        })
        .test("kernel/row_144_without_a_free_fd", &[Need::Kvm], || {
            let mut guest = Guest::new(Setup::Kernel);
            without_a_free_fd(IoeventBus::new(ioevent::Kvm::new(vm(&mut guest))));
        })
        .run()
}

fn fan(bus: &IoeventBus, event: &Arc<EventFd>) -> Vec<Registration> {
    let lone = (0..1000).map(|n| Match::mmio(0x1000 * n, Length::Bytes4));
    let fan = (0..1000).map(|n| Match::pio(0x300, Length::Bytes2).with_datamatch(n));
    bus.register_all(lone.chain(fan).map(|at| (at, event.clone()))).unwrap()
}

fn dispatch_does_not_allocate() {
    let bus = IoeventBus::userspace();
    let event = eventfd();
    let _registrations = fan(&bus, &event);
    // The first call of a thread makes the place where it announces which table it reads.
    assert!(!bus.dispatch(Space::Mmio, 1, &[0; 4]).unwrap());
    let before = allocations_on_this_thread();
    for n in 0..1000u16 {
        assert!(bus.dispatch(Space::Mmio, u64::from(n) * 0x1000, &[0; 4]).unwrap());
        assert!(bus.dispatch(Space::Pio, 0x300, &n.to_ne_bytes()).unwrap());
        assert!(!bus.dispatch(Space::Mmio, u64::from(n) * 0x1000, &[0; 2]).unwrap());
        assert!(!bus.dispatch(Space::Pio, 0x300, &(n + 1000).to_ne_bytes()).unwrap());
    }
    assert_eq!(allocations_on_this_thread() - before, 0);
    assert_eq!(count(event.as_ref()), 2000);
}

fn dispatch_is_one_write() {
    let bus = IoeventBus::userspace();
    let event = eventfd();
    let _registrations = fan(&bus, &event);
    let before = thread_io();
    for n in 0..100 {
        bus.dispatch(Space::Mmio, n * 0x1000, &[0; 4]).unwrap();
    }
    let io = thread_io().since(before);
    assert_eq!((io.reads, io.writes), (0, 100));
    let before = thread_io();
    for n in 0..100 {
        bus.dispatch(Space::Mmio, n * 0x1000 + 4, &[0; 4]).unwrap();
        bus.find(Space::Mmio, n * 0x1000, &[0; 4]).unwrap();
    }
    let io = thread_io().since(before);
    assert_eq!((io.reads, io.writes), (0, 0));
}

/// The counter is full, because somebody who shares the eventfd made it so. The write would wait for a reader, and the
/// vCPU with it: the trial would hang.
fn a_full_counter_never_stops_a_vcpu() {
    let bus = IoeventBus::userspace();
    let event = Arc::new(EventFd::new(0).unwrap());
    let registration = bus.register(Match::mmio(0, Length::Any), event.clone()).unwrap();
    event.write(u64::MAX - 2).unwrap();
    for _ in 0..3 {
        assert!(bus.dispatch(Space::Mmio, 0, &[0]).unwrap());
    }
    assert_eq!(event.read().unwrap(), u64::MAX - 1);
    registration.remove().unwrap();
}

fn no_fd_is_left(bus: IoeventBus) {
    let at = |n: u64| Match::mmio(0xd000_0000 + 0x1000 * n, Length::Bytes4);
    let bus_without_a_vm = IoeventBus::new(Faulty::new(Books::default(), |call| match call {
        Call::Assign(_) => Some(Code::MFILE),
        Call::Deassign(_) => None,
    }));
    let before = fds();
    for bus in [bus, bus_without_a_vm] {
        let doorbells: Vec<_> = (0..10).map(|n| Doorbell::on(&bus, at(n))).collect();
        assert_eq!(fds(), before + 10, "a registration needs no fd but its event");
        // Nor does one more on the same event.
        let event = doorbells[0].event.clone();
        let more = bus.register_all((10..20).map(|n| (at(n), event.clone()))).unwrap();
        assert_eq!(fds(), before + 10);
        bus.register_all((15..25).map(|n| (at(n), eventfd()))).unwrap_err();
        assert_eq!(fds(), before + 10, "after a set that failed");
        let mut registrations: Vec<_> = doorbells.into_iter().map(|doorbell| doorbell.registration).collect();
        assert_eq!(fds(), before + 10, "a registration keeps its event");
        bus.relocate(&mut registrations, at(0).address, at(100).address)
            .unwrap();
        bus.relocate(&mut registrations, at(100).address, at(10).address)
            .unwrap_err();
        drop(event);
        drop(more);
        assert_eq!(fds(), before + 10);
        registrations.pop().unwrap().remove().unwrap();
        assert_eq!(fds(), before + 9, "an event goes with its last registration");
        drop(registrations);
        assert_eq!(fds(), before);
    }
}

/// The process can open no fd any more: each call of the bus works all the same.
fn without_a_free_fd(bus: IoeventBus) {
    let event = eventfd();
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let refused = EventFd::new(0).is_err();
    let outcome = (|| {
        let one = bus.register(Match::mmio(0x1000, Length::Bytes4), event.clone())?;
        let mut set = bus.register_all((2..5).map(|n| (Match::mmio(0x1000 * n, Length::Any), event.clone())))?;
        bus.relocate(&mut set, 0x2000, 0x8000)?;
        let paths: Vec<_> = set.iter().map(Registration::path).collect();
        let rang = bus.dispatch(Space::Mmio, 0x8000, &[0])?;
        set.into_iter().chain([one]).try_for_each(Registration::remove)?;
        Ok::<_, ioevent::Error>((paths, rang))
    })();
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(refused, "an eventfd could be made");
    assert_eq!(outcome.unwrap(), (vec![Path::Kernel; 3], true));
    assert_eq!(count(event.as_ref()), 1);
}
