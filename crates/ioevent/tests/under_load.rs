// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registrations that change while a guest stores all the time.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use ioevent::{IoeventBus, Length, Match, Path, Space};
use support::guest::{Guest, Setup};
use support::{Doorbell, eventfd};
use testkit::counter::count;
use testkit::harness::Suite;
use testkit::lab::in_lab;
use testkit::program::{DATA, EXIT_PORT, assemble};

/// What a guest stores while its BAR moves. Where exits are slow, it takes minutes, so the variations do with less.
const STORES: u32 = 100_000;
const FEWER_STORES: u32 = 20_000;
/// On a busy host the thread that moves it gets few turns; with none of them a trial would prove nothing.
const ENOUGH: u32 = 50;
const TIME_LIMIT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let mut suite = Suite::new("under_load");
    for setup in Setup::ALL {
        for space in [Space::Mmio, Space::Pio] {
            let name = format!("{}/row_118_relocate_{space:?}", setup.name()).to_lowercase();
            suite = suite.test_within(TIME_LIMIT, name, setup.needs(), move || {
                each_store_is_seen_once_while_its_address_moves(Guest::new(setup), space);
            });
        }
        let name = format!("{}/register_and_remove", setup.name());
        suite = suite.test_within(TIME_LIMIT, name, setup.needs(), move || {
            each_store_is_seen_once_while_registrations_come_and_go(Guest::new(setup));
        });
    }
    suite.test("model/removal_is_final", &[], removal_is_final).run()
}

/// What became of one store, in the guest's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It did not exit: the kernel signalled, or nobody did, which the counters tell.
    NoExit,
    /// It exited, and a registration matched it.
    Dispatched,
    /// It exited, and nobody took it.
    Unmatched,
}

/// A guest that stores 0, 1, 2, ... to `addresses` in turn, at least `stores` times and until the other thread has made
/// [`ENOUGH`] changes, and a VMM that notes what becomes of each store.
fn store_all_the_time(
    guest: &mut Guest,
    space: Space,
    addresses: [u64; 4],
    stores: u32,
    latest: &AtomicU32,
    changes: &AtomicU32,
) -> Vec<Fate> {
    const ROUND: u32 = 4000;
    let (mut fates, mut last) = (Vec::new(), None);
    let code = assemble(Guest::PROGRAM, |a| {
        let mut again = a.create_label();
        a.mov(ecx, ROUND / 4)?;
        a.mov(eax, dword_ptr(DATA as u32))?;
        a.set_label(&mut again)?;
        for address in addresses {
            match space {
                Space::Mmio => {
                    a.mov(ebx, address as u32)?;
                    a.mov(dword_ptr(ebx).es(), eax)?;
                }
                Space::Pio => {
                    a.mov(dx, address as u32)?;
                    a.out(dx, eax)?;
                }
            }
            a.inc(eax)?;
        }
        a.dec(ecx)?;
        a.jnz(again)?;
        a.out(i32::from(EXIT_PORT), al)
    });
    let bus = guest.bus.clone();
    while (fates.len() as u32) < stores || changes.load(Ordering::Relaxed) < ENOUGH {
        let first = fates.len() as u32;
        fates.resize(fates.len() + ROUND as usize, Fate::NoExit);
        let mut exit = |address: u64, data: &[u8]| {
            let number = u32::from_ne_bytes(data.try_into().unwrap());
            assert_eq!(address, addresses[number as usize % 4]);
            assert!(last < Some(number), "store {number} exits after {last:?}");
            last = Some(number);
            fates[number as usize] = match bus.dispatch(space, address, data).unwrap() {
                true => Fate::Dispatched,
                false => Fate::Unmatched,
            };
            latest.store(number, Ordering::Release);
        };
        if guest.setup == Setup::Model {
            for number in first..first + ROUND {
                exit(addresses[number as usize % 4], &number.to_ne_bytes());
            }
        } else {
            guest.machine().load(DATA, &first.to_ne_bytes());
            guest.run_with(&code, exit);
        }
    }
    fates
}

/// Sets a flag when it goes, also by a panic: the other thread must not wait for ever.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Waits until the guest has stored to every address since now, twice. `false` when it has finished.
fn guest_goes_on(latest: &AtomicU32, done: &AtomicBool) -> bool {
    let now = latest.load(Ordering::Acquire);
    while latest.load(Ordering::Acquire) < now + 12 {
        if done.load(Ordering::Acquire) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Two doorbells move together between two bases, and the guest stores to both at both bases in turn. Each store says
/// where the doorbells were when it was made: at its own base when it signalled, at the other when it did not. If all
/// moves at one moment, then in the guest's order the base changes exactly as often as it was moved. A base that is
/// served by kernel and table at different times, or by neither, shows as more changes; a store that signals twice or
/// never, in the counters.
fn each_store_is_seen_once_while_its_address_moves(mut guest: Guest, space: Space) {
    let (here, there, stores) = match space {
        Space::Mmio if in_lab() => (0xd000_0000, 0xd000_4000, FEWER_STORES),
        Space::Mmio => (0xd000_0000, 0xd000_4000, STORES),
        Space::Pio => (0x300, 0x400, FEWER_STORES),
    };
    let at = |base, offset| Match {
        space,
        address: base + offset,
        length: Length::Bytes4,
        datamatch: None,
    };
    let events = [eventfd(), eventfd()];
    let set = [(at(here, 0), events[0].clone()), (at(here, 8), events[1].clone())];
    let bus = guest.bus.clone();
    let mut registrations = bus.register_all(set).unwrap();

    let (latest, moves, done) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    let mut durations = Vec::new();
    let fates = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut from, mut to) = (here, there);
            while guest_goes_on(&latest, &done) {
                let started = Instant::now();
                bus.relocate(&mut registrations, from, to).unwrap();
                durations.push(started.elapsed());
                moves.fetch_add(1, Ordering::Relaxed);
                (from, to) = (to, from);
            }
        });
        let _done = Done(&done);
        let addresses = [here, there, here + 8, there + 8];
        store_all_the_time(&mut guest, space, addresses, stores, &latest, &moves)
    });

    let moves = moves.into_inner() as usize;
    for (doorbell, event) in events.iter().enumerate() {
        let mine = |number: usize| (number % 4) / 2 == doorbell;
        let fates = fates.iter().enumerate().filter(|(number, _)| mine(*number));
        let signalled = fates.filter(|(_, fate)| **fate != Fate::Unmatched).count();
        assert_eq!(
            count(event.as_ref()),
            signalled as u64,
            "signals of doorbell {doorbell}"
        );
    }
    let base_at = |(number, fate): (usize, &Fate)| {
        let own = if number % 2 == 0 { here } else { there };
        let other = here + there - own;
        if *fate == Fate::Unmatched { other } else { own }
    };
    let bases: Vec<_> = fates.iter().enumerate().map(base_at).collect();
    let changes = bases.windows(2).filter(|pair| pair[0] != pair[1]).count();
    durations.sort_unstable();
    let of = |fate| fates.iter().filter(|other| **other == fate).count();
    println!(
        "{:?} {space:?}: {} stores, {moves} moves (p50 {:?}): {} without an exit, {} dispatched, {} unmatched",
        guest.setup,
        fates.len(),
        durations.get(durations.len() / 2),
        of(Fate::NoExit),
        of(Fate::Dispatched),
        of(Fate::Unmatched),
    );
    // The last move may come after the last store.
    assert!(
        changes == moves || changes + 1 == moves,
        "{moves} moves, and the guest saw {changes}"
    );
    let kernel = registrations
        .iter()
        .filter(|registration| registration.path() == Path::Kernel)
        .count();
    let expected = match guest.setup {
        Setup::Kernel => 2,
        Setup::Half => 1,
        Setup::Trapped | Setup::Model => 0,
    };
    assert_eq!(kernel, expected);
    assert_eq!(of(Fate::NoExit) > 0, expected > 0);
}

/// The same with registrations that come and go: a store either signals once or is handed to the VMM, and the guest sees
/// a doorbell come and go exactly as often as it did.
fn each_store_is_seen_once_while_registrations_come_and_go(mut guest: Guest) {
    let address = 0xd000_0000;
    let event = eventfd();
    let bus = guest.bus.clone();
    let (latest, changes_made, done) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    // The other three addresses are nobody's: their exits show how far the guest is.
    let addresses = [address, address + 0x10, address + 0x20, address + 0x30];
    let fates = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut registration = None;
            while guest_goes_on(&latest, &done) {
                registration = match registration.take() {
                    None => Some(
                        bus.register(Match::mmio(address, Length::Bytes4), event.clone())
                            .unwrap(),
                    ),
                    Some(registration) => {
                        registration.remove().unwrap();
                        None
                    }
                };
                changes_made.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _done = Done(&done);
        store_all_the_time(&mut guest, Space::Mmio, addresses, FEWER_STORES, &latest, &changes_made)
    });
    let changes_made = changes_made.into_inner() as usize;
    let mine: Vec<_> = fates.iter().step_by(4).collect();
    let signalled = mine.iter().filter(|fate| ***fate != Fate::Unmatched).count();
    assert_eq!(count(event.as_ref()), signalled as u64);
    let there = |fate: &Fate| *fate != Fate::Unmatched;
    let changes = mine.windows(2).filter(|pair| there(pair[0]) != there(pair[1])).count()
        // It is not there before the first store.
        + usize::from(there(mine[0]));
    assert!(
        changes == changes_made || changes + 1 == changes_made,
        "{changes_made} changes, and the guest saw {changes}"
    );
}

/// After `remove` returns nothing signals, though other threads were in the middle of a dispatch.
fn removal_is_final() {
    let bus = IoeventBus::userspace();
    let at = Match::mmio(0x1000, Length::Any);
    let done = AtomicBool::new(false);
    let dispatched = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if bus.dispatch(Space::Mmio, 0x1000, &[0]).unwrap() {
                    dispatched.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let _done = Done(&done);
        for round in 0..1000 {
            let doorbell = Doorbell::on(&bus, at);
            let before = dispatched.load(Ordering::Relaxed);
            while dispatched.load(Ordering::Relaxed) < before + 3 {
                std::thread::yield_now();
            }
            let Doorbell { registration, event } = doorbell;
            registration.remove().unwrap();
            count(event.as_ref());
            // A dispatch that was let go before the removal had time for a write to an eventfd.
            for _ in 0..4 {
                assert!(!bus.dispatch(Space::Mmio, 0x1000, &[0]).unwrap());
                std::thread::yield_now();
            }
            assert_eq!(
                count(event.as_ref()),
                0,
                "signalled after its removal, in round {round}"
            );
        }
    });
}
