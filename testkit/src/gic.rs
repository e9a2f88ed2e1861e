// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GICv3 of a machine of arm64.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::VmFd;

/// Guest-physical address of the distributor.
pub const DISTRIBUTOR: u64 = 0x800_0000;
/// Guest-physical address of the redistributor.
pub const REDISTRIBUTOR: u64 = 0x80a_0000;
/// Guest-physical address for an ITS.
pub const ITS: u64 = 0x808_0000;

/// Makes a GICv3 with as many interrupts as KVM chooses, and initialises it. The vCPUs are made.
pub(crate) fn make_gic(vm: &VmFd) -> Result<(), String> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        ..Default::default()
    };
    let gic = vm.create_device(&mut device).map_err(|e| format!("a GICv3: {e}"))?;
    for (group, attr, value) in [
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &DISTRIBUTOR),
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &REDISTRIBUTOR),
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
    Ok(())
}
