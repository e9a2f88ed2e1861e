// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The terminal while the guest has it.
//!
//! Each key goes to the guest at once, and only the guest echoes it. Ctrl-C ends the run. Ctrl-Z and Ctrl-\ go to the
//! guest, because they would leave the terminal in the guest's mode.
//!
//! SIGKILL gives this process no chance to restore the terminal. A second process waits for the end of this process,
//! then restores the terminal and exits.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// A terminal in the guest's mode. A drop restores the previous mode.
#[derive(Debug)]
pub struct GuestTerminal {
    fd: OwnedFd,
    before: Termios,
    guard: Option<Guard>,
}

impl GuestTerminal {
    /// Switches the terminal to the guest's mode. `None` when `fd` is no terminal or cannot be changed.
    pub fn take(fd: impl AsFd) -> Option<Self> {
        let before = tcgetattr(&fd).ok()?;
        let fd = fd.as_fd().try_clone_to_owned().ok()?;
        // Without the guard, only SIGKILL leaves the terminal in the guest's mode.
        let guard = Guard::start(&fd).ok();
        let mut mode = before.clone();
        mode.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        for key in [SpecialCodeIndex::VSUSP, SpecialCodeIndex::VQUIT] {
            mode.special_codes[key] = 0; // _POSIX_VDISABLE
        }
        tcsetattr(&fd, OptionalActions::Now, &mode).ok()?;
        Some(Self { fd, before, guard })
    }
}

impl Drop for GuestTerminal {
    fn drop(&mut self) {
        // Ignore the error: the terminal has gone.
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.before);
        drop(self.guard.take());
    }
}

/// The process that restores the terminal when this process cannot. It waits for the end of a pipe whose write end only
/// this process holds.
#[derive(Debug)]
struct Guard {
    alive: Option<OwnedFd>,
    process: Option<Pid>,
}

impl Guard {
    /// Records the terminal's mode and forks the waiting process.
    fn start(terminal: &OwnedFd) -> io::Result<Self> {
        let (ended, alive) = pipe_with(PipeFlags::CLOEXEC)?;
        let (terminal, ended_fd, alive_fd) = (terminal.as_raw_fd(), ended.as_raw_fd(), alive.as_raw_fd());
        // SAFETY: all zeroes are a `termios`, which the call fills.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the fd is open, and the structure is ours.
        if unsafe { libc::tcgetattr(terminal, &mut before) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the child of a process with threads may only call what is async-signal-safe (signal-safety(7)), which
        // `wait_and_restore` keeps to; it does not return.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => wait_and_restore(terminal, &before, ended_fd, alive_fd),
            child => Ok(Self {
                alive: Some(alive),
                process: Pid::from_raw(child),
            }),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.alive.take());
        // The child ends when `alive` closes. waitpid fails only if the child has already been reaped.
        let _ = waitpid(self.process, WaitOptions::empty());
    }
}

/// The second process: no allocation, no lock, no panic, only calls that are async-signal-safe.
fn wait_and_restore(terminal: libc::c_int, before: &libc::termios, ended: libc::c_int, alive: libc::c_int) -> ! {
    // Ignore the terminal's signals: this process has to outlive the first process, and must not stop when it changes
    // the terminal from the background.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGTTOU] {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: the descriptor is this process's own copy.
    unsafe { libc::close(alive) };
    let mut byte = 0_u8;
    loop {
        // SAFETY: the buffer is a local byte. No process writes to the pipe, so read returns at its end or at a signal.
        if unsafe { libc::read(ended, (&raw mut byte).cast(), 1) } == 0 {
            break;
        }
    }
    // SAFETY: the structure is initialised. The call changes nothing if the first process has restored the terminal.
    unsafe { libc::tcsetattr(terminal, libc::TCSANOW, before) };
    // SAFETY: _exit runs no destructors and no exit handlers, which belong to the first process.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    #[test]
    fn it_is_put_back() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let modes = || tcgetattr(&terminal).unwrap().local_modes;
        let before = modes();
        let taken = GuestTerminal::take(&terminal).unwrap();
        assert_eq!(modes(), before - LocalModes::ICANON - LocalModes::ECHO);
        let process = taken.guard.as_ref().unwrap().process.unwrap();
        drop(taken);
        assert_eq!(modes(), before);
        rustix::process::test_kill_process(process).unwrap_err();
    }

    #[test]
    fn a_file_is_no_terminal() {
        assert!(GuestTerminal::take(OpenOptions::new().read(true).open("/dev/null").unwrap()).is_none());
    }
}
