// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens when the kernel says no: at each position of a set, when it registers, when it moves, when it goes.
//!
//! Each trial runs with KVM behind the faults and a guest that stores, and again without KVM, where the backend only keeps
//! KVM's books. There is no third outcome: a doorbell rings, or the call failed and said so.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use ioevent::{
    DoorbellOverlay, Error, IoeventBus, Length, Match, Path, Refusal, Registration, Rejection, ReservedRange, Space,
    UnassignedRange,
};
use log::Level;
use rustix::io::{Errno as Code, dup2};
use support::backends::{Books, Call, Faulty, errno};
use support::guest::{Guest, Setup, vm};
use support::{Doorbell, eventfd, logged};
use testkit::counter::count;
use testkit::harness::Suite;
use testkit::need::Need;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

const HERE: u64 = 0xd000_0000;
const THERE: u64 = 0xd010_0000;
const N: usize = 5;

/// The errnos that the kernel, or what stands in front of it, answers to a good request.
const REFUSALS: [Code; 7] = [
    Code::MFILE,
    Code::NOSPC,
    Code::EXIST,
    Code::NOMEM,
    Code::PERM,
    Code::NOSYS,
    Code::INVAL,
];

/// A name and a body.
type Row = (&'static str, fn(Rig));

fn main() -> ExitCode {
    logged::start();
    let bodies: [Row; 10] = [
        (
            "the_table_serves_whenever_the_kernel_does_not",
            the_table_serves_whenever_the_kernel_does_not,
        ),
        ("row_119_refused_at_each_position", refused_at_each_position),
        ("row_119_all_refused", all_refused),
        (
            "relocate_removes_old_before_it_adds_new",
            relocate_removes_old_before_it_adds_new,
        ),
        ("relocate_refused_at_each_position", relocate_refused_at_each_position),
        (
            "relocate_cannot_remove_at_each_position",
            relocate_cannot_remove_at_each_position,
        ),
        ("relocate_to_a_bad_place", relocate_to_a_bad_place),
        ("relocate_onto_itself", relocate_onto_itself),
        ("removal_fails", removal_fails),
        ("a_stuck_place_is_refused", a_stuck_place_is_refused),
    ];
    let mut suite = Suite::new("refusals");
    for (name, body) in bodies {
        suite = suite
            .test(format!("kernel/{name}"), &[Need::Kvm], move || {
                body(Rig::new(Setup::Kernel))
            })
            .test(format!("model/{name}"), &[], move || body(Rig::new(Setup::Model)));
    }
    suite
        .test("model/first_refusal_is_a_warning", &[], first_refusal_is_a_warning)
        .test("model/other_bus", &[], other_bus)
        .test(
            "model/a_store_that_cannot_be_signalled",
            &[],
            a_store_that_cannot_be_signalled,
        )
        .test("model/a_drop_that_fails_is_logged", &[], a_drop_that_fails_is_logged)
        .run()
}

/// A guest whose bus has a backend with faults.
struct Rig {
    guest: Guest,
    faulty: Faulty,
}

impl Rig {
    fn new(setup: Setup) -> Self {
        let mut guest = Guest::new(setup);
        let faulty = match setup {
            Setup::Model => Faulty::new(Books::default(), |_| None),
            _ => Faulty::new(ioevent::Kvm::new(vm(&mut guest)), |_| None),
        };
        guest.bus = IoeventBus::new(faulty.clone());
        Self { guest, faulty }
    }

    /// The doorbells of one device, on pages of their own.
    fn set(&self, base: u64) -> Vec<Doorbell> {
        (0..N).map(|n| Doorbell::on(&self.guest.bus, nth(base, n))).collect()
    }

    /// Each doorbell rings once for one store at its place, and nothing rings at the other base.
    #[track_caller]
    fn assert_ring(&mut self, doorbells: &[Doorbell], base: u64, silent: u64) {
        for (n, doorbell) in doorbells.iter().enumerate() {
            let at = nth(base, n);
            assert_eq!(doorbell.registration.at(), at);
            let seen = self.guest.store(at.space, at.address, &[0; 4]);
            assert_eq!(seen.unmatched, [], "{at}");
            // Without KVM every store is an exit, whatever the backend's books say.
            if self.guest.setup == Setup::Kernel {
                let dispatched = usize::from(doorbell.registration.path() != Path::Kernel);
                assert_eq!(seen.dispatched, dispatched, "{at}: {:?}", doorbell.registration.path());
            }
            let elsewhere = nth(silent, n).address;
            let seen = self.guest.store(at.space, elsewhere, &[0; 4]);
            self.guest.assert_passed(&seen, at.space, elsewhere, &[0; 4]);
            assert_eq!(doorbell.rings(), 1, "{at}");
        }
    }
}

fn nth(base: u64, n: usize) -> Match {
    Match::mmio(base + 0x1000 * n as u64, Length::Bytes4)
}

fn registrations(doorbells: &mut [Doorbell]) -> impl Iterator<Item = &mut Registration> {
    doorbells.iter_mut().map(|doorbell| &mut doorbell.registration)
}

/// A fault at the nth call, counted from now, of those that `which` picks.
fn at_call(n: usize, code: Code, which: fn(Call) -> bool) -> impl FnMut(Call) -> Option<Code> + Send {
    let mut seen = 0;
    move |call| {
        if !which(call) {
            return None;
        }
        seen += 1;
        (seen == n + 1).then_some(code)
    }
}

fn assigns(call: Call) -> bool {
    matches!(call, Call::Assign(_))
}

fn deassigns(call: Call) -> bool {
    matches!(call, Call::Deassign(_))
}

fn refused_at_each_position(mut rig: Rig) {
    for (position, code) in (0..N).zip(REFUSALS.iter().cycle()) {
        rig.faulty.set_fault(at_call(position, *code, assigns));
        let events: Vec<_> = (0..N).map(|_| eventfd()).collect();
        let set = events
            .iter()
            .enumerate()
            .map(|(n, event)| (nth(HERE, n), event.clone()));
        let registrations = rig.guest.bus.register_all(set).unwrap();
        let doorbells: Vec<_> = registrations
            .into_iter()
            .zip(events)
            .map(|(registration, event)| Doorbell { registration, event })
            .collect();
        for (n, doorbell) in doorbells.iter().enumerate() {
            let expected = if n == position {
                Path::Trapped(Refusal::Kernel(errno(*code)))
            } else {
                Path::Kernel
            };
            assert_eq!(doorbell.registration.path(), expected);
        }
        rig.assert_ring(&doorbells, HERE, THERE);
        rig.faulty.calls();
        drop(doorbells);
        let removed: Vec<_> = (0..N)
            .filter(|n| *n != position)
            .map(|n| Call::Deassign(nth(HERE, n)))
            .collect();
        assert_eq!(
            rig.faulty.calls(),
            removed,
            "only what the kernel took is removed from it"
        );
    }
}

fn all_refused(mut rig: Rig) {
    for code in REFUSALS {
        rig.faulty.set_fault(move |_| Some(code));
        let doorbells = rig.set(HERE);
        for doorbell in &doorbells {
            assert_eq!(
                doorbell.registration.path(),
                Path::Trapped(Refusal::Kernel(errno(code)))
            );
        }
        rig.assert_ring(&doorbells, HERE, THERE);
        for doorbell in doorbells {
            doorbell.registration.remove().unwrap();
        }
    }
}

/// What a store that exits would find in the table, at the moment of each call to the kernel: at every one of them each
/// doorbell is at exactly one place. (A table that changed after the kernel got the new address would serve both.)
fn the_table_serves_whenever_the_kernel_does_not(rig: Rig) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (bus, record) = (rig.guest.bus.clone(), seen.clone());
    rig.faulty.set_fault(move |call| {
        let finds = |base| {
            (0..N)
                .filter(|n| bus.find(Space::Mmio, nth(base, *n).address, &[0; 4]).is_some())
                .count()
        };
        record.lock().unwrap().push((assigns(call), finds(HERE), finds(THERE)));
        None
    });
    let seen = || std::mem::take(&mut *seen.lock().unwrap());

    let set = (0..N).map(|n| (nth(HERE, n), eventfd()));
    let mut registrations = rig.guest.bus.register_all(set).unwrap();
    assert_eq!(
        seen(),
        [(true, N, 0); N],
        "the whole set is in the table before the kernel gets the first"
    );
    rig.guest.bus.relocate(&mut registrations, HERE, THERE).unwrap();
    let moved = [[(false, N, 0); N], [(true, 0, N); N]].concat();
    assert_eq!(seen(), moved);
    for (n, registration) in registrations.into_iter().enumerate() {
        registration.remove().unwrap();
        assert_eq!(seen(), [(false, 0, N - n)], "until the kernel lets go, the table holds");
    }
    assert_eq!(rig.guest.bus.find(Space::Mmio, THERE, &[0; 4]), None);
}

fn relocate_removes_old_before_it_adds_new(mut rig: Rig) {
    let mut doorbells = rig.set(HERE);
    rig.faulty.calls();
    rig.guest
        .bus
        .relocate(registrations(&mut doorbells), HERE, THERE)
        .unwrap();
    let old = (0..N).map(|n| Call::Deassign(nth(HERE, n)));
    let new = (0..N).map(|n| Call::Assign(nth(THERE, n)));
    assert_eq!(rig.faulty.calls(), old.chain(new).collect::<Vec<_>>());
    rig.assert_ring(&doorbells, THERE, HERE);

    // The old place is free at once, in the kernel too.
    let others = rig.set(HERE);
    for other in &others {
        assert_eq!(other.registration.path(), Path::Kernel);
    }
    drop(others);

    // By less than its own size: old and new addresses overlap.
    rig.guest
        .bus
        .relocate(registrations(&mut doorbells), THERE, THERE + 0x1000)
        .unwrap();
    rig.guest
        .bus
        .relocate(registrations(&mut doorbells), THERE + 0x1000, HERE)
        .unwrap();
    rig.assert_ring(&doorbells, HERE, THERE);

    // Only a part of it, with another base than its own first address.
    rig.guest
        .bus
        .relocate(registrations(&mut doorbells[2..]), HERE, THERE)
        .unwrap();
    rig.assert_ring(&doorbells[..2], HERE, THERE);
    for (n, doorbell) in doorbells.iter().enumerate().skip(2) {
        assert_eq!(doorbell.registration.at(), nth(THERE, n));
        rig.guest.store(Space::Mmio, nth(THERE, n).address, &[0; 4]);
        assert_eq!(doorbell.rings(), 1);
    }
}

fn relocate_refused_at_each_position(mut rig: Rig) {
    let mut doorbells = rig.set(HERE);
    let (mut from, mut to) = (HERE, THERE);
    for (position, code) in (0..N).zip(REFUSALS.iter().cycle()) {
        rig.faulty.set_fault(at_call(position, *code, assigns));
        rig.guest.bus.relocate(registrations(&mut doorbells), from, to).unwrap();
        for (n, doorbell) in doorbells.iter().enumerate() {
            let expected = if n == position {
                Path::Trapped(Refusal::Kernel(errno(*code)))
            } else {
                Path::Kernel
            };
            assert_eq!(doorbell.registration.path(), expected);
        }
        rig.assert_ring(&doorbells, to, from);
        (from, to) = (to, from);
    }
}

fn relocate_cannot_remove_at_each_position(mut rig: Rig) {
    let mut doorbells = rig.set(HERE);
    for position in 0..N {
        // ENOENT, and the kernel has lost it indeed.
        rig.faulty.set_fault(|_| None);
        doorbells[position].registration.path();
        let at = nth(HERE, position);
        let lost = doorbells[position].event.clone();
        ioevent::Backend::deassign(&rig.faulty, &at, &lost).unwrap();
        rig.faulty.calls();
        let error = rig
            .guest
            .bus
            .relocate(registrations(&mut doorbells), HERE, THERE)
            .unwrap_err();
        assert_eq!(
            error,
            Error::NotRemoved {
                at,
                errno: errno(Code::NOENT)
            }
        );
        let removed = (0..=position).map(|n| Call::Deassign(nth(HERE, n)));
        let again = (0..=position).map(|n| Call::Assign(nth(HERE, n)));
        assert_eq!(rig.faulty.calls(), removed.chain(again).collect::<Vec<_>>());
        for doorbell in &doorbells {
            assert_eq!(
                doorbell.registration.path(),
                Path::Kernel,
                "the lost one was assigned anew"
            );
        }
        rig.assert_ring(&doorbells, HERE, THERE);

        // Any other errno: the kernel still has it.
        rig.faulty.set_fault(at_call(position, Code::NOMEM, deassigns));
        let error = rig
            .guest
            .bus
            .relocate(registrations(&mut doorbells), HERE, THERE)
            .unwrap_err();
        assert_eq!(
            error,
            Error::NotRemoved {
                at,
                errno: errno(Code::NOMEM)
            }
        );
        for doorbell in &doorbells {
            assert_eq!(doorbell.registration.path(), Path::Kernel);
        }
        rig.assert_ring(&doorbells, HERE, THERE);

        // And it does not take the others back: they are served from the exit path, at the old place.
        let mut removals = 0;
        rig.faulty.set_fault(move |call| match call {
            Call::Assign(_) => Some(Code::NOSPC),
            Call::Deassign(_) => {
                removals += 1;
                (removals == position + 1).then_some(Code::NOMEM)
            }
        });
        rig.guest
            .bus
            .relocate(registrations(&mut doorbells), HERE, THERE)
            .unwrap_err();
        for (n, doorbell) in doorbells.iter().enumerate() {
            let expected = if n < position {
                Path::Trapped(Refusal::Kernel(errno(Code::NOSPC)))
            } else {
                Path::Kernel
            };
            assert_eq!(doorbell.registration.path(), expected);
        }
        rig.assert_ring(&doorbells, HERE, THERE);

        // The new place was left free by all that, and the next move succeeds.
        rig.faulty.set_fault(|_| None);
        drop(rig.set(THERE));
        rig.guest
            .bus
            .relocate(registrations(&mut doorbells), HERE, THERE)
            .unwrap();
        rig.assert_ring(&doorbells, THERE, HERE);
        rig.guest
            .bus
            .relocate(registrations(&mut doorbells), THERE, HERE)
            .unwrap();
    }
}

fn relocate_to_a_bad_place(mut rig: Rig) {
    let mut doorbells = rig.set(HERE);
    let range = ReservedRange::ram(0x8000_0000..=0x8000_3fff);
    rig.guest.bus.reserve(&[range]).unwrap();
    let in_the_way = Doorbell::on(&rig.guest.bus, nth(THERE, 3).with_datamatch(1));
    rig.faulty.calls();
    let high = u64::MAX - 0x2fff;
    let bad = [
        (
            HERE,
            0x8000_0000,
            Error::Reserved {
                at: nth(0x8000_0000, 0),
                range,
            },
        ),
        // Only the last of the set is in the range.
        (
            HERE,
            0x7fff_f000,
            Error::Reserved {
                at: nth(0x7fff_f000, 1),
                range,
            },
        ),
        (
            HERE,
            THERE,
            Error::Collision {
                at: nth(THERE, 3),
                with: nth(THERE, 3).with_datamatch(1),
            },
        ),
        (
            HERE,
            high,
            Error::Rejected {
                at: nth(HERE, 3),
                why: Rejection::Overflow,
            },
        ),
        (
            HERE,
            u64::MAX - 0x4002,
            Error::Rejected {
                at: nth(u64::MAX - 0x4002, 4),
                why: Rejection::Overflow,
            },
        ),
        (
            HERE + 1,
            THERE,
            Error::Rejected {
                at: nth(HERE, 0),
                why: Rejection::BelowBase { base: HERE + 1 },
            },
        ),
    ];
    for (from, to, expected) in bad {
        let error = rig
            .guest
            .bus
            .relocate(registrations(&mut doorbells), from, to)
            .unwrap_err();
        assert_eq!(error, expected);
        assert_eq!(rig.faulty.calls(), [], "nothing was touched");
        rig.assert_ring(&doorbells, HERE, 0x9000_0000);
    }
    // In the books the old places are taken, and the new ones are not.
    rig.guest.bus.register(nth(HERE, 0), eventfd()).unwrap_err();
    drop(in_the_way);
    drop(rig.set(THERE));

    let port = Match::pio(0x300, Length::Bytes4);
    let mut doorbell = Doorbell::on(&rig.guest.bus, port);
    let error = rig
        .guest
        .bus
        .relocate([&mut doorbell.registration], 0x300, 0xfffe)
        .unwrap_err();
    let at = Match::pio(0xfffe, Length::Bytes4);
    assert_eq!(
        error,
        Error::Rejected {
            at,
            why: Rejection::PortBeyond16Bits
        }
    );
    rig.guest.store(Space::Pio, 0x300, &[0; 4]);
    assert_eq!(doorbell.rings(), 1);
}

fn relocate_onto_itself(mut rig: Rig) {
    let mut doorbells = rig.set(HERE);
    rig.faulty.calls();
    rig.guest
        .bus
        .relocate(registrations(&mut doorbells), HERE, HERE)
        .unwrap();
    assert_eq!(
        rig.faulty.calls(),
        [],
        "a BAR that is written with its own address costs nothing"
    );
    rig.assert_ring(&doorbells, HERE, THERE);
    rig.guest.bus.relocate([], HERE, THERE).unwrap();
}

fn removal_fails(mut rig: Rig) {
    for code in [Code::NOENT, Code::NOMEM] {
        let Doorbell { registration, event } = Doorbell::on(&rig.guest.bus, nth(HERE, 0));
        rig.faulty.set_fault(at_call(0, code, deassigns));
        let error = registration.remove().unwrap_err();
        assert_eq!(
            error,
            Error::NotRemoved {
                at: nth(HERE, 0),
                errno: errno(code)
            }
        );
        assert!(error.to_string().contains("MMIO 0xd0000000 length 4"), "{error}");
        assert_eq!(rig.guest.bus.find(Space::Mmio, HERE, &[0; 4]), None);
        let again = Doorbell::on(&rig.guest.bus, nth(HERE, 0));
        if code == Code::NOENT {
            // The kernel said that it had lost the registration, and was believed. It never had: what it still has
            // looks like a registration that was made past the bus.
            let taken = Path::Trapped(Refusal::Kernel(errno(Code::EXIST)));
            assert_eq!(again.registration.path(), taken);
            drop(again);
            ioevent::Backend::deassign(&rig.faulty, &nth(HERE, 0), &event).unwrap();
        } else {
            assert_eq!(
                again.registration.path(),
                Path::Kernel,
                "the kernel was asked again first"
            );
            rig.assert_ring(&[again], HERE, THERE);
        }
        let seen = rig.guest.store(Space::Mmio, HERE, &[0; 4]);
        rig.guest.assert_passed(&seen, Space::Mmio, HERE, &[0; 4]);
        assert_eq!(count(event.as_ref()), 0);
    }
}

/// A removal failed, and the kernel goes on to refuse: the place cannot be used, and the answer says why. When the
/// kernel lets go, the place is free.
fn a_stuck_place_is_refused(rig: Rig) {
    let bus = &rig.guest.bus;
    let stuck = Error::NotRemoved {
        at: nth(HERE, 0),
        errno: errno(Code::PERM),
    };
    let mut mover = Doorbell::on(bus, nth(THERE, 0));
    let Doorbell { registration, event } = Doorbell::on(bus, nth(HERE, 0));
    let held = Arc::downgrade(&event);
    drop(event);
    rig.faulty.set_fault(|call| deassigns(call).then_some(Code::PERM));
    assert_eq!(registration.remove().unwrap_err(), stuck);
    assert!(held.upgrade().is_some(), "the kernel needs the eventfd to remove it");

    let range = ReservedRange::ram(HERE..=HERE);
    let set = [(nth(THERE, 1), eventfd()), (nth(HERE, 0), eventfd())];
    assert_eq!(bus.register_all(set).unwrap_err(), stuck);
    assert_eq!(bus.relocate([&mut mover.registration], THERE, HERE).unwrap_err(), stuck);
    assert_eq!(bus.reserve(&[range]).unwrap_err(), stuck);
    for at in [nth(HERE, 0), nth(THERE, 1)] {
        assert_eq!(bus.find(at.space, at.address, &[0; 4]), None, "{at}");
    }
    // Somewhere else it is in nobody's way.
    bus.register(nth(HERE, 2), eventfd()).unwrap().remove().unwrap_err();

    rig.faulty.set_fault(|_| None);
    bus.relocate([&mut mover.registration], THERE, HERE).unwrap();
    assert_eq!(mover.registration.path(), Path::Kernel);
    assert!(held.upgrade().is_none(), "nothing is kept any longer");
}

fn first_refusal_is_a_warning() {
    let bus = IoeventBus::new(Faulty::new(Books::default(), |_| Some(Code::NOSPC)));
    let at = |n: u64| Match::mmio(0xb0ad_0000 + 8 * n, Length::Bytes4);
    let _registrations = bus.register_all((0..3).map(|n| (at(n), eventfd()))).unwrap();
    let levels: Vec<_> = logged::containing("0xb0ad00").iter().map(|(level, _)| *level).collect();
    assert_eq!(levels, [Level::Warn, Level::Debug, Level::Debug]);
    let (_, message) = &logged::containing("0xb0ad0000")[0];
    assert!(message.contains("No space left"), "{message}");

    // A bus without a backend has nothing to complain of.
    let _quiet = IoeventBus::userspace().register(at(8), eventfd()).unwrap();
    assert_eq!(logged::containing("0xb0ad0040"), []);
}

/// Something else has come in the place of the eventfd, behind the registration's back: no store is served in silence.
fn a_store_that_cannot_be_signalled() {
    let bus = IoeventBus::userspace();
    let base = 0xb0ad_1000;
    let at = Match::mmio(base, Length::Bytes4);
    let bell = Doorbell::on(&bus, at);
    let unwritable = File::open("/dev/null").unwrap();
    // SAFETY: the bell's number, which is open and keeps its owner.
    let mut theirs = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(bell.event.as_raw_fd()) });
    dup2(&unwritable, &mut theirs).unwrap();
    let store = bus.dispatch(Space::Mmio, base, &[0; 4]);
    assert!(
        matches!(store, Err(Error::NotSignalled { at: of, errno: why }) if of == at && why == errno(Code::BADF)),
        "{store:?}"
    );
    let overlay = DoorbellOverlay::new(bus, UnassignedRange);
    for _ in 0..2 {
        overlay.mmio_write(MmioAddress(base), 0, &[0; 4]);
    }
    let levels: Vec<_> = logged::containing("0xb0ad1000")
        .iter()
        .map(|(level, _)| *level)
        .collect();
    assert_eq!(levels, [Level::Error, Level::Debug]);
}

/// A drop has no caller to tell.
fn a_drop_that_fails_is_logged() {
    let base = 0xb0ad_2000;
    let bus = IoeventBus::new(Faulty::new(Books::default(), at_call(0, Code::NOMEM, deassigns)));
    drop(Doorbell::on(&bus, Match::mmio(base, Length::Bytes4)));
    let logged = logged::containing("0xb0ad2000");
    assert!(matches!(&logged[..], [(Level::Error, _)]), "{logged:?}");
}

fn other_bus() {
    let (one, two) = (IoeventBus::userspace(), IoeventBus::userspace());
    let mut mine = Doorbell::on(&one, nth(HERE, 0));
    let mut foreign = Doorbell::on(&two, nth(HERE, 1));
    let set = [&mut mine.registration, &mut foreign.registration];
    assert_eq!(
        one.relocate(set, HERE, THERE).unwrap_err(),
        Error::OtherBus { at: nth(HERE, 1) }
    );
    assert_eq!(mine.registration.at(), nth(HERE, 0));
    assert!(one.dispatch(Space::Mmio, HERE, &[0; 4]).unwrap());
    assert_eq!(one.find(Space::Mmio, THERE, &[0; 4]), None);
    // A handle is the same bus.
    one.clone().relocate([&mut mine.registration], HERE, THERE).unwrap();
    assert!(one.dispatch(Space::Mmio, THERE, &[0; 4]).unwrap());
    assert_eq!(mine.rings(), 2);
}
