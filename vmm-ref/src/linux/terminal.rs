// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The terminal while the guest has it.
//!
//! Keys go to the guest one by one and are echoed by the guest alone. Ctrl-C stays ours: it ends the run. Ctrl-Z and Ctrl-\ would
//! leave the terminal as it is now, and go to the guest.

use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// A terminal in the guest's mode. Dropping it puts the terminal back as it was.
#[derive(Debug)]
pub struct GuestTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl GuestTerminal {
    /// Gives the terminal to the guest; `None` when `fd` is none, or cannot be changed.
    pub fn take(fd: impl AsFd) -> Option<Self> {
        let before = tcgetattr(&fd).ok()?;
        let fd = fd.as_fd().try_clone_to_owned().ok()?;
        let mut mode = before.clone();
        mode.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        for key in [SpecialCodeIndex::VSUSP, SpecialCodeIndex::VQUIT] {
            mode.special_codes[key] = 0; // _POSIX_VDISABLE
        }
        tcsetattr(&fd, OptionalActions::Now, &mode).ok()?;
        Some(Self { fd, before })
    }
}

impl Drop for GuestTerminal {
    fn drop(&mut self) {
        // Fails when the terminal has gone.
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.before);
    }
}
