// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel that refuses. It is this one, made to refuse one ioctl of the program by a seccomp filter.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::Value;

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
            libc::ENOTTY, // a run on the kernel's irqchip and no other
            "no in-kernel 8259 and IOAPIC (CONFIG_KVM_IOAPIC)",
        ),
        (KVM_CREATE_VCPU, libc::EMFILE, "KVM_CREATE_VCPU: "),
        (KVM_IRQFD, libc::ENOMEM, "KVM_IRQFD"),
    ] {
        let arguments = if request == KVM_CREATE_IRQCHIP {
            "run --irqchip kernel"
        } else {
            "run"
        };
        assert_refused(cause, &refused(arguments, request, errno), cause);
    }
    // What a split irqchip does not have is not replaced by something else.
    for arguments in [
        "run --source resample",
        "run --controller pic",
        "explain --device model --source resample",
    ] {
        let ended = refused(arguments, KVM_CREATE_IRQCHIP, libc::ENOTTY);
        assert_refused(arguments, &ended, "no in-kernel 8259 and IOAPIC (CONFIG_KVM_IOAPIC)");
    }
}

/// A kernel without an IOAPIC of its own: CONFIG_KVM_IOAPIC=n leaves KVM_CREATE_IRQCHIP unknown, and the program takes a
/// split irqchip.
pub fn no_kernel_irqchip() {
    for (arguments, irqchip) in [
        ("run --count 200", "split"),
        ("run --device model --count 200", "split"),
        ("explain --device model", "split"),
        ("run --machine soft --count 200", "user"),
        ("run --irqchip user --count 200", "user"),
    ] {
        let ended = refused(&format!("{arguments} --json"), KVM_CREATE_IRQCHIP, libc::ENOTTY);
        assert_eq!(ended.status, Some(0), "{arguments}: {ended:?}");
        let object: Value = serde_json::from_str(&ended.stdout).unwrap();
        // What explains says which end the irqchip of its choice has.
        let used = object.get("irqchip").or(object.get("end"));
        assert_eq!(
            used.and_then(Value::as_str),
            Some(irqchip),
            "{arguments}: {}",
            ended.stdout
        );
        let notes = usize::from(irqchip == "split");
        assert_eq!(
            ended.stderr.matches("; using a split irqchip instead\n").count(),
            notes,
            "{ended:?}"
        );
        assert_eq!(ended.stderr.matches('\n').count(), notes, "{ended:?}");
    }
}

pub fn kvm_run() {
    assert_refused("KVM_RUN", &refused("run", KVM_RUN, libc::EFAULT), "KVM_RUN: ");
}
