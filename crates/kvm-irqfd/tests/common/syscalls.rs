// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every system call that a thread makes between two marks, counted by ptrace: this program runs itself again as the
//! traced child, which takes no privilege.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Says in the child what to do.
pub const TRACED: &str = "KVM_IRQFD_TRACED";

/// How often each system call was made, by its number, and whether the child succeeded.
pub type Counts = (BTreeMap<i64, u64>, bool);

/// The begin and the end of what is counted, in the child: a system call that nothing else makes.
pub fn mark() {
    let _ = rustix::process::getppid();
}

/// Runs this program again with [`TRACED`] set to `what`, and counts what its main thread does between two marks.
pub fn count(what: &str) -> io::Result<Counts> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(TRACED, what);
    // SAFETY: between fork and exec this makes one system call, which is async-signal-safe.
    unsafe { command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0, 0).map(drop)) };
    let child = command.spawn()?;
    let pid = child.id() as libc::pid_t;
    let (mut counts, mut counting, mut entering) = (BTreeMap::new(), false, true);
    loop {
        let status = wait(pid)?;
        if libc::WIFEXITED(status) {
            return Ok((counts, libc::WEXITSTATUS(status) == 0));
        }
        if libc::WIFSIGNALED(status) {
            return Ok((counts, false));
        }
        let mut signal = 0;
        match libc::WSTOPSIG(status) {
            // A system call begins or ends.
            stopped if stopped == libc::SIGTRAP | 0x80 => {
                if entering {
                    match (system_call(pid)?, counting) {
                        (libc::SYS_getppid, _) => counting = !counting,
                        (number, true) => *counts.entry(number).or_insert(0) += 1,
                        (_, false) => {}
                    }
                }
                entering = !entering;
            }
            // The program begins.
            libc::SIGTRAP => {
                let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
                ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options as usize)?;
            }
            other => signal = other as usize,
        }
        ptrace(libc::PTRACE_SYSCALL, pid, 0, signal)?;
    }
}

fn wait(pid: libc::pid_t) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the status is a local that outlives the call.
    match unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(status),
    }
}

fn system_call(pid: libc::pid_t) -> io::Result<i64> {
    // SAFETY: the structure is integers and a union of them, for which zeroes are values.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut info as usize)?;
    // SAFETY: the thread is at the entry of a system call, for which this member was written.
    Ok(unsafe { info.u.entry.nr } as i64)
}

fn ptrace(request: libc::c_uint, pid: libc::pid_t, address: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: the requests of this file write to `data` at most what its caller provides.
    match unsafe { libc::ptrace(request, pid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
