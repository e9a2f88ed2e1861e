// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bare KVM ioctls with arbitrary arguments.
//!
//! kvm-ioctls builds the argument itself and so cannot send an unknown flag, a closed fd or a length of 3. These
//! functions send their arguments unchanged and return the kernel's answer: the ioctl's non-negative result, or its
//! errno.

use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    KVMIO, KvmIrqRouting, kvm_interrupt, kvm_ioeventfd, kvm_irq_level, kvm_irq_level__bindgen_ty_1, kvm_irq_routing,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irqfd,
};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::io::Errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{errno, ioctl_iow_nr, ioctl_iowr_nr};

pub use kvm_bindings::{KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE};

/// Compare the value stored with `datamatch`.
pub const KVM_IOEVENTFD_FLAG_DATAMATCH: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_datamatch;
/// The address is a port.
pub const KVM_IOEVENTFD_FLAG_PIO: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_pio;
/// Remove instead of add.
pub const KVM_IOEVENTFD_FLAG_DEASSIGN: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_deassign;

// The macros make public functions. This module keeps them private.
mod nr {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    use super::*;
    ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
    ioctl_iow_nr!(KVM_IRQ_LINE, KVMIO, 0x61, kvm_irq_level);
    ioctl_iowr_nr!(KVM_IRQ_LINE_STATUS, KVMIO, 0x67, kvm_irq_level);
    ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
    ioctl_iow_nr!(KVM_SET_GSI_ROUTING, KVMIO, 0x6a, kvm_irq_routing);
    ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
}

fn answer(result: i32) -> Result<i32, Errno> {
    if result < 0 {
        Err(Errno::from_raw_os_error(errno::Error::last().errno()))
    } else {
        Ok(result)
    }
}

/// `KVM_IRQFD` with exactly these fields (`pad` is 0). An fd of -1 is sent as 0xffff_ffff.
pub fn irqfd(vm: &VmFd, fd: RawFd, gsi: u32, flags: u32, resamplefd: RawFd) -> Result<i32, Errno> {
    let arg = kvm_irqfd {
        fd: fd as u32,
        gsi,
        flags,
        resamplefd: resamplefd as u32,
        pad: [0; 16],
    };
    // SAFETY: KVM_IRQFD reads a `kvm_irqfd` and writes nothing through the pointer; any value of the fields is allowed.
    answer(unsafe { ioctl_with_ref(vm, nr::KVM_IRQFD(), &arg) })
}

/// Assigns `fd` as a plain (edge) irqfd of `gsi`.
pub fn assign_edge(vm: &VmFd, fd: &impl AsRawFd, gsi: u32) -> Result<i32, Errno> {
    irqfd(vm, fd.as_raw_fd(), gsi, 0, 0)
}

/// Assigns `trigger` as a resample irqfd of `gsi`, with `resamplefd` to be signalled at each resample.
pub fn assign_resample(vm: &VmFd, trigger: &impl AsRawFd, resamplefd: &impl AsRawFd, gsi: u32) -> Result<i32, Errno> {
    irqfd(
        vm,
        trigger.as_raw_fd(),
        gsi,
        KVM_IRQFD_FLAG_RESAMPLE,
        resamplefd.as_raw_fd(),
    )
}

/// Deassigns `fd` from `gsi`. When it returns, no injection of this irqfd is pending any more.
pub fn deassign(vm: &VmFd, fd: &impl AsRawFd, gsi: u32) -> Result<i32, Errno> {
    irqfd(vm, fd.as_raw_fd(), gsi, KVM_IRQFD_FLAG_DEASSIGN, 0)
}

fn irq_level(gsi: u32, level: u32) -> kvm_irq_level {
    kvm_irq_level {
        __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq: gsi },
        level,
    }
}

/// `KVM_IRQ_LINE`: sets the level of `gsi` (0 low, 1 high).
pub fn irq_line(vm: &VmFd, gsi: u32, level: u32) -> Result<i32, Errno> {
    let arg = irq_level(gsi, level);
    // SAFETY: KVM_IRQ_LINE reads a `kvm_irq_level` and writes nothing through the pointer.
    answer(unsafe { ioctl_with_ref(vm, nr::KVM_IRQ_LINE(), &arg) })
}

/// `KVM_IRQ_LINE_STATUS`: as [`irq_line`]; the value is the status the kernel wrote back (-1 ignored, 0 coalesced,
/// above 0 the number of CPUs it was delivered to).
pub fn irq_line_status(vm: &VmFd, gsi: u32, level: u32) -> Result<i32, Errno> {
    let mut arg = irq_level(gsi, level);
    // SAFETY: KVM_IRQ_LINE_STATUS reads and writes one `kvm_irq_level`. `arg` has that type and outlives the call.
    answer(unsafe { ioctl_with_mut_ref(vm, nr::KVM_IRQ_LINE_STATUS(), &mut arg) })?;
    // SAFETY: both members of the union are 32-bit integers, and the kernel has written `status`.
    Ok(unsafe { arg.__bindgen_anon_1.status })
}

/// `KVM_IOEVENTFD` with exactly these fields.
pub fn ioeventfd(vm: &VmFd, fd: RawFd, addr: u64, len: u32, flags: u32, datamatch: u64) -> Result<i32, Errno> {
    let arg = kvm_ioeventfd {
        datamatch,
        addr,
        len,
        fd,
        flags,
        pad: [0; 36],
    };
    // SAFETY: KVM_IOEVENTFD reads a `kvm_ioeventfd` and writes nothing through the pointer.
    answer(unsafe { ioctl_with_ref(vm, nr::KVM_IOEVENTFD(), &arg) })
}

/// `KVM_SET_GSI_ROUTING`: replaces the whole routing table.
pub fn set_gsi_routing(vm: &VmFd, entries: &[kvm_irq_routing_entry]) -> Result<i32, Errno> {
    // Above 4096 entries the wrapper refuses the table with the kernel's errno, as the kernel would.
    let table = KvmIrqRouting::from_entries(entries).map_err(|_| Errno::INVAL)?;
    // SAFETY: KVM_SET_GSI_ROUTING reads the header and the `nr` entries behind it, which the wrapper has laid out
    // together.
    answer(unsafe { ioctl_with_ref(vm, nr::KVM_SET_GSI_ROUTING(), table.as_fam_struct_ref()) })
}

/// A routing entry: `gsi` to `pin` of an in-kernel chip (`KVM_IRQCHIP_PIC_MASTER`, `_PIC_SLAVE` or `_IOAPIC`).
pub fn route_to_chip(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: kvm_bindings::KVM_IRQ_ROUTING_IRQCHIP,
        flags: 0,
        pad: 0,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
    }
}

/// A routing entry: `gsi` to an MSI with this address (high half 0) and data.
pub fn route_to_msi(gsi: u32, address: u32, data: u32) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: address,
        address_hi: 0,
        data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: kvm_bindings::KVM_IRQ_ROUTING_MSI,
        flags: 0,
        pad: 0,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
    }
}

/// The table a PC's full irqchip starts with: GSIs 0-15 to a PIC pin and to the IOAPIC pin of the same number, 16-23 to the
/// IOAPIC.
#[cfg(target_arch = "x86_64")]
pub fn default_routes() -> Vec<kvm_irq_routing_entry> {
    let pic = |gsi: u32| match gsi {
        0..8 => Some(route_to_chip(gsi, kvm_bindings::KVM_IRQCHIP_PIC_MASTER, gsi)),
        8..16 => Some(route_to_chip(gsi, kvm_bindings::KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
        _ => None,
    };
    (0..24)
        .flat_map(|gsi| {
            pic(gsi)
                .into_iter()
                .chain([route_to_chip(gsi, kvm_bindings::KVM_IRQCHIP_IOAPIC, gsi)])
        })
        .collect()
}

/// `KVM_INTERRUPT`: injects `vector` into a vCPU that has no in-kernel interrupt controller.
///
/// EEXIST when an interrupt is already queued, ENXIO when the VM has an in-kernel irqchip.
pub fn interrupt(vcpu: &VcpuFd, vector: u8) -> Result<i32, Errno> {
    let arg = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: KVM_INTERRUPT reads a `kvm_interrupt` and writes nothing through the pointer.
    answer(unsafe { ioctl_with_ref(vcpu, nr::KVM_INTERRUPT(), &arg) })
}
