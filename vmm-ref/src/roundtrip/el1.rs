// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor of the embedded guest on arm64: at EL1, with its memory cached, and its GIC.

use interrupt_core::Irqchip;
use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_ARM64_SYSREG_CRM_SHIFT,
    KVM_REG_ARM64_SYSREG_CRN_SHIFT, KVM_REG_ARM64_SYSREG_OP0_SHIFT, KVM_REG_ARM64_SYSREG_OP1_SHIFT,
    KVM_REG_ARM64_SYSREG_OP2_SHIFT, KVM_REG_SIZE_U64, kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use kvm_irqfd::{GIC_SPIS, GicV3};

use crate::composition::check::Impossible;
use crate::error::{Result, at};
use crate::roundtrip::guest::image::Image;
use crate::roundtrip::guest::layout::{CODE, DISTRIBUTOR, PAGE_TABLE, REDISTRIBUTORS};

/// Starts the processor at the program's entry at EL1, with interrupts masked, the program's exceptions, and the
/// program's translation table; then makes the GIC, which KVM takes after the last vCPU only.
pub(super) fn set_up(_: &Kvm, vm: &VmFd, vcpu: &VcpuFd, image: &Image, irqchip: Irqchip) -> Result<()> {
    if irqchip != Irqchip::Kernel {
        return Err(Impossible::GicIsWhole.into());
    }
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)
        .map_err(at("KVM_ARM_PREFERRED_TARGET"))?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    vcpu.vcpu_init(&init).map_err(at("KVM_ARM_VCPU_INIT"))?;

    // Two attributes: registers, not reordered (0), and memory, written back (1).
    const MAIR: u64 = 0xff << 8;
    // 30 bits of address (T0SZ), tables in cached and shareable memory, pages of 4 KiB, no second table, 36 bits out.
    const TCR: u64 = (64 - 30) | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 1 << 23 | 0b001 << 32;
    // The bits that are always 1, instructions cached, data cached, translation on.
    const SCTLR: u64 = 0x30d0_0800 | 1 << 12 | 1 << 2 | 1;
    for (register, value) in [
        (system_register(3, 0, 10, 2, 0), MAIR),
        (system_register(3, 0, 2, 0, 2), TCR),
        (system_register(3, 0, 2, 0, 0), PAGE_TABLE), // TTBR0_EL1
        (system_register(3, 0, 12, 0, 0), CODE),      // VBAR_EL1
        (system_register(3, 0, 1, 0, 0), SCTLR),
        (core_register(std::mem::offset_of!(user_pt_regs, pc)), image.entry),
        (core_register(std::mem::offset_of!(kvm_regs, sp_el1)), image.stack),
    ] {
        vcpu.set_one_reg(register, &value.to_ne_bytes())
            .map_err(at("KVM_SET_ONE_REG"))?;
    }
    GicV3 {
        spis: GIC_SPIS,
        distributor: DISTRIBUTOR,
        redistributors: REDISTRIBUTORS,
    }
    .create(vm)?;
    Ok(())
}

/// KVM's number of a system register.
const fn system_register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    KVM_REG_ARM64
        | KVM_REG_SIZE_U64
        | KVM_REG_ARM64_SYSREG as u64
        | op0 << KVM_REG_ARM64_SYSREG_OP0_SHIFT
        | op1 << KVM_REG_ARM64_SYSREG_OP1_SHIFT
        | crn << KVM_REG_ARM64_SYSREG_CRN_SHIFT
        | crm << KVM_REG_ARM64_SYSREG_CRM_SHIFT
        | op2 << KVM_REG_ARM64_SYSREG_OP2_SHIFT
}

/// KVM's number of a register of 64 bits at an offset in `kvm_regs`, which begins with `user_pt_regs`: it counts in 32
/// bits.
const fn core_register(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}

/// The guest for arm64 times no stores.
pub(super) fn tsc_khz(_: &VcpuFd) -> Result<u32> {
    Err(Impossible::GicHasNoDoorbell.into())
}
