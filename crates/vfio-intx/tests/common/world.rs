// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine: a device, its INTx, the relay, two lines of a guest, and what the kernel does in between, all of which one
//! thread moves on, one step at a time.

use std::time::{Duration, Instant};

use vfio_intx::{GuestLine, Intx, Relay, State};

use super::guest::TestLine;
use super::{PATIENCE, Rig};

pub struct World<R> {
    pub rig: R,
    pub a: TestLine,
    pub b: TestLine,
    pub intx: Intx,
    /// Run by [`World::pump`].
    pub relay: Option<Relay>,
    /// How often the guest's handler found its device asserting.
    pub served: u32,
    /// How often it found it quiet.
    pub spurious: u32,
}

/// The paths that a test goes through, by the line that leads to each.
pub const PATHS: [(&str, State); 3] = [
    ("relay", State::Relay),
    ("kernel loop", State::KernelLoop),
    ("split kick", State::SplitKick),
];

/// The line of `on` that leads to `state`.
pub fn line_for(on: &TestLine, state: State) -> GuestLine {
    match state {
        State::KernelLoop => on.kernel(),
        State::SplitKick => on.split(),
        _ => on.relay(),
    }
}

impl<R: Rig> World<R> {
    pub fn new(rig: R) -> Self {
        let (intx, relay) = Intx::new(rig.interrupt()).unwrap();
        Self {
            rig,
            a: TestLine::new(10),
            b: TestLine::new(11),
            intx,
            relay: Some(relay),
            served: 0,
            spurious: 0,
        }
    }

    /// Enabled on line `a`, in `state`.
    pub fn in_state(rig: R, state: State) -> Self {
        let world = Self::new(rig);
        world.intx.set_line(Some(line_for(&world.a, state))).unwrap();
        assert_eq!(world.intx.enable().unwrap(), state, "{}", world.intx.status());
        world
    }

    /// One step of everything but the guest.
    pub fn pump(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.wait(Some(Duration::ZERO)).unwrap();
        }
        self.a.irqfd.poll();
        self.b.irqfd.poll();
        self.rig.pump();
    }

    /// Steps until `condition` holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.pump();
            if condition(self) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not within {PATIENCE:?}: {what}; {:?}; {:?}",
                self.intx,
                self.rig.interrupt()
            );
        }
    }

    /// Steps for long enough that what was going to happen has.
    pub fn settle(&mut self) {
        let end = Instant::now() + self.rig.quiet();
        // A signal takes at most these steps round: the trigger, the line, the EOI, the unmask.
        for _ in 0..8 {
            self.pump();
        }
        while Instant::now() < end {
            self.pump();
        }
    }

    /// The guest's handler, if there is an interrupt: acknowledges the device and ends the interrupt.
    pub fn guest_step(&mut self) -> bool {
        let mut ran = false;
        for line in 0..2 {
            if self.line(line).accept() {
                self.serve();
                self.line(line).eoi();
                ran = true;
            }
        }
        ran
    }

    /// The handler's body: what it does before its EOI.
    pub fn serve(&mut self) {
        match self.rig.status() {
            0 => self.spurious += 1,
            status => {
                self.served += 1;
                self.rig.acknowledge(status);
            }
        }
    }

    fn line(&self, index: usize) -> &TestLine {
        [&self.a, &self.b][index]
    }

    /// Raises, and has the guest serve it.
    #[track_caller]
    pub fn round(&mut self) {
        let before = self.served;
        self.rig.raise(1);
        self.until("the guest serves the interrupt", |world| {
            world.guest_step();
            world.served > before
        });
    }

    /// Raises and has the guest serve, `count` times; then nothing more may come.
    #[track_caller]
    pub fn works(&mut self, count: u32) {
        let before = (self.served, self.spurious);
        for _ in 0..count {
            self.round();
        }
        self.rests();
        assert_eq!((self.served, self.spurious), (before.0 + count, before.1));
    }

    /// Nothing is asserted, and the guest sees nothing.
    #[track_caller]
    pub fn rests(&mut self) {
        self.settle();
        assert!(!self.guest_step(), "an interrupt that nobody raised: {:?}", self.intx);
        assert!(
            !self.a.is_high() && !self.b.is_high(),
            "a line is high: {:?}",
            self.intx
        );
    }
}
