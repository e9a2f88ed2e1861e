// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The relay: the part of the state machine that an event loop runs.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::intx::Shared;

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

/// What is to be done to the set of watched eventfds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Nothing.
    Same,
    /// The EOI eventfd is to be watched from now on.
    AddEoi,
    /// The EOI eventfd is not to be watched any more.
    RemoveEoi,
    /// Nothing will come any more.
    End,
}

/// Carries interrupts to the line and EOIs to the device while no direct path does.
///
/// Give it to the event loop that is to run it: as an event-manager subscriber (feature `event-manager`), or on a thread of
/// the VMM's own that calls [`wait`](Self::wait). It makes no thread. On a direct path it sleeps; it is still what INTx falls
/// back to, so that it must be run all the time. Dropping it leaves only the direct paths, and disables INTx when there is
/// none.
///
/// One relayed interrupt takes four system calls with a source that is an irqfd, and five with one that is lowered by a system
/// call: two waits, one to assert, one to lower, one to unmask. The eventfds are watched edge-triggered, so that none is
/// read. Nothing is allocated.
pub struct Relay {
    pub(crate) shared: Arc<Shared>,
    pub(crate) watching_eoi: bool,
    epoll: Option<OwnedFd>,
}

impl Relay {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            watching_eoi: false,
            epoll: None,
        }
    }

    /// Waits for signals, for at most `timeout` or for as long as it takes, and forwards what came. Returns whether
    /// there is anything to wait for any more, which is no longer so when the [`Intx`](crate::Intx) has been dropped.
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
    /// A signal to the thread ends the wait early. Use either this or an event-manager for one relay, not both.
    ///
    /// # Errors
    /// * [`Error::Step`] when a signal could not be forwarded. The state machine has dealt with it: INTx has been set up from
    ///   scratch when the device would not be unmasked, and disabled when the line would not be asserted. Waiting again is
    ///   right.
    /// * [`Error::Os`] when the system refuses an epoll instance, or to add to it. Nothing is forwarded then.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let timeout = timeout
            .map(Timespec::try_from)
            .transpose()
            .map_err(|_| self.os("epoll_wait", io::ErrorKind::InvalidInput.into()))?;
        let epoll = match self.epoll.take() {
            Some(epoll) => epoll,
            None => self.make_epoll().map_err(|error| self.os("epoll_create", error))?,
        };
        let outcome = self.wait_on(&epoll, timeout.as_ref());
        self.epoll = Some(epoll);
        outcome
    }

    fn wait_on(&mut self, epoll: &OwnedFd, timeout: Option<&Timespec>) -> Result<bool> {
        let mut ready = [MaybeUninit::uninit(); 3];
        let ready = match epoll::wait(epoll, &mut ready, timeout) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(self.os("epoll_wait", errno.into())),
        };
        let mut outcome = Ok(true);
        for event in ready {
            let Some(signal) = Signal::from_number(event.data.u64()) else {
                continue;
            };
            let forwarded = match self.forward(signal) {
                Ok(Watch::Same) => continue,
                Ok(Watch::End) => return Ok(false),
                Ok(Watch::AddEoi) => self
                    .add(epoll, Signal::Eoi)
                    .map_err(|error| self.os("epoll_ctl", error)),
                Ok(Watch::RemoveEoi) => {
                    epoll::delete(epoll, &self.shared.forward.eoi).map_err(|errno| self.os("epoll_ctl", errno.into()))
                }
                Err(error) => Err(error),
            };
            if let (Err(error), Ok(_)) = (forwarded, &outcome) {
                outcome = Err(error);
            }
        }
        outcome
    }

    fn make_epoll(&mut self) -> io::Result<OwnedFd> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for signal in self.start() {
            self.add(&epoll, signal)?;
        }
        Ok(epoll)
    }

    fn add(&self, epoll: &OwnedFd, signal: Signal) -> io::Result<()> {
        let data = epoll::EventData::new_u64(signal as u64);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(epoll, self.fd(signal), data, flags)?)
    }

    /// The eventfd of a signal.
    pub(crate) fn fd(&self, signal: Signal) -> impl AsFd {
        let forward = &self.shared.forward;
        match signal {
            Signal::Trigger => forward.trigger.as_fd(),
            Signal::Eoi => forward.eoi.as_fd(),
            Signal::Changed => forward.changed.as_fd(),
        }
    }

    /// What an event loop that begins is to watch: edge-triggered, for input.
    pub(crate) fn start(&mut self) -> impl Iterator<Item = Signal> + use<> {
        self.watching_eoi = self.shared.forward.watches_eoi();
        [Signal::Trigger, Signal::Changed]
            .into_iter()
            .chain(self.watching_eoi.then_some(Signal::Eoi))
    }

    /// Forwards one signal, and says what is to be done to the set of watched eventfds.
    pub(crate) fn forward(&mut self, signal: Signal) -> Result<Watch> {
        let forward = &self.shared.forward;
        match signal {
            Signal::Trigger => forward.on_trigger(),
            Signal::Eoi => match forward.on_eoi(&*self.shared.device) {
                Ok(true) => return self.shared.hand_over().map(|()| Watch::Same),
                outcome => outcome.map(drop),
            },
            Signal::Changed => return Ok(self.changed()),
        }
        .map(|()| Watch::Same)
        .map_err(|trouble| self.shared.trouble(trouble))
    }

    fn changed(&mut self) -> Watch {
        if self.shared.has_ended() {
            return Watch::End;
        }
        let watch = self.shared.forward.watches_eoi();
        match (std::mem::replace(&mut self.watching_eoi, watch), watch) {
            (false, true) => Watch::AddEoi,
            (true, false) => Watch::RemoveEoi,
            _ => Watch::Same,
        }
    }

    pub(crate) fn os(&self, step: &'static str, source: io::Error) -> Error {
        Error::Os {
            operation: "relay",
            device: self.shared.device.label().to_owned(),
            step,
            source,
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.relay_has_gone();
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "relay of {:?}", self.shared.device)
    }
}
