// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The terminal while the guest has it.
//!
//! Keys go to the guest one by one and are echoed by the guest alone. Ctrl-C stays ours: it ends the run. Ctrl-Z and
//! Ctrl-\ would leave the terminal as it is now, and go to the guest.
//!
//! Whoever kills this process (SIGKILL) gives it no chance to put the terminal back. A second process does it then, and
//! ends; it has nothing else to do.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

/// A terminal in the guest's mode. Dropping it puts the terminal back as it was.
#[derive(Debug)]
pub struct GuestTerminal {
    fd: OwnedFd,
    before: Termios,
    guard: Option<Guard>,
}

impl GuestTerminal {
    /// Gives the terminal to the guest; `None` when `fd` is none, or cannot be changed.
    pub fn take(fd: impl AsFd) -> Option<Self> {
        let before = tcgetattr(&fd).ok()?;
        let fd = fd.as_fd().try_clone_to_owned().ok()?;
        // Without it the terminal is put back at every end but one.
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
        // Fails when the terminal has gone.
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.before);
        drop(self.guard.take());
    }
}

/// The process that puts the terminal back when this one cannot. It waits for the end of a pipe whose other end only
/// this process has.
#[derive(Debug)]
struct Guard {
    alive: Option<OwnedFd>,
    process: Option<Pid>,
}

impl Guard {
    /// Takes note of how the terminal is, and starts waiting.
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
        // It has no reason to stay: it fails when somebody else has waited for it.
        let _ = waitpid(self.process, WaitOptions::empty());
    }
}

/// The second process: no allocation, no lock, no panic, only calls that are async-signal-safe.
fn wait_and_restore(terminal: libc::c_int, before: &libc::termios, ended: libc::c_int, alive: libc::c_int) -> ! {
    // What ends the first process by way of the terminal is not for this one, and neither is being stopped in the
    // background.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGTTOU] {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: it is this process's own copy.
    unsafe { libc::close(alive) };
    let mut byte = 0_u8;
    loop {
        // SAFETY: the buffer is a byte of ours. Nobody writes: the end of the pipe is what comes, or a signal.
        if unsafe { libc::read(ended, (&raw mut byte).cast(), 1) } == 0 {
            break;
        }
    }
    // SAFETY: the structure is whole. Where the first process has put the terminal back itself, this changes nothing.
    unsafe { libc::tcsetattr(terminal, libc::TCSANOW, before) };
    // SAFETY: it ends this process without running what belongs to the other one.
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
