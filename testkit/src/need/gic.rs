// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The trials of KVM on arm64.

use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::gic::make_gic;
use crate::ioctl;

pub(super) fn vm() -> Result<(), String> {
    build().map(drop)
}

fn build() -> Result<(VmFd, VcpuFd), String> {
    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
    let vm = kvm.create_vm().map_err(|e| format!("KVM_CREATE_VM: {e}"))?;
    let vcpu = vm.create_vcpu(0).map_err(|e| format!("KVM_CREATE_VCPU: {e}"))?;
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)
        .map_err(|e| format!("KVM_ARM_PREFERRED_TARGET: {e}"))?;
    vcpu.vcpu_init(&init).map_err(|e| format!("KVM_ARM_VCPU_INIT: {e}"))?;
    Ok((vm, vcpu))
}

/// A GICv3 that takes a resample irqfd.
pub(super) fn full_irqchip() -> Result<(), String> {
    let (vm, _vcpu) = build()?;
    make_gic(&vm)?;
    let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(|e| format!("eventfd: {e}"));
    ioctl::assign_resample(&vm, &eventfd()?, &eventfd()?, 10)
        .map(drop)
        .map_err(|e| format!("a resample irqfd on a GICv3: {e}"))
}
