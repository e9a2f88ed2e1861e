// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that may make few system calls, as a VMM's vCPU.

use std::collections::BTreeMap;
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// What a thread of Rust needs beside its work: memory, locks, and its end.
const RUST: [i64; 13] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
];

/// Runs `body` on a thread that may make the system calls of `calls`, and those of any thread of Rust. Another call kills
/// the process, as it kills a VMM ("Bad system call").
///
/// # Panics
/// The kernel refuses the filter, or `body` panics.
pub fn with_only(calls: &[i64], body: impl FnOnce() + Send) {
    let rules: BTreeMap<_, _> = RUST.iter().chain(calls).map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            apply_filter(&program).unwrap();
            body();
        });
    });
}
