// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine: a device, its INTx, the relay, two lines of a guest, and what the kernel does in between, all of which
//! one thread moves on, one step at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use interrupt_core::forward::{self, Connection, Consumer, GuestLine};
use vfio_intx::{Intx, Relay, State};

use super::guest::{Guest, LINES, LineId, SoftGuest};
use super::{PATIENCE, Rig};

// Fields go in this order: INTx before the device and the guest that it is wired to.
pub struct World<R, G = SoftGuest> {
    /// What leads INTx to its line, unless a test uses a registry.
    pub connection: Connection,
    pub intx: Arc<Intx>,
    /// Run by [`World::pump`].
    pub relay: Option<Relay>,
    pub rig: R,
    pub guest: G,
    /// The relay may report errors, because the test has made a step fail.
    pub tolerates_errors: bool,
    /// How often the guest's handler found its device asserting.
    pub served: u32,
    /// How often it found it quiet.
    pub spurious: u32,
}

impl<R: Rig> World<R> {
    /// With the guest in software.
    pub fn soft(rig: R) -> Self {
        Self::new(rig, SoftGuest::new())
    }

    /// With the guest in software, enabled on line A, in `state`.
    pub fn soft_in(rig: R, state: State) -> Self {
        Self::in_state(rig, SoftGuest::new(), state)
    }
}

impl<R: Rig, G: Guest> World<R, G> {
    pub fn new(rig: R, guest: G) -> Self {
        let (intx, relay) = Intx::new(rig.interrupt()).unwrap();
        let intx = Arc::new(intx);
        Self {
            rig,
            guest,
            connection: Connection::new(Arc::<Intx>::clone(&intx)),
            intx,
            relay: Some(relay),
            tolerates_errors: false,
            served: 0,
            spurious: 0,
        }
    }

    /// Enabled on line A, in `state`.
    pub fn in_state(rig: R, guest: G, state: State) -> Self {
        let world = Self::new(rig, guest);
        world.route(Some(world.guest.line(LineId::A, state))).unwrap();
        assert_eq!(world.intx.enable().unwrap(), state, "{}", world.intx.status());
        world
    }

    /// The guest routes the pin to another line, or nowhere.
    pub fn route(&self, line: Option<GuestLine>) -> forward::Result<State> {
        self.connection
            .set_consumer(line.map(|line| Arc::new(line) as Arc<dyn Consumer>))?;
        Ok(self.intx.status().state)
    }

    /// One step of everything but the guest.
    pub fn pump(&mut self) {
        if let Some(relay) = &mut self.relay {
            match relay.wait(Some(Duration::ZERO)) {
                Err(error) if !self.tolerates_errors => panic!("{error}"),
                _ => {}
            }
        }
        self.guest.pump();
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
        let end = Instant::now() + self.rig.quiet().max(self.guest.quiet());
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
        for line in LINES {
            if self.guest.accept(line) {
                self.serve();
                self.guest.eoi(line);
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

    /// Raises, and has the guest serve it.
    #[track_caller]
    pub fn round(&mut self) {
        let before = self.served;
        self.rig.raise(1);
        self.until("the guest serves the interrupt", |world| {
            world.guest_step();
            world.served > before
        });
        // A relay unmasks only now; raised before that, the device would be signalled again instead of interrupting its
        // host.
        self.pump();
    }

    /// Raises and has the guest serve, `count` times; then nothing more may come. With an irqfd a pulse may run the
    /// guest's handler once more than needed.
    #[track_caller]
    pub fn works(&mut self, count: u32) {
        let before = (self.served, self.spurious);
        for _ in 0..count {
            self.round();
        }
        let pulses = !self.intx.info().automasked;
        if pulses {
            self.serve_all();
        }
        self.rests();
        assert_eq!(self.served, before.0 + count);
        let unneeded = if pulses { count } else { 0 };
        assert!(self.spurious <= before.1 + unneeded, "{} and {before:?}", self.spurious);
    }

    pub fn any_line_is_high(&self) -> bool {
        LINES.into_iter().any(|line| self.guest.is_high(line))
    }

    /// The guest serves what the device asserts, and then what else comes.
    #[track_caller]
    pub fn serve_all(&mut self) {
        self.settle();
        self.until("what the device asserts is served", |world| {
            world.guest_step();
            world.rig.status() == 0
        });
        self.settle();
        while self.guest_step() {
            self.settle();
        }
    }

    /// Nothing is asserted, and the guest sees nothing.
    #[track_caller]
    pub fn rests(&mut self) {
        self.settle();
        assert!(!self.guest_step(), "an interrupt that nobody raised: {:?}", self.intx);
        assert!(!self.any_line_is_high(), "a line is high: {:?}", self.intx);
    }
}
