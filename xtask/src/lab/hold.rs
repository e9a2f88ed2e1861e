// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask hold-kvm`, which init.sh starts in the lab: keeps KVM from patching the kernel while tests run.
//!
//! KVM has its rare cases behind jump labels. It patches the kernel's text when the first VM comes and when the last one
//! goes, and likewise for the first and last vCPU without an in-kernel LAPIC, and with one that is software-disabled. QEMU
//! before 8.1 may translate text while another CPU patches it and keep the translation: a CPU that has picked up the
//! patching's breakpoint that way then takes it for ever. Seen with 7.2, every few minutes on a busy machine: both CPUs in
//! the kernel's int3 entry, at the jump label for preemption notifiers in `finish_task_switch`.
//!
//! One of each kind that stays keeps the labels as they are.

use std::io::Write;
use std::thread;

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

/// Creates one vCPU of each kind, says `held` on standard output, and keeps them until it is killed.
pub fn run() -> Result<()> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let without_lapic = kvm.create_vm().context("cannot create a VM")?;
    let _vcpu_without_lapic = without_lapic.create_vcpu(0).context("cannot create a vCPU")?;
    let with_lapic = kvm.create_vm().context("cannot create a VM")?;
    with_lapic.create_irq_chip().context("cannot create an irqchip")?;
    let _vcpu_with_lapic = with_lapic.create_vcpu(0).context("cannot create a vCPU with a LAPIC")?;
    writeln!(std::io::stdout(), "held").context("nobody waits for this")?;
    loop {
        thread::park();
    }
}
