// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest cannot tell who serves a registration. Random registrations, removals, moves and stores are done to two guests:
//! one with KVM's ioeventfds, one where every store is trapped. Both must see the same signals and the same stores that
//! are nobody's, and KVM itself must agree with the library on what collides.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use ioevent::{Error, Length, Match, Path, Space};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::io::Errno as Code;
use support::Doorbell;
use support::guest::{Guest, Setup, vm};
use testkit::harness::Suite;
use testkit::ioctl::{self, KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_DEASSIGN, KVM_IOEVENTFD_FLAG_PIO};
use testkit::need::Need;

const CASES: u32 = 100;

fn main() -> ExitCode {
    Suite::new("equivalence")
        .test_within(
            Duration::from_secs(240),
            "kernel_and_fallback",
            &[Need::Kvm],
            kernel_and_fallback,
        )
        .run()
}

#[derive(Clone, Debug)]
enum Step {
    Register(Match),
    /// Of the registrations, which one.
    Remove(prop::sample::Index),
    /// Of the registrations, from which one to the last, by how far up or down.
    Relocate(prop::sample::Index, i64),
    Store(Space, u64, Vec<u8>),
    /// Of the registrations, which one; what it matches, where an instruction can store it.
    Hit(prop::sample::Index),
}

/// Few addresses and few values, so that they meet. MMIO lies across a page boundary, where one store becomes two.
fn place() -> impl Strategy<Value = (Space, u64)> {
    prop_oneof![
        (0xd000_0ffcu64..0xd000_1002).prop_map(|address| (Space::Mmio, address)),
        (0x300u64..0x303).prop_map(|address| (Space::Pio, address)),
    ]
}

fn a_match() -> impl Strategy<Value = Match> {
    let length = prop::sample::select(&[
        Length::Any,
        Length::Bytes1,
        Length::Bytes2,
        Length::Bytes4,
        Length::Bytes8,
    ]);
    let value = prop::option::of(prop::sample::select(&[0, 1, 0x100, 0x1_0000, 1 << 32]));
    (place(), length, value).prop_map(|((space, address), length, datamatch)| {
        // Values beyond the length are in on purpose: the library rejects them, in both guests.
        Match {
            space,
            address,
            length,
            datamatch,
        }
    })
}

fn a_store() -> impl Strategy<Value = Step> {
    let value = prop::sample::select(&[0u64, 1, 0x100, 0x1_0000, 1 << 32]);
    (place(), 0..4usize, value).prop_map(|((space, address), width, value)| {
        // No instruction stores 8 bytes to a port.
        let width = if space == Space::Pio { width.min(2) } else { width };
        Step::Store(space, address, value.to_le_bytes()[..1 << width].to_vec())
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => a_match().prop_map(Step::Register),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => (any::<prop::sample::Index>(), -8i64..8).prop_map(|(first, by)| Step::Relocate(first, by)),
        4 => a_store(),
        3 => any::<prop::sample::Index>().prop_map(Step::Hit),
    ];
    prop::collection::vec(step, 1..60)
}

/// A guest with its registrations, and what there is to compare after a step.
struct World {
    guest: Guest,
    doorbells: Vec<Doorbell>,
}

#[derive(Debug, PartialEq)]
struct Outcome {
    error: Option<Error>,
    rings: Vec<u64>,
    unmatched: Vec<support::guest::Unmatched>,
}

impl World {
    fn new(setup: Setup) -> Self {
        Self {
            guest: Guest::new(setup),
            doorbells: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) -> Outcome {
        let mut error = None;
        let mut unmatched = Vec::new();
        match step {
            Step::Register(at) => {
                let event = support::eventfd();
                match self.guest.bus.register(*at, event.clone()) {
                    Ok(registration) => self.doorbells.push(Doorbell { registration, event }),
                    Err(rejected) => error = Some(rejected),
                }
            }
            Step::Remove(index) if !self.doorbells.is_empty() => {
                self.doorbells
                    .remove(index.index(self.doorbells.len()))
                    .registration
                    .remove()
                    .unwrap();
            }
            Step::Relocate(index, by) if !self.doorbells.is_empty() => {
                let first = index.index(self.doorbells.len());
                let moving = self.doorbells[first..]
                    .iter_mut()
                    .map(|doorbell| &mut doorbell.registration);
                let from = 0x100;
                error = self
                    .guest
                    .bus
                    .relocate(moving, from, from.wrapping_add_signed(*by))
                    .err();
            }
            Step::Hit(index) if !self.doorbells.is_empty() => {
                let at = self.doorbells[index.index(self.doorbells.len())].registration.at();
                let width = match (at.space, at.length) {
                    (Space::Pio, Length::Bytes8) => 4,
                    (_, Length::Any) => 2,
                    (_, length) => length.bytes() as usize,
                };
                let data = &at.datamatch.unwrap_or(0).to_le_bytes()[..width];
                unmatched = self.guest.store(at.space, at.address, data).unmatched;
            }
            Step::Remove(_) | Step::Relocate(..) | Step::Hit(_) => {}
            Step::Store(space, address, data) => {
                unmatched = self.guest.store(*space, *address, data).unmatched;
            }
        }
        let rings = self.doorbells.iter().map(Doorbell::rings).collect();
        Outcome {
            error,
            rings,
            unmatched,
        }
    }
}

/// What KVM answers to the registration, made past the bus and taken back.
fn kvm_answers(world: &mut World, at: &Match) -> Result<i32, Code> {
    let vm = vm(&mut world.guest);
    let event = support::eventfd();
    let mut flags = if at.space == Space::Pio {
        KVM_IOEVENTFD_FLAG_PIO
    } else {
        0
    };
    if at.datamatch.is_some() {
        flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
    }
    let ask = |flags| {
        let value = at.datamatch.unwrap_or(0);
        ioctl::ioeventfd(&vm, event.as_raw_fd(), at.address, at.length.bytes(), flags, value)
    };
    let answer = ask(flags);
    if answer.is_ok() {
        ask(flags | KVM_IOEVENTFD_FLAG_DEASSIGN).unwrap();
    }
    answer
}

fn kernel_and_fallback() {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let (stores, taken, collisions) = (Cell::new(0), Cell::new(0), Cell::new(0));
    TestRunner::new(config)
        .run(&steps(), |steps| {
            let mut kernel = World::new(Setup::Kernel);
            let mut trapped = World::new(Setup::Trapped);
            for step in &steps {
                let by_kernel = kernel.step(step);
                let by_table = trapped.step(step);
                prop_assert_eq!(&by_kernel, &by_table, "{:?}", step);
                for doorbell in &kernel.doorbells {
                    // The library admits nothing that KVM takes for a collision.
                    prop_assert_eq!(doorbell.registration.path(), Path::Kernel);
                }
                if let (Step::Register(at), Some(Error::Collision { .. })) = (step, &by_kernel.error) {
                    // Nor the other way round.
                    prop_assert_eq!(kvm_answers(&mut kernel, at), Err(Code::EXIST), "{}", at);
                    collisions.set(collisions.get() + 1);
                }
                if let Step::Store(..) | Step::Hit(_) = step {
                    stores.set(stores.get() + 1);
                    taken.set(taken.get() + by_kernel.rings.iter().sum::<u64>());
                }
            }
            Ok(())
        })
        .unwrap();
    let (stores, taken, collisions) = (stores.get(), taken.get(), collisions.get());
    println!("{CASES} cases: {stores} stores in each guest, {taken} signals, {collisions} collisions");
    assert!(
        taken > 50 && collisions > 20,
        "the cases never met: {taken} signals, {collisions} collisions"
    );
}
