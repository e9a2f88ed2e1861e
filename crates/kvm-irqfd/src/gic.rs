// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vGIC of a VM, made in the one order that KVM takes (Documentation/virt/kvm/devices/arm-vgic-v3.rst and
//! arm-vgic-its.rst in the kernel).

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::error::{Error, Result};

/// The number of a GIC's private interrupts, which come before its SPIs.
pub(crate) const PRIVATE: u32 = 32;

/// The registers and the size of a GICv3 in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// The number of shared interrupts: a multiple of 32, from 32 to 992. Give
    /// [`KvmInterrupts::with_spis`](crate::KvmInterrupts::with_spis) the same number.
    pub spis: u32,
    /// Guest-physical address of the distributor: 64 KiB, aligned to as much.
    pub distributor: u64,
    /// Guest-physical address of the redistributors: 128 KiB for each vCPU, aligned to 64 KiB.
    pub redistributors: u64,
}

impl GicV3 {
    /// Makes the vGIC and initialises it: the number of interrupts, the addresses, then KVM_DEV_ARM_VGIC_CTRL_INIT.
    ///
    /// Call this when all vCPUs are made and none has run, and before [`KvmInterrupts::with_spis`]: KVM makes no vCPU
    /// after the initialisation (EBUSY), and takes no irqfd before (EAGAIN,
    /// [`Reason::NotInitialised`](crate::Reason::NotInitialised)). An [`its`](Self::its) may follow at any time before
    /// the guest uses it. The vGIC lives as long as the VM; the fd is for its registers (KVM_SET_DEVICE_ATTR), which
    /// snapshots need.
    ///
    /// Nothing is signalled to the VM before this, so that no signal can be lost here.
    ///
    /// # Errors
    /// [`Reason::Os`](crate::Reason::Os) of the step that is named: ENODEV when the host has no GICv3, EEXIST when the
    /// VM has a vGIC already, EINVAL for a number or an alignment, E2BIG for an address beyond the VM's, EBUSY when a
    /// vCPU has run or is being made.
    ///
    /// [`KvmInterrupts::with_spis`]: crate::KvmInterrupts::with_spis
    pub fn create(&self, vm: &VmFd) -> Result<DeviceFd> {
        let device = create(
            vm,
            kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            "KVM_CREATE_DEVICE(KVM_DEV_TYPE_ARM_VGIC_V3)",
        )?;
        let interrupts = PRIVATE.saturating_add(self.spis);
        set(
            &device,
            KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
            0,
            &interrupts,
            "KVM_SET_DEVICE_ATTR(KVM_DEV_ARM_VGIC_GRP_NR_IRQS)",
        )?;
        for (kind, address, operation) in [
            (
                KVM_VGIC_V3_ADDR_TYPE_DIST,
                self.distributor,
                "KVM_SET_DEVICE_ATTR(KVM_VGIC_V3_ADDR_TYPE_DIST)",
            ),
            (
                KVM_VGIC_V3_ADDR_TYPE_REDIST,
                self.redistributors,
                "KVM_SET_DEVICE_ATTR(KVM_VGIC_V3_ADDR_TYPE_REDIST)",
            ),
        ] {
            set(&device, KVM_DEV_ARM_VGIC_GRP_ADDR, kind, &address, operation)?;
        }
        initialise(&device)?;
        Ok(device)
    }

    /// Makes an ITS with its registers at guest-physical address `address` (128 KiB, aligned to 64 KiB) and initialises
    /// it. Messages, by [`Route::Msi`](crate::Route::Msi) or KVM_SIGNAL_MSI, go to the ITS whose GITS_TRANSLATER they
    /// name, 0x1_0040 above `address`, and carry a device id.
    ///
    /// # Errors
    /// [`Reason::Os`](crate::Reason::Os) of the step that is named: ENODEV when the VM has no GICv3 that is initialised,
    /// EINVAL or E2BIG for the address.
    pub fn its(vm: &VmFd, address: u64) -> Result<DeviceFd> {
        let device = create(
            vm,
            kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
            "KVM_CREATE_DEVICE(KVM_DEV_TYPE_ARM_VGIC_ITS)",
        )?;
        let operation = "KVM_SET_DEVICE_ATTR(KVM_VGIC_ITS_ADDR_TYPE)";
        set(
            &device,
            KVM_DEV_ARM_VGIC_GRP_ADDR,
            KVM_VGIC_ITS_ADDR_TYPE,
            &address,
            operation,
        )?;
        initialise(&device)?;
        Ok(device)
    }
}

fn create(vm: &VmFd, type_: u32, operation: &'static str) -> Result<DeviceFd> {
    let mut device = kvm_create_device {
        type_,
        ..Default::default()
    };
    vm.create_device(&mut device)
        .map_err(|error| Error::vm(operation, error))
}

fn initialise(device: &DeviceFd) -> Result<()> {
    let attribute = kvm_device_attr {
        group: KVM_DEV_ARM_VGIC_GRP_CTRL,
        attr: KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
        ..Default::default()
    };
    let done = device.set_device_attr(&attribute);
    done.map_err(|error| Error::vm("KVM_SET_DEVICE_ATTR(KVM_DEV_ARM_VGIC_CTRL_INIT)", error))
}

/// Sets an attribute that KVM reads from memory, as 32 or 64 bits.
fn set<T>(device: &DeviceFd, group: u32, attribute: u32, value: &T, operation: &'static str) -> Result<()> {
    let attribute = kvm_device_attr {
        group,
        attr: attribute.into(),
        addr: std::ptr::from_ref(value) as u64,
        ..Default::default()
    };
    device
        .set_device_attr(&attribute)
        .map_err(|error| Error::vm(operation, error))
}
