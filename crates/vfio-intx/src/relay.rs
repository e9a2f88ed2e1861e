// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The relay's event loop: what wakes it, and what it watches.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use interrupt_core::EveryStep;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::state_machine::StateMachine;

/// One of the three eventfds that the relay watches, as the number that an event loop hands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The device has signalled.
    Trigger = 0,
    /// The line has been sampled.
    Eoi = 1,
    /// What is to be watched has changed.
    Changed = 2,
}

impl Signal {
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        [Self::Trigger, Self::Eoi, Self::Changed]
            .into_iter()
            .find(|signal| *signal as u64 == number)
    }
}

/// Carries interrupts to the line and EOIs to the device while no direct path does.
///
/// An event loop has to run it all the time: as an event-manager subscriber (feature `event-manager`), or on a thread
/// of the VMM's own that calls [`wait`](Self::wait). It starts no thread. While a direct path carries INTx it sleeps.
/// Dropping it leaves only the direct paths: an INTx that is connected by a direct path takes it at once, and another
/// is disabled.
///
/// One relayed interrupt takes four system calls with a source that is an irqfd, and five with one that is lowered by a
/// system call: two waits, one to assert, one to lower, one to unmask. The eventfds are watched edge-triggered, so that
/// none is read; but the trigger of a device that pulses is read for each pulse, and such a device is not unmasked.
/// Nothing is allocated.
///
/// A pulse is asserted a second time after the first EOI, unless the source answers
/// [`Delivered`](interrupt_core::Delivery::Delivered): that EOI may be another device's, whose handlers looked at this
/// device before the pulse. An irqfd never answers so: with an irqfd the guest's handler runs once for nothing after a
/// pulse, or after the last of several that follow closely.
pub struct Relay {
    pub(crate) machine: Arc<StateMachine>,
    /// The event loop watches the EOI eventfd.
    watching_eoi: bool,
    epoll: OwnedFd,
}

impl Relay {
    pub(crate) fn new(machine: Arc<StateMachine>) -> io::Result<Self> {
        let relay = Self {
            machine,
            watching_eoi: false,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        };
        for signal in Self::ALWAYS {
            relay.add(signal)?;
        }
        Ok(relay)
    }

    /// Waits for signals, for at most `timeout` or for as long as it takes, and carries them. Returns whether there is
    /// anything to wait for any more: `false` once the [`Intx`](crate::Intx) has been dropped.
    ///
    /// This is the body of a thread's loop:
    ///
    /// ```no_run
    /// # fn run(mut relay: vfio_intx::Relay) {
    /// std::thread::spawn(move || {
    ///     loop {
    ///         match relay.wait(None) {
    ///             Ok(true) => {}
    ///             Ok(false) => break,
    ///             Err(error) => eprintln!("{error}"),
    ///         }
    ///     }
    /// });
    /// # }
    /// ```
    ///
    /// A signal to the thread ends the wait early. Use either this or an event-manager for one relay, not both. In
    /// another event loop, watch the relay's file descriptor ([`AsFd`]) for input, and wait with a timeout of 0 when it
    /// is ready.
    ///
    /// # Errors
    /// * [`Error::Step`] when a signal could not be carried. The state machine has dealt with it: INTx has been set up
    ///   from scratch when the device would not be unmasked, and disabled when the line would not be asserted. Wait
    ///   again.
    /// * [`Error::Os`] when the system refuses the wait, or a change of what is watched. The next wait tries again.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let timeout = timeout
            .map(Timespec::try_from)
            .transpose()
            .map_err(|_| self.os("epoll_wait", io::ErrorKind::InvalidInput.into()))?;
        // Also what a wait before could not do.
        self.update()?;
        let mut ready = [MaybeUninit::uninit(); 3];
        let ready = match epoll::wait(&self.epoll, &mut ready, timeout.as_ref()) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(self.os("epoll_wait", errno.into())),
        };
        let mut outcome = Ok(true);
        // An edge that epoll has reported is not reported again: each is carried, also after a line has panicked.
        let mut steps = EveryStep::default();
        for event in ready {
            let carried = match Signal::from_number(event.data.u64()) {
                Some(signal) => steps.take(|| self.carry(signal)),
                None => continue,
            };
            match carried {
                Some(Ok(true)) | None => {}
                Some(Ok(false)) => return Ok(false),
                Some(Err(error)) => outcome = outcome.and(Err(error)),
            }
        }
        steps.end();
        self.update().and(outcome)
    }

    fn update(&mut self) -> Result<()> {
        let watched = self.watch(|relay, signal, add| match add {
            true => relay.add(signal),
            false => Ok(epoll::delete(&relay.epoll, relay.fd(signal))?),
        });
        watched.map_err(|error| self.os("epoll_ctl", error))
    }

    fn add(&self, signal: Signal) -> io::Result<()> {
        let data = epoll::EventData::new_u64(signal as u64);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, self.fd(signal), data, flags)?)
    }

    /// The eventfd of a signal.
    pub(crate) fn fd(&self, signal: Signal) -> impl AsFd {
        let wires = self.machine.wires();
        match signal {
            Signal::Trigger => wires.trigger.as_fd(),
            Signal::Eoi => wires.eoi.as_fd(),
            Signal::Changed => wires.changed.as_fd(),
        }
    }

    /// What an event loop watches at any time: edge-triggered, for input. [`watch`](Self::watch) adds the EOI eventfd.
    pub(crate) const ALWAYS: [Signal; 2] = [Signal::Trigger, Signal::Changed];

    /// What the event loop watches now.
    #[cfg(feature = "event-manager")]
    pub(crate) fn watched(&self) -> impl Iterator<Item = Signal> + use<> {
        let eoi = self.watching_eoi.then_some(Signal::Eoi);
        Self::ALWAYS.into_iter().chain(eoi)
    }

    /// Carries one signal. Returns whether there is anything to wait for any more.
    pub(crate) fn carry(&mut self, signal: Signal) -> Result<bool> {
        match signal {
            Signal::Trigger => self.machine.on_trigger()?,
            Signal::Eoi => self.machine.on_eoi()?,
            Signal::Changed => return Ok(!self.machine.has_ended()),
        }
        Ok(true)
    }

    /// Has the event loop watch the EOI eventfd or not, as the wires need it: `change` adds or removes a signal. What
    /// fails is tried again by the next call.
    pub(crate) fn watch(&mut self, change: impl FnOnce(&Self, Signal, bool) -> io::Result<()>) -> io::Result<()> {
        let watch = self.machine.wires().watches_eoi();
        if watch != self.watching_eoi {
            change(self, Signal::Eoi, watch)?;
            self.watching_eoi = watch;
        }
        Ok(())
    }

    pub(crate) fn os(&self, step: &'static str, source: io::Error) -> Error {
        Error::Os {
            operation: "relay",
            device: self.machine.device.label().to_owned(),
            step,
            source,
        }
    }
}

/// An epoll instance, ready for input while there is something for [`Relay::wait`] to carry.
impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.machine.relay_has_gone();
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "relay of {:?}", self.machine.device)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use interrupt_core::forward::{Connection, GuestLine, Path};
    use interrupt_core::testing::{LevelDevice, ManualNotifier, RecordingSource};
    use interrupt_core::{Delivery, Gsi, Level, LevelSource, SourceKey};

    use super::*;
    use crate::intx::Intx;
    use crate::status::State;

    #[test]
    fn what_cannot_be_watched_is_tried_again() {
        let (_intx, mut relay) = Intx::new(Arc::new(LevelDevice::new())).unwrap();
        relay.machine.wires().watch_eoi(true).unwrap();
        relay.watch(|_, _, _| Err(Errno::NOMEM.into())).unwrap_err();
        let mut tried = None;
        let again = relay.watch(|_, signal, add| {
            tried = Some((signal, add));
            Ok(())
        });
        again.unwrap();
        assert_eq!(tried, Some((Signal::Eoi, true)));
        relay.watch(|_, _, _| panic!("it is watched")).unwrap();
    }

    /// A line whose `assert` or `deassert` panics.
    #[derive(Debug)]
    struct Faulty {
        source: RecordingSource,
        at: &'static str,
    }

    impl LevelSource for Faulty {
        fn key(&self) -> SourceKey {
            self.source.key()
        }

        fn label(&self) -> &str {
            "faulty"
        }

        fn assert(&self) -> interrupt_core::Result<Delivery> {
            assert_ne!(self.at, "assert", "the line's fault");
            self.source.assert()
        }

        fn deassert(&self) -> interrupt_core::Result<()> {
            assert_ne!(self.at, "deassert", "the line's fault");
            self.source.deassert()
        }

        fn force_deassert(&self) -> interrupt_core::Result<()> {
            self.source.force_deassert()
        }

        fn trigger(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    /// Row 148: a device that masks itself is not left masked when the line panics.
    #[test]
    fn a_line_that_panics_leaves_no_device_masked() {
        for (at, state) in [("assert", State::Disabled), ("deassert", State::Carried(Path::Relay))] {
            let device = Arc::new(LevelDevice::new());
            let (intx, mut relay) = Intx::new(device.clone()).unwrap();
            let intx = Arc::new(intx);
            let connection = Connection::new(intx.clone());
            let notifier = Arc::new(ManualNotifier::default());
            let source = RecordingSource::new(Gsi(5));
            let line = GuestLine::relay(Arc::new(Faulty { source, at }), notifier.clone(), "a test");
            connection.set_consumer(Some(Arc::new(line))).unwrap();
            intx.enable().unwrap();
            device.set_level(Level::High).unwrap();
            let mut wait = || relay.wait(Some(Duration::ZERO));
            if at == "deassert" {
                wait().unwrap();
                device.set_level(Level::Low).unwrap();
                notifier.eoi(Gsi(5)).unwrap();
            }
            catch_unwind(AssertUnwindSafe(&mut wait)).unwrap_err();
            assert_eq!(intx.status().state, state, "{at}");
            assert!(state == State::Disabled || !device.is_masked(), "{at}");
            assert!(wait().unwrap());
        }
    }
}
