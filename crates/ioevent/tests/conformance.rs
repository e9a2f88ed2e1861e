// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's store does to a registered event: one body, run where KVM's ioeventfds take the stores, where KVM
//! refuses half of them, where every store is trapped, and without KVM. Rows and cases are those of
//! docs/conformance.md.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use ioevent::{
    DoorbellOverlay, Error, IoeventBus, Length, Match, Path, Refusal, Rejection, ReservedRange, Space, UnassignedRange,
};
use log::Level;
use rustix::io::Errno as Code;
use support::guest::{Guest, Setup, vm};
use support::{Doorbell, eventfd, logged};
use testkit::counter::count;
use testkit::harness::Suite;
use testkit::ioctl::{self, KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_DEASSIGN, KVM_IOEVENTFD_FLAG_PIO};
use testkit::machine::Irqchip;
use testkit::need::Need;
use testkit::program::{DATA, EXIT_PORT, assemble};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::EventFd;

const A: u64 = 0xd000_0000;

/// A name and a body.
type Row = (&'static str, fn(Guest));

fn main() -> ExitCode {
    logged::start();
    let everywhere: [Row; 13] = [
        ("row_106_bad_arguments", bad_arguments),
        ("row_107_any_length", any_length_is_accepted_and_has_no_datamatch),
        ("row_108_collisions", collisions),
        ("row_111_exact_match_only", exact_match_only),
        (
            "row_112_datamatch_beyond_the_length",
            datamatch_beyond_the_length_is_rejected,
        ),
        ("row_113_any_length_signals_each_width", any_length_signals_each_width),
        ("row_115_reserved_ranges", reserved_ranges_are_kept_free),
        ("row_117_all_or_nothing", a_bad_one_at_each_position_registers_none),
        ("row_121_many_addresses_and_a_fan", many_addresses_and_a_fan),
        ("case_o1_to_o11_and_o13", ioevent_cases),
        ("every_width_and_space", every_width_and_space),
        (
            "several_registrations_on_one_eventfd",
            several_registrations_on_one_eventfd,
        ),
        ("after_removal_a_store_is_nobodys", after_removal_a_store_is_nobodys),
    ];
    let guests: [Row; 2] = [
        ("row_111_reads_never_match", reads_never_match),
        ("row_114_rep_outs", rep_outs_signals_for_each_element),
    ];
    let mut suite = Suite::new("conformance");
    for setup in Setup::ALL {
        for (name, body) in everywhere {
            suite = suite.test(format!("{}/{name}", setup.name()), setup.needs(), move || {
                body(Guest::new(setup))
            });
        }
        // Before Linux 6.18 each registration waits for the kernel's readers.
        suite = suite.test_within(
            Duration::from_secs(240),
            format!("{}/sixteen_thousand_registrations", setup.name()),
            setup.needs(),
            move || sixteen_thousand_registrations(Guest::new(setup)),
        );
        if setup != Setup::Model {
            for (name, body) in guests {
                suite = suite.test(format!("{}/{name}", setup.name()), setup.needs(), move || {
                    body(Guest::new(setup))
                });
            }
            suite = suite.test(
                format!("{}/row_122_a_store_becomes_an_interrupt", setup.name()),
                &[Need::FullIrqchip],
                move || a_store_becomes_an_interrupt(Guest::with_irqchip(setup, Irqchip::Kernel)),
            );
        }
    }
    suite
        .test(
            "kernel/row_106_the_kernels_own_answers",
            &[Need::Kvm],
            the_kernels_own_answers,
        )
        .test(
            "kernel/row_110_exactly_this_is_removed",
            &[Need::Kvm],
            exactly_this_is_removed,
        )
        .test(
            "kernel/row_112_never_matches",
            &[Need::Kvm],
            the_kernel_never_matches_beyond_the_length,
        )
        .test(
            "kernel/row_115_ram_and_ioapic",
            &[Need::FullIrqchip],
            what_the_kernel_gets_wrong_in_reserved_ranges,
        )
        .test(
            "kernel/row_119_foreign_registration",
            &[Need::Kvm],
            a_foreign_registration_is_a_refusal,
        )
        .test("kernel/row_121_the_warning", &[Need::Kvm], a_fan_is_warned_of_once)
        .test(
            "kernel/overlapping_registrations_that_kvm_misses",
            &[Need::Kvm],
            overlapping_registrations_that_kvm_misses,
        )
        .test("model/front_end", &[], front_end)
        .run()
}

/// The registration takes the store: one signal, and an exit only where the exit path serves it.
#[track_caller]
fn rings(guest: &mut Guest, doorbell: &Doorbell, address: u64, data: &[u8]) {
    let seen = guest.store(doorbell.registration.at().space, address, data);
    guest.assert_taken(&seen, doorbell.registration.path());
    assert_eq!(doorbell.rings(), 1, "{:?} {}", guest.setup, doorbell.registration.at());
}

/// Nobody takes the store: it exits, and no event is signalled.
#[track_caller]
fn passes(guest: &mut Guest, doorbells: &[&Doorbell], space: Space, address: u64, data: &[u8]) {
    let seen = guest.store(space, address, data);
    guest.assert_passed(&seen, space, address, data);
    for doorbell in doorbells {
        assert_eq!(doorbell.rings(), 0, "{:?} {}", guest.setup, doorbell.registration.at());
    }
}

fn bad_arguments(guest: Guest) {
    assert_eq!(Length::try_from(3), Err(Rejection::InvalidLength(3)));
    assert_eq!(Length::try_from(16), Err(Rejection::InvalidLength(16)));

    let overflow = Match::mmio(u64::MAX - 3, Length::Bytes4);
    let error = guest.bus.register(overflow, eventfd()).unwrap_err();
    assert_eq!(
        error,
        Error::Rejected {
            at: overflow,
            why: Rejection::Overflow
        }
    );
    assert_eq!(error.errno().errno(), Code::INVAL.raw_os_error());
    assert_eq!(error.at(), overflow);

    let at = Match::mmio(A, Length::Bytes4);
    let (_, pipe) = rustix::pipe::pipe().unwrap();
    // SAFETY: the fd was just given up by its owner.
    let pipe = Arc::new(unsafe { EventFd::from_raw_fd(pipe.into_raw_fd()) });
    let error = guest.bus.register(at, pipe.clone()).unwrap_err();
    assert_eq!((error.at(), error.errno().errno()), (at, Code::INVAL.raw_os_error()));

    // A number that no file has: above the limit, so that no other test of this process can open it meanwhile.
    // SAFETY: nothing owns the number, and `ManuallyDrop` keeps it from being closed.
    let closed = ManuallyDrop::new(Arc::new(unsafe { EventFd::from_raw_fd(i32::MAX) }));
    let error = guest.bus.register(at, Arc::clone(&closed)).unwrap_err();
    assert_eq!((error.at(), error.errno().errno()), (at, Code::BADF.raw_os_error()));

    // The length is reported before the fd.
    let error = guest.bus.register(overflow, Arc::clone(&closed)).unwrap_err();
    assert_eq!(error.errno().errno(), Code::INVAL.raw_os_error());

    let port = Match::pio(0xfffe, Length::Bytes4);
    let error = guest.bus.register(port, eventfd()).unwrap_err();
    assert_eq!(
        error,
        Error::Rejected {
            at: port,
            why: Rejection::PortBeyond16Bits
        }
    );

    // Nothing of all this is left.
    drop(guest.bus.register(at, eventfd()).unwrap());
    assert_eq!(guest.bus.find(Space::Mmio, A, &[0; 4]), None);
}

fn the_kernels_own_answers() {
    let mut guest = Guest::new(Setup::Kernel);
    let vm = vm(&mut guest);
    let event = eventfd();
    let (_, pipe) = rustix::pipe::pipe().unwrap();
    let assign = |fd, address, length, flags| ioctl::ioeventfd(&vm, fd, address, length, flags, 0);
    let fd = event.as_raw_fd();
    assert_eq!(assign(fd, A, 3, 0), Err(Code::INVAL));
    assert_eq!(assign(fd, A, 16, 0), Err(Code::INVAL));
    assert_eq!(assign(fd, u64::MAX - 3, 4, 0), Err(Code::INVAL));
    assert_eq!(assign(fd, A, 4, 1 << 31), Err(Code::INVAL));
    assert_eq!(assign(i32::MAX, A, 4, 0), Err(Code::BADF));
    assert_eq!(assign(pipe.as_raw_fd(), A, 4, 0), Err(Code::INVAL));
    assert_eq!(assign(i32::MAX, A, 3, 0), Err(Code::INVAL));
    assert_eq!(assign(i32::MAX, A, 4, 1 << 31), Err(Code::INVAL));
    assert_eq!(assign(fd, A, 0, KVM_IOEVENTFD_FLAG_DATAMATCH), Err(Code::INVAL));
    // What the library rejects and the kernel takes.
    assert_eq!(assign(fd, 0xfffe, 4, KVM_IOEVENTFD_FLAG_PIO), Ok(0));
    assert_eq!(assign(fd, 0x1_0000_0000, 4, KVM_IOEVENTFD_FLAG_PIO), Ok(0));
}

fn any_length_is_accepted_and_has_no_datamatch(guest: Guest) {
    for at in [Match::mmio(A, Length::Any), Match::pio(0x300, Length::Any)] {
        let error = guest.bus.register(at.with_datamatch(0), eventfd()).unwrap_err();
        assert_eq!(
            error,
            Error::Rejected {
                at: at.with_datamatch(0),
                why: Rejection::DatamatchWithoutLength
            }
        );
        assert_eq!(error.errno().errno(), Code::INVAL.raw_os_error());
        guest.bus.register(at, eventfd()).unwrap().remove().unwrap();
    }
}

fn collisions(mut guest: Guest) {
    let four = Match::mmio(A, Length::Bytes4);
    let first = Doorbell::on(&guest.bus, four);
    for at in [four, four.with_datamatch(7), Match::mmio(A, Length::Any)] {
        let error = guest.bus.register(at, eventfd()).unwrap_err();
        assert_eq!(error, Error::Collision { at, with: four });
        assert_eq!(error.errno().errno(), Code::EXIST.raw_os_error());
        // The same event collides as well as another one.
        guest.bus.register(at, first.event.clone()).unwrap_err();
    }
    let beside = Doorbell::on(&guest.bus, Match::mmio(A, Length::Bytes2));
    let overlapping = Doorbell::on(&guest.bus, Match::mmio(A + 2, Length::Bytes4));
    let port = Doorbell::on(&guest.bus, Match::pio(0x300, Length::Bytes4));
    let eight = Match::mmio(A + 0x10, Length::Bytes4).with_datamatch(8);
    let eight = Doorbell::on(&guest.bus, eight);
    let nine = Doorbell::on(&guest.bus, eight.registration.at().with_datamatch(9));
    for at in [
        Match::mmio(A + 0x10, Length::Bytes4),
        Match::mmio(A + 0x10, Length::Any),
    ] {
        guest.bus.register(at, eventfd()).unwrap_err();
    }

    assert_eq!(guest.bus.find(Space::Mmio, A, &[0; 2]), Some(beside.registration.at()));
    rings(&mut guest, &overlapping, A + 2, &[0; 4]);
    rings(&mut guest, &port, 0x300, &[0; 4]);
    rings(&mut guest, &eight, A + 0x10, &8u32.to_ne_bytes());
    rings(&mut guest, &nine, A + 0x10, &9u32.to_ne_bytes());
    for silent in [&first, &beside] {
        assert_eq!(silent.rings(), 0);
    }
}

/// KVM searches its bus by halving, and takes a registration that covers the store for found; when that is not the one
/// that matches, it only looks at the neighbours that cover it too. Here the 8 bytes are met first, and the single byte
/// stands between them and the 4 bytes. The store exits although KVM accepted its registration, and is served from there:
/// the library's promise holds where the kernel's does not.
fn overlapping_registrations_that_kvm_misses() {
    let mut guest = Guest::new(Setup::Kernel);
    let _before = [0x20, 0x10].map(|n| Doorbell::on(&guest.bus, Match::mmio(A - n, Length::Bytes4)));
    let _eight = Doorbell::on(&guest.bus, Match::mmio(A, Length::Bytes8));
    let _one = Doorbell::on(&guest.bus, Match::mmio(A + 1, Length::Bytes1));
    let four = Doorbell::on(&guest.bus, Match::mmio(A + 4, Length::Bytes4));
    assert_eq!(four.registration.path(), Path::Kernel);
    let seen = guest.store(Space::Mmio, A + 4, &[0; 4]);
    assert_eq!((seen.unmatched.len(), four.rings()), (0, 1));
    println!(
        "{} exits, where a registration that KVM finds has none",
        seen.dispatched
    );
}

fn exact_match_only(mut guest: Guest) {
    let seven = 7u32.to_ne_bytes();
    for (space, base) in [(Space::Mmio, A + 0x10), (Space::Pio, 0x300)] {
        let at = Match {
            space,
            address: base,
            length: Length::Bytes4,
            datamatch: Some(7),
        };
        let doorbell = Doorbell::on(&guest.bus, at);
        rings(&mut guest, &doorbell, base, &seven);
        let not_it: [(u64, &[u8]); 7] = [
            (base, &8u32.to_ne_bytes()),
            (base, &[7]),
            (base, &[7, 0]),
            (base + 1, &[7]),
            (base + 2, &[7, 0]),
            (base - 2, &seven),
            (base + 2, &seven),
        ];
        for (address, data) in not_it {
            passes(&mut guest, &[&doorbell], space, address, data);
        }
        rings(&mut guest, &doorbell, base, &seven);
    }
}

fn reads_never_match(mut guest: Guest) {
    let mmio = Doorbell::on(&guest.bus, Match::mmio(A, Length::Any));
    let pio = Doorbell::on(&guest.bus, Match::pio(0x300, Length::Any));
    for length in [1, 2, 4] {
        for (space, address) in [(Space::Mmio, A), (Space::Pio, 0x300)] {
            let seen = guest.read(space, address, length);
            assert_eq!((seen.reads, seen.dispatched, seen.unmatched.len()), (1, 0, 0));
        }
    }
    assert_eq!((mmio.rings(), pio.rings()), (0, 0));
}

fn datamatch_beyond_the_length_is_rejected(guest: Guest) {
    for (length, value) in [
        (Length::Bytes1, 0x100),
        (Length::Bytes2, 0x1_0000),
        (Length::Bytes4, 1 << 32),
    ] {
        for at in [Match::mmio(A, length), Match::pio(0x300, length)] {
            let at = at.with_datamatch(value);
            let error = guest.bus.register(at, eventfd()).unwrap_err();
            assert_eq!(
                error,
                Error::Rejected {
                    at,
                    why: Rejection::DatamatchBeyondLength
                }
            );
            drop(guest.bus.register(at.with_datamatch(value - 1), eventfd()).unwrap());
        }
    }
}

fn the_kernel_never_matches_beyond_the_length() {
    let mut guest = Guest::new(Setup::Kernel);
    let vm = vm(&mut guest);
    let event = eventfd();
    ioctl::ioeventfd(&vm, event.as_raw_fd(), A, 1, KVM_IOEVENTFD_FLAG_DATAMATCH, 0x107).unwrap();
    let seen = guest.store(Space::Mmio, A, &[7]);
    guest.assert_passed(&seen, Space::Mmio, A, &[7]);
    assert_eq!(count(event.as_ref()), 0);
}

fn any_length_signals_each_width(mut guest: Guest) {
    let mmio = Doorbell::on(&guest.bus, Match::mmio(A, Length::Any));
    let pio = Doorbell::on(&guest.bus, Match::pio(0x300, Length::Any));
    let data = [1, 2, 3, 4, 5, 6, 7, 8];
    for width in [1, 2, 4, 8] {
        rings(&mut guest, &mmio, A, &data[..width]);
        passes(&mut guest, &[&mmio], Space::Mmio, A + 4, &data[..width]);
        if width < 8 {
            rings(&mut guest, &pio, 0x300, &data[..width]);
            passes(&mut guest, &[&pio], Space::Pio, 0x304, &data[..width]);
        }
    }
}

fn rep_outs_signals_for_each_element(mut guest: Guest) {
    let at = Match::pio(0x300, Length::Bytes1);
    let any = Doorbell::on(&guest.bus, at);
    guest.machine().load(DATA, &[7, 8, 7, 8, 7]);
    let code = assemble(Guest::PROGRAM, |a| {
        a.mov(si, DATA as u32)?;
        a.mov(dx, 0x300u32)?;
        a.mov(cx, 5)?;
        a.rep().outsb()?;
        a.out(i32::from(EXIT_PORT), al)
    });
    let seen = guest.run(&code);
    let exits = if any.registration.path() == Path::Kernel { 0 } else { 5 };
    assert_eq!((seen.dispatched, seen.unmatched.len()), (exits, 0));
    assert_eq!(any.rings(), 5);

    drop(any);
    let seven = Doorbell::on(&guest.bus, at.with_datamatch(7));
    let seen = guest.run(&code);
    assert_eq!(seen.unmatched.len(), 2, "the 8s");
    assert_eq!(seven.rings(), 3);
}

fn reserved_ranges_are_kept_free(guest: Guest) {
    let ram = ReservedRange::ram(0..=0xffff);
    guest.bus.reserve(&[ram]).unwrap();
    guest.bus.reserve(&ReservedRange::X86_IRQCHIP).unwrap();
    let inside = [
        Match::mmio(0x8000, Length::Any),
        Match::mmio(0xffff, Length::Bytes4),
        Match::mmio(0xfec0_0000, Length::Bytes4),
        Match::mmio(0xfec0_0010, Length::Any),
        Match::mmio(0xfee0_00b0, Length::Bytes4),
        Match::mmio(0xfedf_fffe, Length::Bytes4),
        Match::pio(0x20, Length::Bytes1),
        Match::pio(0x1f, Length::Bytes2),
        Match::pio(0xa1, Length::Any),
        Match::pio(0x4d0, Length::Bytes2),
    ];
    for at in inside {
        match guest.bus.register(at, eventfd()).unwrap_err() {
            Error::Reserved { at: refused, range } => {
                assert_eq!(refused, at);
                assert!(range == ram || ReservedRange::X86_IRQCHIP.contains(&range));
            }
            other => panic!("{at}: {other}"),
        }
    }
    let beside = [
        Match::mmio(0x1_0000, Length::Any),
        Match::mmio(0xfec0_0100, Length::Bytes4),
        Match::mmio(0xfee0_1000, Length::Bytes4),
        Match::pio(0x22, Length::Bytes1),
        Match::pio(0xfec0, Length::Any),
    ];
    let registered = guest.bus.register_all(beside.map(|at| (at, eventfd()))).unwrap();

    // A range over a registration is refused, and leaves nothing behind.
    let late = [
        ReservedRange::ram(0x10_0000..=0x1f_ffff),
        ReservedRange::ram(0..=0x1_0000),
    ];
    let error = guest.bus.reserve(&late).unwrap_err();
    assert_eq!(
        error,
        Error::Occupied {
            at: beside[0],
            range: late[1]
        }
    );
    drop(
        guest
            .bus
            .register(Match::mmio(0x10_0000, Length::Any), eventfd())
            .unwrap(),
    );
    drop(registered);

    guest.bus.unreserve(&ram);
    drop(guest.bus.register(Match::mmio(0x8000, Length::Any), eventfd()).unwrap());
}

fn what_the_kernel_gets_wrong_in_reserved_ranges() {
    let mut guest = Guest::with_irqchip(Setup::Kernel, Irqchip::Kernel);
    let vm = vm(&mut guest);
    let (ram, ioapic) = (eventfd(), eventfd());
    let assign = |event: &EventFd, address| ioctl::ioeventfd(&vm, event.as_raw_fd(), address, 4, 0, 0).unwrap();

    assign(&ram, 0x9000);
    let seen = guest.store(Space::Mmio, 0x9000, &[1, 2, 3, 4]);
    assert_eq!(seen, support::guest::Seen::default(), "RAM takes the store");
    assert_eq!(count(ram.as_ref()), 0, "and the ioeventfd over it never fires");

    // Select register 1, the version. With an ioeventfd over the select register the guest's write is lost.
    const SELECT: u32 = 0xfec0_0000;
    guest.machine().store(SELECT, 1);
    assert_eq!(guest.machine().fetch(SELECT), 1);
    assign(&ioapic, SELECT.into());
    guest.machine().store(SELECT, 0);
    assert_eq!(count(ioapic.as_ref()), 1);
    assert_eq!(guest.machine().fetch(SELECT), 1, "the IOAPIC did not get the write");
}

fn exactly_this_is_removed() {
    let mut guest = Guest::new(Setup::Kernel);
    let vm = vm(&mut guest);
    let (event, other) = (eventfd(), eventfd());
    let at = Match::mmio(A, Length::Bytes4).with_datamatch(7);
    let registration = guest.bus.register(at, event.clone()).unwrap();

    let deassign = |event: &EventFd, address, length, flags, value| {
        ioctl::ioeventfd(
            &vm,
            event.as_raw_fd(),
            address,
            length,
            flags | KVM_IOEVENTFD_FLAG_DEASSIGN,
            value,
        )
    };
    const MATCH: u32 = KVM_IOEVENTFD_FLAG_DATAMATCH;
    assert_eq!(deassign(&other, A, 4, MATCH, 7), Err(Code::NOENT));
    assert_eq!(deassign(&event, A, 2, MATCH, 7), Err(Code::NOENT));
    assert_eq!(deassign(&event, A + 4, 4, MATCH, 7), Err(Code::NOENT));
    assert_eq!(
        deassign(&event, A, 4, MATCH | KVM_IOEVENTFD_FLAG_PIO, 7),
        Err(Code::NOENT)
    );
    assert_eq!(deassign(&event, A, 4, 0, 7), Err(Code::NOENT));
    assert_eq!(deassign(&event, A, 4, MATCH, 8), Err(Code::NOENT));
    // What the bus registered is exactly this, and so is what it removes.
    registration.remove().unwrap();
    assert_eq!(deassign(&event, A, 4, MATCH, 7), Err(Code::NOENT));

    // Somebody removes it behind the bus's back: until then the kernel served it, now the table does, and the removal
    // says so.
    let doorbell = Doorbell::on(&guest.bus, at);
    assert_eq!(deassign(&doorbell.event, A, 4, MATCH, 7), Ok(0));
    let seen = guest.store(Space::Mmio, A, &7u32.to_ne_bytes());
    assert_eq!((seen.dispatched, doorbell.rings()), (1, 1));
    let error = doorbell.registration.remove().unwrap_err();
    assert!(
        matches!(error, Error::NotRemoved { at: removed, .. } if removed == at),
        "{error}"
    );
    assert_eq!(error.errno().errno(), Code::NOENT.raw_os_error());
    let seen = guest.store(Space::Mmio, A, &7u32.to_ne_bytes());
    guest.assert_passed(&seen, Space::Mmio, A, &7u32.to_ne_bytes());

    // The same in Drop is a record in the log, and no panic.
    let at = Match::mmio(0xb0de_ad00, Length::Bytes4);
    let doorbell = Doorbell::on(&guest.bus, at);
    assert_eq!(deassign(&doorbell.event, at.address, 4, 0, 0), Ok(0));
    assert_eq!(logged::containing("0xb0dead00"), []);
    drop(doorbell);
    let records = logged::containing("0xb0dead00");
    assert!(
        matches!(&records[..], [(Level::Error, message)] if message.contains("No such file")),
        "{records:?}"
    );
}

fn a_foreign_registration_is_a_refusal() {
    let mut guest = Guest::new(Setup::Kernel);
    let vm = vm(&mut guest);
    let foreign = eventfd();
    ioctl::ioeventfd(&vm, foreign.as_raw_fd(), A, 4, KVM_IOEVENTFD_FLAG_DATAMATCH, 7).unwrap();

    let doorbell = Doorbell::on(&guest.bus, Match::mmio(A, Length::Bytes4));
    let refusal = match doorbell.registration.path() {
        Path::Trapped(Refusal::Kernel(errno)) => errno.errno(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal, Code::EXIST.raw_os_error());
    let seen = guest.store(Space::Mmio, A, &8u32.to_ne_bytes());
    assert_eq!(
        (seen.dispatched, doorbell.rings()),
        (1, 1),
        "what the foreign one leaves is served"
    );
    let seen = guest.store(Space::Mmio, A, &7u32.to_ne_bytes());
    assert_eq!((seen.dispatched, doorbell.rings(), count(foreign.as_ref())), (0, 0, 1));

    // Removing ours leaves the foreign one alone.
    doorbell.registration.remove().unwrap();
    guest.store(Space::Mmio, A, &7u32.to_ne_bytes());
    assert_eq!(count(foreign.as_ref()), 1);
}

fn a_bad_one_at_each_position_registers_none(mut guest: Guest) {
    const N: usize = 5;
    let port = |n: usize| Match::pio(0x300 + 4 * n as u64, Length::Bytes4);
    let taken = guest.bus.register(Match::pio(0x400, Length::Any), eventfd()).unwrap();
    let file = File::open("/dev/null").unwrap();
    // SAFETY: the fd was just given up by its owner.
    let no_event = Arc::new(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) });
    for bad in 0..N {
        let event = eventfd();
        let wrong = [
            (Match::pio(0x1_0000, Length::Any), event.clone()),
            (Match::pio(0x400, Length::Bytes2), event.clone()),
            (port((bad + 1) % N), event.clone()),
            (port(bad), no_event.clone()),
        ];
        for wrong in wrong {
            let mut set: Vec<_> = (0..N).map(|n| (port(n), event.clone())).collect();
            set[bad] = wrong.clone();
            let error = guest.bus.register_all(set).unwrap_err();
            // Of a pair that collides, the later one is named.
            assert!(error.at() == wrong.0 || error.at() == port((bad + 1) % N), "{error}");
            for n in 0..N {
                let seen = guest.store(Space::Pio, port(n).address, &[0; 4]);
                guest.assert_passed(&seen, Space::Pio, port(n).address, &[0; 4]);
            }
            assert_eq!(count(event.as_ref()), 0);
        }
        // None is left in anybody's books either.
        let all = guest
            .bus
            .register_all((0..N).map(|n| (port(n), event.clone())))
            .unwrap();
        for (n, registration) in all.iter().enumerate() {
            assert_eq!(registration.at(), port(n), "in the order of the set");
            let seen = guest.store(Space::Pio, port(n).address, &[0; 4]);
            guest.assert_taken(&seen, registration.path());
        }
        assert_eq!(count(event.as_ref()), N as u64);
    }
    drop(taken);
}

fn many_addresses_and_a_fan(mut guest: Guest) {
    let page = |n: u64| Match::mmio(A + n * 0x1000, Length::Bytes4);
    let event = eventfd();
    let registrations = guest
        .bus
        .register_all((0..4096).map(|n| (page(n), event.clone())))
        .unwrap();
    for n in [0, 1, 2, 3, 2048, 4094, 4095] {
        let seen = guest.store(Space::Mmio, page(n).address, &[0; 4]);
        guest.assert_taken(&seen, registrations[n as usize].path());
        assert_eq!(count(event.as_ref()), 1, "page {n}");
    }
    passes(&mut guest, &[], Space::Mmio, A + 4096 * 0x1000, &[0; 4]);
    drop(registrations);

    let fan: Vec<_> = (0..256)
        .map(|value| Doorbell::on(&guest.bus, Match::pio(0x300, Length::Bytes2).with_datamatch(value)))
        .collect();
    for value in [0u16, 1, 2, 127, 254, 255] {
        rings(&mut guest, &fan[usize::from(value)], 0x300, &value.to_ne_bytes());
    }
    passes(
        &mut guest,
        &fan.iter().collect::<Vec<_>>(),
        Space::Pio,
        0x300,
        &256u16.to_ne_bytes(),
    );
}

fn a_fan_is_warned_of_once() {
    let guest = Guest::new(Setup::Kernel);
    let register = |address, values: std::ops::Range<u64>| {
        let at = Match::mmio(address, Length::Bytes4);
        guest
            .bus
            .register_all(values.map(|value| (at.with_datamatch(value), eventfd())))
            .unwrap()
    };
    let _many_addresses: Vec<_> = (0..100).map(|n| register(A + 8 * n, 0..1)).collect();
    let first = register(0xb0fa_1000, 0..64);
    assert_eq!(logged::containing("0xb0fa1000"), []);
    let one_more = register(0xb0fa_1000, 64..65);
    let records = logged::containing("0xb0fa1000");
    assert!(
        matches!(&records[..], [(Level::Warn, message)] if message.contains("65 registrations")),
        "{records:?}"
    );
    let _more = register(0xb0fa_1000, 65..80);
    drop((first, one_more));
    let _elsewhere = register(0xb0fa_2000, 0..80);
    assert_eq!(logged::containing("0xb0fa").len(), 1);

    // Nothing in the exit path is linear, so there is nothing to warn of.
    let userspace = IoeventBus::userspace();
    let at = Match::mmio(0xb0fa_3000, Length::Bytes4);
    let _fan = userspace
        .register_all((0..80).map(|value| (at.with_datamatch(value), eventfd())))
        .unwrap();
    assert_eq!(logged::containing("0xb0fa3000"), []);
}

fn ioevent_cases(mut guest: Guest) {
    // Cases O1 and O4: separate spaces.
    let port = Doorbell::on(&guest.bus, Match::pio(0xf4, Length::Any));
    let page = Doorbell::on(&guest.bus, Match::mmio(A + 0x1000, Length::Any));
    // Case O2.
    let matches = [
        Match::pio(0xc1, Length::Bytes1).with_datamatch(0x7f),
        Match::pio(0xc2, Length::Bytes2).with_datamatch(0x1337),
        Match::pio(0xc4, Length::Bytes4).with_datamatch(0xdead_beef),
        Match::pio(0xc8, Length::Bytes8).with_datamatch(0xdead_beef_dead_beef),
    ];
    let by_value = matches.map(|at| Doorbell::on(&guest.bus, at));
    rings(&mut guest, &by_value[0], 0xc1, &[0x7f]);
    rings(&mut guest, &by_value[1], 0xc2, &0x1337u16.to_ne_bytes());
    rings(&mut guest, &by_value[2], 0xc4, &0xdead_beefu32.to_ne_bytes());
    passes(&mut guest, &[&by_value[1]], Space::Pio, 0xc2, &0x1338u16.to_ne_bytes());
    // No instruction stores 8 bytes to a port; the table knows it all the same.
    let wide = 0xdead_beef_dead_beef_u64.to_ne_bytes();
    assert_eq!(guest.bus.find(Space::Pio, 0xc8, &wide), Some(matches[3]));

    // Case O5: distinct values at one address stand side by side; what could match the same store does not.
    let five = Doorbell::on(&guest.bus, Match::mmio(A + 0x2000, Length::Bytes4).with_datamatch(5));
    let six = Doorbell::on(&guest.bus, Match::mmio(A + 0x2000, Length::Bytes4).with_datamatch(6));
    rings(&mut guest, &five, A + 0x2000, &5u32.to_ne_bytes());
    rings(&mut guest, &six, A + 0x2000, &6u32.to_ne_bytes());
    let again = Match::mmio(A + 0x1000, Length::Any);
    assert_eq!(
        guest.bus.register(again, eventfd()).unwrap_err().errno().errno(),
        Code::EXIST.raw_os_error()
    );

    // Case O6: "1 byte, any value", which kvm-ioctls cannot say, and "4 bytes, 0xf6".
    let byte = Doorbell::on(&guest.bus, Match::pio(0xd0, Length::Bytes1));
    let value = Doorbell::on(&guest.bus, Match::pio(0xd4, Length::Bytes4).with_datamatch(0xf6));
    rings(&mut guest, &byte, 0xd0, &[0]);
    rings(&mut guest, &byte, 0xd0, &[0xff]);
    passes(&mut guest, &[&byte], Space::Pio, 0xd0, &[0, 0]);
    rings(&mut guest, &value, 0xd4, &0xf6u32.to_ne_bytes());
    passes(&mut guest, &[&value], Space::Pio, 0xd4, &[0xf6]);
    passes(&mut guest, &[&value], Space::Pio, 0xd4, &0xf7u32.to_ne_bytes());

    // Cases O9, O10 and O11.
    rings(&mut guest, &port, 0xf4, &[1]);
    assert_eq!(page.rings(), 0);
    rings(&mut guest, &page, A + 0x1000, &[1]);
    assert_eq!(port.rings(), 0);
    passes(&mut guest, &[&port, &page], Space::Pio, 0xf5, &[1]);
    passes(&mut guest, &[&port, &page], Space::Mmio, A + 0x1001, &[1]);
    passes(&mut guest, &[&port, &page], Space::Mmio, A + 0xf4, &[1]);

    // Cases O3 and O8: a guard cannot be asked to remove anything but its own (case O7), and that the kernel agrees.
    for doorbell in [port, page, five, six, byte, value].into_iter().chain(by_value) {
        doorbell.registration.remove().unwrap();
    }
    // Case O13, the other way round: nothing is left anywhere.
    for (space, address) in [(Space::Pio, 0xf4), (Space::Mmio, A + 0x1000)] {
        passes(&mut guest, &[], space, address, &[1]);
    }
}

fn every_width_and_space(mut guest: Guest) {
    let value = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    let lengths = [Length::Bytes1, Length::Bytes2, Length::Bytes4, Length::Bytes8];
    for length in lengths {
        let width = length.bytes() as usize;
        let data = &value[..width];
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(data);
        let datamatch = u64::from_ne_bytes(wide);
        for at in [Match::mmio(A, length), Match::pio(0x300, length)] {
            if (at.space, length) == (Space::Pio, Length::Bytes8) {
                continue;
            }
            for at in [at, at.with_datamatch(datamatch)] {
                let doorbell = Doorbell::on(&guest.bus, at);
                rings(&mut guest, &doorbell, at.address, data);
                let mut other = data.to_vec();
                other[width - 1] ^= 0x80;
                if at.datamatch.is_some() {
                    passes(&mut guest, &[&doorbell], at.space, at.address, &other);
                } else {
                    rings(&mut guest, &doorbell, at.address, &other);
                }
            }
        }
    }
}

fn several_registrations_on_one_eventfd(mut guest: Guest) {
    let event = eventfd();
    // One that came from elsewhere: a duplicate, as another process would hand it over.
    let handed_over = ioevent::eventfd_from_owned({
        // SAFETY: `event` is open here and the borrow ends with the call.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
        fd.try_clone_to_owned().unwrap()
    })
    .unwrap();
    let registrations = guest
        .bus
        .register_all([
            (Match::mmio(A, Length::Any), event.clone()),
            (Match::mmio(A + 4, Length::Bytes4), event.clone()),
            (Match::pio(0x300, Length::Bytes1), Arc::new(handed_over)),
        ])
        .unwrap();
    for registration in &registrations {
        let at = registration.at();
        let data = [0; 4];
        let data = if at.space == Space::Pio { &data[..1] } else { &data[..] };
        let seen = guest.store(at.space, at.address, data);
        guest.assert_taken(&seen, registration.path());
    }
    assert_eq!(count(event.as_ref()), 3);
    let mut registrations = registrations.into_iter();
    registrations.next().unwrap().remove().unwrap();
    passes(&mut guest, &[], Space::Mmio, A, &[0]);
    assert_eq!(count(event.as_ref()), 0);
    let second = registrations.next().unwrap();
    let seen = guest.store(Space::Mmio, A + 4, &[0; 4]);
    guest.assert_taken(&seen, second.path());
    assert_eq!(count(event.as_ref()), 1, "its neighbour's end did not end it");
}

fn sixteen_thousand_registrations(mut guest: Guest) {
    const N: u64 = 16_000;
    let event = eventfd();
    let at = |n: u64| Match::mmio(A + 8 * n, Length::Bytes4);
    let started = Instant::now();
    let registrations: Vec<_> = (0..N)
        .map(|n| guest.bus.register(at(n), event.clone()).unwrap())
        .collect();
    let registered = started.elapsed();
    for n in (0..N).step_by(997).chain([N - 1]) {
        let seen = guest.store(Space::Mmio, at(n).address, &[0; 4]);
        guest.assert_taken(&seen, registrations[n as usize].path());
        assert_eq!(count(event.as_ref()), 1);
        passes(&mut guest, &[], Space::Mmio, at(n).address + 4, &[0; 4]);
    }
    let started = Instant::now();
    for registration in registrations {
        registration.remove().unwrap();
    }
    println!(
        "{:?}: {N} registered in {registered:?}, removed in {:?}",
        guest.setup,
        started.elapsed()
    );
    for n in [0, N / 2, N - 1] {
        passes(&mut guest, &[], Space::Mmio, at(n).address, &[0; 4]);
    }
}

fn after_removal_a_store_is_nobodys(mut guest: Guest) {
    for _ in 0..20 {
        let first = Doorbell::on(&guest.bus, Match::mmio(A, Length::Bytes4));
        let second = Doorbell::on(&guest.bus, Match::mmio(A + 8, Length::Bytes4));
        rings(&mut guest, &first, A, &[0; 4]);
        rings(&mut guest, &second, A + 8, &[0; 4]);
        // A signal that was not read yet outlives the registration.
        guest.store(Space::Mmio, A, &[0; 4]);
        let Doorbell { registration, event } = first;
        registration.remove().unwrap();
        passes(&mut guest, &[&second], Space::Mmio, A, &[0; 4]);
        assert_eq!(count(event.as_ref()), 1);
        rings(&mut guest, &second, A + 8, &[0; 4]);
        drop(second.registration);
        passes(&mut guest, &[], Space::Mmio, A + 8, &[0; 4]);
    }
}

/// Row 122. The eventfd is the trigger of an edge irqfd as well. The handler is the machine's own, so the interrupt is
/// caught and not served; a vector that was taken is proof enough that it arrived.
fn a_store_becomes_an_interrupt(mut guest: Guest) {
    const GSI: u32 = 10;
    const VECTOR: u8 = 0x31;
    let doorbells = [0, 8].map(|offset| Doorbell::on(&guest.bus, Match::mmio(A + offset, Length::Bytes4)));
    for doorbell in doorbells {
        let vm = vm(&mut guest);
        ioctl::assign_edge(&vm, doorbell.event.as_ref(), GSI).unwrap();
        let machine = guest.machine();
        machine.set_rte(GSI, VECTOR.into());
        assert_eq!(machine.take_interrupt(), None);
        let at = doorbell.registration.at();
        let seen = guest.store(Space::Mmio, at.address, &[1, 2, 3, 4]);
        guest.assert_taken(&seen, doorbell.registration.path());
        let taken = guest.machine().accept_within(Duration::from_secs(10));
        assert_eq!(taken, Some(VECTOR));
        guest.machine().eoi();
        assert_eq!(count(doorbell.event.as_ref()), 0, "the irqfd took the signal");
        ioctl::deassign(&vm, doorbell.event.as_ref(), GSI).unwrap();
        // Without the irqfd the store is a signal and no interrupt.
        let seen = guest.store(Space::Mmio, at.address, &[1, 2, 3, 4]);
        guest.assert_taken(&seen, doorbell.registration.path());
        assert_eq!(doorbell.rings(), 1);
        assert_eq!(guest.machine().take_interrupt(), None);
    }
}

/// A device that remembers what reached it.
#[derive(Default)]
struct Behind(std::sync::Mutex<Vec<(u64, Vec<u8>)>>);

impl DeviceMmio for Behind {
    fn mmio_read(&self, _base: MmioAddress, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn mmio_write(&self, base: MmioAddress, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((base.0 + offset, data.to_vec()));
    }
}

impl DevicePio for Behind {
    fn pio_read(&self, _base: PioAddress, offset: u16, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn pio_write(&self, base: PioAddress, offset: u16, data: &[u8]) {
        self.0.lock().unwrap().push((u64::from(base.0 + offset), data.to_vec()));
    }
}

fn front_end() {
    let bus = IoeventBus::userspace();
    let mmio = Doorbell::on(&bus, Match::mmio(A + 4, Length::Bytes4));
    let pio = Doorbell::on(&bus, Match::pio(0x302, Length::Bytes2).with_datamatch(9));
    let device = Arc::new(Behind::default());
    let front = Arc::new(DoorbellOverlay::new(bus.clone(), device.clone()));
    let mut devices = IoManager::new();
    devices
        .register_mmio(MmioRange::new(MmioAddress(A), 0x1000).unwrap(), front.clone())
        .unwrap();
    devices
        .register_pio(PioRange::new(PioAddress(0x300), 8).unwrap(), front.clone())
        .unwrap();

    devices.mmio_write(MmioAddress(A + 4), &[0; 4]).unwrap();
    devices.pio_write(PioAddress(0x302), &9u16.to_ne_bytes()).unwrap();
    assert_eq!((mmio.rings(), pio.rings()), (1, 1));
    devices.mmio_write(MmioAddress(A + 4), &[1, 2]).unwrap();
    devices.pio_write(PioAddress(0x302), &8u16.to_ne_bytes()).unwrap();
    assert_eq!((mmio.rings(), pio.rings()), (0, 0));
    let mut data = [0; 4];
    devices.mmio_read(MmioAddress(A + 4), &mut data).unwrap();
    assert_eq!(data, [4; 4]);
    devices.pio_read(PioAddress(0x302), &mut data[..2]).unwrap();
    assert_eq!(data, [2, 2, 4, 4]);
    // Only what the doorbells left reached the device.
    let reached = [(A + 4, vec![1, 2]), (0x302, 8u16.to_ne_bytes().to_vec())];
    assert_eq!(*device.0.lock().unwrap(), reached);

    let nobody = DoorbellOverlay::new(bus, UnassignedRange);
    nobody.mmio_write(MmioAddress(A), 4, &[0; 4]);
    nobody.mmio_write(MmioAddress(A), 8, &[0; 4]);
    assert_eq!(mmio.rings(), 1);
    nobody.pio_read(PioAddress(0x300), 2, &mut data);
    assert_eq!(data, [0xff; 4]);
    data.fill(0);
    nobody.mmio_read(MmioAddress(A), 8, &mut data);
    assert_eq!(data, [0xff; 4]);
}
