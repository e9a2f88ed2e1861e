// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The signals that end a run with a Linux guest.

use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};

use crate::error::{Error, Result};
use crate::vm::ending::{End, Ending};

/// The signals that end a run, as a socket that each signal writes to.
#[derive(Debug)]
pub(super) struct Signals {
    came: UnixStream,
    registered: Vec<signal_hook::SigId>,
}

impl Signals {
    pub(super) fn catch() -> Result<Self> {
        let failed = |source| Error::System {
            step: "catching signals",
            source,
        };
        let (came, tell) = UnixStream::pair().map_err(failed)?;
        let mut signals = Self {
            came,
            registered: Vec::new(),
        };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let tell = tell.try_clone().map_err(failed)?;
            signals.registered.push(pipe::register(signal, tell).map_err(failed)?);
        }
        Ok(signals)
    }

    /// Waits for the end of the run. A signal ends the run.
    pub(super) fn wait(&self, ending: &Ending) -> Result<()> {
        while ending.ended().is_none() {
            let mut fds = [
                PollFd::new(&self.came, PollFlags::IN),
                PollFd::new(ending.event(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => ending.end(End::Interrupted),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::System {
                        step: "poll",
                        source: errno.into(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}
