// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM in a jail as firecracker's, with the versions that firecracker locks: the VMM opens KVM, enters a root without
//! /proc, gives a virtio-mmio device a level line and a doorbell for each queue, and takes the system calls away that
//! firecracker's threads do not have. Then the guest runs.
//!
//! The device's interrupt status is the level: the guest acknowledges one request in each interrupt, and the device has
//! two. The guest also rings the second queue's doorbell in its handler, without an exit.

use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::chroot;
use std::path::Path;
use std::sync::Arc;
use std::{env, fs, io, process};

use interrupt_core::{Gsi, LevelInterrupt};
use ioevent::{IoeventBus, Length, Match};
use kvm_irqfd::KvmInterrupts;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use small_vmm::{AFTER_EOI, Error, Exit, IN_HANDLER, READY, SmallVmm, skip_without_kvm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const IRQ: u8 = 5;
/// Beyond the guest's memory, and within reach of real mode.
const DEVICE: u64 = 0xd_0000;
const QUEUE_NOTIFY: u64 = DEVICE + 0x50;
const INTERRUPT_ACK: u64 = DEVICE + 0x64;
const VRING: u32 = 1;

/// The system calls that are left while the guest runs. Firecracker's filter for the VMM's thread allows all of these,
/// and that for a vCPU all but read and epoll_pwait. The last six are for the allocator and the end of the process.
const ALLOWED: [libc::c_long; 10] = [
    libc::SYS_ioctl,
    libc::SYS_write,
    libc::SYS_read,
    libc::SYS_epoll_pwait,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_exit_group,
];

fn main() -> Result<(), Error> {
    if skip_without_kvm("jailed-virtio") {
        return Ok(());
    }
    let mut vmm = SmallVmm::new()?;
    let acknowledge = [
        &[0xb8, 0x00, 0xd0, 0x8e, 0xd8][..],                     // mov ax, 0xd000; mov ds, ax
        &[0x66, 0xc7, 0x06, 0x50, 0x00, 0x01, 0x00, 0x00, 0x00], // mov dword [0x50], 1: the second queue
        &[0x66, 0xc7, 0x06, 0x64, 0x00, VRING as u8, 0x00, 0x00, 0x00], // mov dword [0x64], VRING
    ];
    vmm.serve_level_irq(IRQ, &acknowledge.concat())?;
    if let Err(error) = enter_jail() {
        println!("skip: consumers::jailed-virtio: no jail: {error}");
        return Ok(());
    }
    assert!(!Path::new("/proc").exists());

    let interrupts = KvmInterrupts::new(vmm.vm().clone())?;
    let device = LevelInterrupt::new(interrupts.resample_source(Gsi(IRQ.into()), "virtio")?, &interrupts)?;
    let bus = IoeventBus::kvm(vmm.vm().clone());
    let queues = [queue()?, queue()?];
    let doorbell = |queue| Match::mmio(QUEUE_NOTIFY, Length::Bytes4).with_datamatch(queue);
    let _doorbells = bus.register_all((0..).map(doorbell).zip(queues.iter().cloned()))?;

    restrict()?;

    let (mut requests, mut handled) = (2, 0);
    vmm.run(|exit| {
        match exit {
            Exit::PioWrite(READY, _) => device.raise(VRING).unwrap(),
            Exit::PioWrite(IN_HANDLER, _) => handled += 1,
            Exit::MmioWrite(INTERRUPT_ACK, acknowledged) => {
                assert_eq!(acknowledged, VRING.to_le_bytes());
                requests -= 1;
                if requests == 0 {
                    device.clear(VRING).unwrap();
                }
            }
            Exit::PioWrite(AFTER_EOI, _) => {
                assert_eq!(queues[1].read().unwrap(), 1, "the handler has rung the doorbell");
                // The device is told of the EOI, and asserts again while it has a request.
                interrupts.dispatch(None).unwrap();
                if requests == 0 {
                    return Break(());
                }
            }
            other => panic!("{other:?}"),
        }
        Continue(())
    })?;
    assert_eq!(handled, 2, "one interrupt for each request");
    assert!(queues[0].read().is_err(), "nobody has rung the first queue's doorbell");
    println!("{handled} level interrupts and {handled} doorbells, in a jail without /proc");
    // Taking the registrations back is not among the calls that are left.
    process::exit(0)
}

/// Makes an empty directory the root of this process. The directory has no name any more then.
fn enter_jail() -> io::Result<()> {
    let root = env::temp_dir().join(format!("jailed-virtio-{}", process::id()));
    fs::create_dir(&root)?;
    env::set_current_dir(&root)?;
    fs::remove_dir(&root)?;
    chroot(".")
}

/// Has the kernel kill this process at any other system call.
fn restrict() -> Result<(), Error> {
    let rules = ALLOWED.map(|call| (call, Vec::new())).into_iter().collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        env::consts::ARCH.try_into()?,
    )?;
    let filter: BpfProgram = filter.try_into()?;
    Ok(apply_filter(&filter)?)
}

fn queue() -> Result<Arc<EventFd>, Error> {
    Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?))
}
