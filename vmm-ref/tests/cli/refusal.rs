// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel that refuses. It is this one, made to refuse one ioctl of the program by a seccomp filter.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::program::{Ended, assert_refused, command};

const KVM_CREATE_IRQCHIP: u32 = 0xae60;
const KVM_CREATE_VM: u32 = 0xae01;
const KVM_CREATE_VCPU: u32 = 0xae41;
const KVM_RUN: u32 = 0xae80;
const KVM_IRQFD: u32 = 0x4020_ae76;

/// Lets every ioctl with this request fail with `errno`, in the program that `command` is to run.
fn refuse(command: &mut Command, request: u32, errno: i32) {
    let load = |offset: usize| (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset as u32);
    let unless = |value: u32, skip: u8| (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, value);
    let answer = |value: u32| (libc::BPF_RET | libc::BPF_K, 0, 0, value);
    let nr = std::mem::offset_of!(libc::seccomp_data, nr);
    let request_low = std::mem::offset_of!(libc::seccomp_data, args) + 8;
    let filter = [
        load(nr),
        unless(libc::SYS_ioctl as u32, 3),
        load(request_low),
        unless(request, 1),
        answer(libc::SECCOMP_RET_ERRNO | errno as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    });
    let install = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: PR_SET_NO_NEW_PRIVS reads its integer arguments only.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel copies the program, which `filter` outlives, and writes nothing through it.
        if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls and neither allocates nor locks.
    unsafe { command.pre_exec(install) };
}

fn refused(arguments: &str, request: u32, errno: i32) -> Ended {
    let mut command = command(arguments);
    refuse(&mut command, request, errno);
    command.output().unwrap().into()
}

pub fn ioctls() {
    for (request, errno, cause) in [
        (KVM_CREATE_VM, libc::ENOMEM, "KVM_CREATE_VM: "),
        (
            KVM_CREATE_IRQCHIP,
            libc::ENOTTY,
            "no in-kernel 8259 and IOAPIC (CONFIG_KVM_IOAPIC)",
        ),
        (KVM_CREATE_VCPU, libc::EMFILE, "KVM_CREATE_VCPU: "),
        (KVM_IRQFD, libc::ENOMEM, "KVM_IRQFD"),
    ] {
        assert_refused(cause, &refused("run", request, errno), cause);
    }
}

pub fn kvm_run() {
    assert_refused("KVM_RUN", &refused("run", KVM_RUN, libc::EFAULT), "KVM_RUN: ");
}
