// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The trials of KVM on arm64.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_vcpu_init,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ioctl;

const DISTRIBUTOR: u64 = 0x800_0000;
const REDISTRIBUTORS: u64 = 0x80a_0000;

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
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        ..Default::default()
    };
    let gic = vm.create_device(&mut device).map_err(|e| format!("a GICv3: {e}"))?;
    for (group, attr, value) in [
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &DISTRIBUTOR),
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &REDISTRIBUTORS),
        // The value is not read.
        (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0),
    ] {
        let attribute = kvm_device_attr {
            group,
            attr: attr.into(),
            addr: std::ptr::from_ref(value) as u64,
            flags: 0,
        };
        gic.set_device_attr(&attribute)
            .map_err(|e| format!("KVM_SET_DEVICE_ATTR of a GICv3, group {group}: {e}"))?;
    }
    let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(|e| format!("eventfd: {e}"));
    ioctl::assign_resample(&vm, &eventfd()?, &eventfd()?, 10)
        .map(drop)
        .map_err(|e| format!("a resample irqfd on a GICv3: {e}"))
}
