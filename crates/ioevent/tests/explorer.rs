// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every short sequence of calls, with every step that the kernel can refuse.
//!
//! The bus is the real one, over a model of KVM's rules for `KVM_IOEVENTFD`. The explorer tries all sequences of up to
//! `EXPLORER_DEPTH` calls (default 4) with up to two refusals at any of the steps that reach the model, and one refusal in
//! the longest. After the last call, with nothing done in between: no registration is half made, the bus and KVM agree on
//! what is registered, and each store signals the eventfd of the registration that it matches once, or exits and matches
//! nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::HashSet;
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ioevent::{Backend, Error, IoeventBus, Length, Match, Path, Refusal, Registration, ReservedRange, Space};
use rustix::io::Errno as Code;
use support::backends::{errno, kvm_collides};
use support::eventfd;
use testkit::counter::count;
use testkit::harness::Suite;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::EventFd;

const A: u64 = 0xd000_0000;
const B: u64 = 0xd000_1000;
const DEPTH: usize = 4;

fn main() -> ExitCode {
    Suite::new("explorer")
        .test_within(
            Duration::from_secs(3600),
            "every_refusal_of_every_sequence",
            &[],
            explore,
        )
        .run()
}

fn explore() {
    let depth = std::env::var("EXPLORER_DEPTH").map_or(DEPTH, |text| text.parse().unwrap());
    let events: Vec<_> = (0..3 * depth + 1).map(|_| eventfd()).collect();
    let (mut runs, mut refused) = (0u64, 0u64);
    let longest = depth;
    for depth in 1..=longest {
        let refusals = if depth == longest { 1 } else { 2 };
        let choices = Arc::new(Mutex::new(Choices::default()));
        loop {
            let mut run = Run::new(choices.clone(), refusals, &events);
            for _ in 0..depth {
                run.call();
            }
            run.check();
            runs += 1;
            refused += u64::from(run.kvm.lock().upset);
            run.end();
            if !choices.lock().unwrap().next() {
                break;
            }
        }
    }
    println!("{runs} runs of up to {longest} calls, {refused} of them with a refusal or a loss");
    assert!(refused > runs / 4, "{refused} of {runs}");
}

/// The decisions of one run, and from them those of the next.
#[derive(Debug, Default)]
struct Choices {
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    /// One of `0..of`.
    fn choose(&mut self, of: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, of));
        }
        let (chosen, among) = self.made[self.at];
        assert_eq!(among, of, "a run is not repeated as it was");
        self.at += 1;
        chosen
    }

    /// Goes to the next run. `false` after the last one.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((chosen, of)) = self.made.pop() {
            if chosen + 1 < of {
                self.made.push((chosen + 1, of));
                return true;
            }
        }
        false
    }
}

/// What KVM has registered, and what it said of it that was not so.
#[derive(Debug)]
struct Kvm {
    choices: Arc<Mutex<Choices>>,
    held: Vec<(Match, RawFd)>,
    /// KVM said that it did not remove these, and kept them.
    kept: HashSet<(Match, RawFd)>,
    /// KVM no longer has these, and the bus was not told: somebody else removed them, or KVM did and said no.
    lost: HashSet<(Match, RawFd)>,
    /// How many steps may still be refused.
    refusals: usize,
    /// Whether a step was refused, or something was lost.
    upset: bool,
}

impl Kvm {
    fn refuses(&mut self, kinds: usize) -> usize {
        if self.refusals == 0 {
            return 0;
        }
        let kind = self.choices.lock().unwrap().choose(1 + kinds);
        self.refusals -= usize::from(kind > 0);
        self.upset |= kind > 0;
        kind
    }

    fn lose(&mut self, which: (Match, RawFd)) {
        self.held.retain(|other| *other != which);
        self.lost.insert(which);
        self.upset = true;
    }
}

#[derive(Clone, Debug)]
struct Model(Arc<Mutex<Kvm>>);

impl Model {
    fn lock(&self) -> MutexGuard<'_, Kvm> {
        // A check that fails while it looks leaves nothing half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Model {
    fn assign(&self, at: &Match, event: &EventFd) -> Result<(), Refusal> {
        let mut kvm = self.lock();
        if kvm.refuses(1) > 0 {
            return Err(Refusal::Kernel(errno(Code::NOSPC)));
        }
        if kvm.held.iter().any(|(other, _)| kvm_collides(other, at)) {
            return Err(Refusal::Kernel(errno(Code::EXIST)));
        }
        let which = (*at, event.as_raw_fd());
        kvm.lost.remove(&which);
        kvm.held.push(which);
        Ok(())
    }

    fn deassign(&self, at: &Match, event: &EventFd) -> Result<(), Errno> {
        let mut kvm = self.lock();
        let which = (*at, event.as_raw_fd());
        // Space, address, length, datamatch and eventfd: all must be those of the registration.
        if !kvm.held.contains(&which) {
            // Now the bus is told.
            kvm.lost.remove(&which);
            return Err(errno(Code::NOENT));
        }
        match kvm.refuses(2) {
            0 => {
                kvm.held.retain(|other| *other != which);
                kvm.kept.remove(&which);
                Ok(())
            }
            1 => {
                kvm.kept.insert(which);
                Err(errno(Code::PERM))
            }
            _ => {
                kvm.lose(which);
                Err(errno(Code::NOMEM))
            }
        }
    }
}

/// A call of the bus's user, or what another user of the VM does.
#[derive(Clone, Copy, Debug)]
enum Call {
    Register(&'static [Match]),
    /// From the registration with this number on.
    Relocate(usize, u64, u64),
    RemoveFirst,
    DropLast,
    Reserve,
    Unreserve,
    /// Somebody removes the first registration from KVM, past the bus.
    Lose,
}

const AT_A: Match = Match::mmio(A, Length::Bytes4);
const AT_B: Match = Match::mmio(B, Length::Bytes4);

const CALLS: [Call; 12] = [
    Call::Register(&[AT_A]),
    Call::Register(&[Match::mmio(A, Length::Any)]),
    Call::Register(&[AT_A.with_datamatch(1), AT_A.with_datamatch(2)]),
    Call::Register(&[AT_A, AT_B]),
    // The last one collides with the first.
    Call::Register(&[AT_A.with_datamatch(1), AT_B.with_datamatch(1), AT_A]),
    Call::Relocate(0, A, B),
    Call::Relocate(1, B, A),
    Call::RemoveFirst,
    Call::DropLast,
    Call::Reserve,
    Call::Unreserve,
    Call::Lose,
];

const RESERVED: ReservedRange = ReservedRange::ram(B..=B + 3);

/// A store to each place, with each value and length that a registration tells apart.
const STORES: [(u64, &[u8]); 7] = [
    (A, &[1, 0, 0, 0]),
    (A, &[2, 0, 0, 0]),
    (A, &[3, 0, 0, 0]),
    (A, &[1, 0]),
    (B, &[1, 0, 0, 0]),
    (B, &[2, 0, 0, 0]),
    (B, &[1, 0]),
];

/// What ought to be registered, on which of the events.
struct Expected {
    at: Match,
    event: usize,
    registration: Registration,
}

struct Run<'a> {
    choices: Arc<Mutex<Choices>>,
    kvm: Model,
    bus: IoeventBus,
    live: Vec<Expected>,
    reserved: bool,
    events: &'a [Arc<EventFd>],
    used: usize,
    calls: Vec<(Call, Option<Error>)>,
}

impl<'a> Run<'a> {
    fn new(choices: Arc<Mutex<Choices>>, refusals: usize, events: &'a [Arc<EventFd>]) -> Self {
        let kvm = Model(Arc::new(Mutex::new(Kvm {
            choices: choices.clone(),
            held: Vec::new(),
            kept: HashSet::new(),
            lost: HashSet::new(),
            refusals,
            upset: false,
        })));
        Self {
            choices,
            bus: IoeventBus::new(kvm.clone()),
            kvm,
            live: Vec::new(),
            reserved: false,
            events,
            used: 0,
            calls: Vec::new(),
        }
    }

    fn fd(&self, expected: &Expected) -> RawFd {
        self.events[expected.event].as_raw_fd()
    }

    fn call(&mut self) {
        let call = CALLS[self.choices.lock().unwrap().choose(CALLS.len())];
        let error = match call {
            Call::Register(set) => self.register(set),
            Call::Relocate(first, from, to) => self.relocate(first, from, to),
            Call::RemoveFirst if !self.live.is_empty() => self.live.remove(0).registration.remove().err(),
            Call::DropLast => {
                self.live.pop();
                None
            }
            Call::Reserve => self.reserve(),
            Call::Unreserve => {
                self.bus.unreserve(&RESERVED);
                self.reserved = false;
                None
            }
            Call::Lose => {
                if let Some(which) = self.live.first().map(|first| (first.at, self.fd(first))) {
                    if self.kvm.lock().held.contains(&which) {
                        self.kvm.lock().lose(which);
                    }
                }
                None
            }
            Call::RemoveFirst => None,
        };
        self.calls.push((call, error));
    }

    /// Whether `new` may stand beside `beside`, by KVM's rule and the reservation.
    fn admits(&self, new: &[Match], beside: &[Match]) -> bool {
        let all: Vec<_> = beside.iter().chain(new).collect();
        let alone = |n: usize| !all[..n].iter().any(|other| kvm_collides(other, all[n]));
        (beside.len()..all.len()).all(alone) && !(self.reserved && new.iter().any(|at| at.address == B))
    }

    /// The outcome of a call that changes all or nothing. A possible change fails only when KVM does not let go.
    #[track_caller]
    fn judge(&self, possible: bool, error: Option<Error>) -> Option<Error> {
        match error {
            None => assert!(possible, "{:?}: the last call succeeded", self.calls),
            Some(Error::NotRemoved { at, errno: why }) => {
                let upset = self.kvm.lock().upset;
                // That KVM lost what is to go anyway is no reason to fail.
                let serious = why != errno(Code::NOENT) || self.live.iter().any(|live| live.at == at);
                assert!(possible && upset && serious, "{:?}: {error:?}", self.calls);
            }
            Some(_) => assert!(!possible, "{:?}: {error:?}", self.calls),
        }
        error
    }

    fn register(&mut self, set: &'static [Match]) -> Option<Error> {
        let live: Vec<_> = self.live.iter().map(|live| live.at).collect();
        let possible = self.admits(set, &live);
        let first = self.used;
        self.used += set.len();
        let events = self.events[first..self.used].iter().cloned();
        match self.bus.register_all(set.iter().copied().zip(events)) {
            Ok(registrations) => {
                self.judge(possible, None);
                for ((registration, at), event) in registrations.into_iter().zip(set).zip(first..) {
                    let at = *at;
                    self.live.push(Expected {
                        at,
                        event,
                        registration,
                    });
                }
                None
            }
            Err(error) => self.judge(possible, Some(error)),
        }
    }

    fn relocate(&mut self, first: usize, from: u64, to: u64) -> Option<Error> {
        let first = first.min(self.live.len());
        let stay: Vec<_> = self.live[..first].iter().map(|live| live.at).collect();
        let moved = |live: &Expected| Match {
            address: live.at.address.wrapping_sub(from).wrapping_add(to),
            ..live.at
        };
        let new: Vec<_> = self.live[first..].iter().map(moved).collect();
        let above = self.live[first..].iter().all(|live| live.at.address >= from);
        let possible = above && self.admits(&new, &stay);
        let moving = self.live[first..].iter_mut().map(|live| &mut live.registration);
        let error = self.bus.relocate(moving, from, to).err();
        if self.judge(possible, error).is_none() {
            for (live, at) in self.live[first..].iter_mut().zip(new) {
                live.at = at;
            }
        }
        error
    }

    fn reserve(&mut self) -> Option<Error> {
        let possible = self.live.iter().all(|live| live.at.address != B);
        let error = self.judge(possible, self.bus.reserve(&[RESERVED]).err());
        self.reserved |= error.is_none();
        error
    }

    fn check(&self) {
        let what = &self.calls;
        let live: HashSet<_> = self.live.iter().map(|live| (live.at, self.fd(live))).collect();
        {
            let kvm = self.kvm.lock();
            for held in &kvm.held {
                assert!(
                    live.contains(held) || kvm.kept.contains(held),
                    "{what:?}: {held:?} is left in KVM"
                );
            }
            for expected in &self.live {
                let which = (expected.at, self.fd(expected));
                assert_eq!(expected.registration.at(), expected.at, "{what:?}");
                let held = kvm.held.contains(&which);
                match expected.registration.path() {
                    Path::Kernel => assert!(held || kvm.lost.contains(&which), "{what:?}: KVM has no {which:?}"),
                    Path::Trapped(why) => assert!(!held, "{what:?}: KVM has {which:?}, and the path says {why}"),
                }
            }
        }
        for (address, data) in STORES {
            self.store(address, data);
        }
        for event in &self.events[..self.used] {
            assert_eq!(count(event.as_ref()), 0, "{what:?}: signalled twice, or for no store");
        }
    }

    /// One store of the guest: KVM takes it, or it exits and is dispatched.
    fn store(&self, address: u64, data: &[u8]) {
        let what = || format!("{:?}: store of {data:?} to {address:#x}", self.calls);
        let matches = |at: &Match| at.matches(Space::Mmio, address, data);
        let in_kernel = self.kvm.lock().held.iter().find(|(at, _)| matches(at)).copied();
        let expected = self.live.iter().find(|live| matches(&live.at));
        match (in_kernel, expected) {
            (Some((_, fd)), Some(expected)) => assert_eq!(fd, self.fd(expected), "{}", what()),
            (Some(held), None) => assert!(self.kvm.lock().kept.contains(&held), "{}: KVM takes it", what()),
            (None, expected) => {
                let taken = self.bus.dispatch(Space::Mmio, address, data).unwrap();
                assert_eq!(taken, expected.is_some(), "{}", what());
                if let Some(expected) = expected {
                    assert_eq!(count(self.events[expected.event].as_ref()), 1, "{}", what());
                }
            }
        }
    }

    /// Everything goes, and KVM refuses nothing any more.
    fn end(mut self) {
        self.kvm.lock().refusals = 0;
        self.live.clear();
        let held = self.kvm.lock().held.clone();
        let what = &self.calls;
        for left in &held {
            assert!(self.kvm.lock().kept.contains(left), "{what:?}: {left:?} is left in KVM");
        }
        self.bus.unreserve(&RESERVED);
        // Where KVM did not let go, it is asked again when the place is used again.
        let spare = &self.events[self.used];
        for (at, _) in held {
            let again = self.bus.register(at, spare.clone()).unwrap();
            assert_eq!(again.path(), Path::Kernel, "{what:?}: {at}");
            assert_eq!(
                self.kvm
                    .lock()
                    .held
                    .iter()
                    .filter(|(other, _)| kvm_collides(other, &at))
                    .count(),
                1
            );
        }
        assert_eq!(self.kvm.lock().held, [], "{what:?}");
        drop(self.bus);
        for event in self.events {
            assert_eq!(Arc::strong_count(event), 1, "{what:?}: an event is kept");
        }
    }
}
