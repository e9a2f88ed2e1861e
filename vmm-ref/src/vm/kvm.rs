// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening KVM, making a VM, and giving it memory.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use interrupt_core::Irqchip;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use kvm_irqfd::{SPLIT_PINS, enable_split_irqchip};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};

use crate::error::{Error, Result, at};
use crate::vm::cpu_thread::EINTR;

/// The usual path of the KVM device.
pub const DEV_KVM: &str = "/dev/kvm";

/// Opens KVM.
///
/// # Errors
/// [`Error::NoKvm`], [`Error::Permission`], and [`Error::NotKvm`] for any other reason why `path` is no usable KVM.
pub fn open_kvm(path: &Path) -> Result<Kvm> {
    let not_kvm = |reason: String| Error::NotKvm {
        path: path.to_owned(),
        reason,
    };
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|error| not_kvm(error.to_string()))?;
    let kvm = Kvm::new_with_path(&c_path).map_err(|error| {
        let error = io::Error::from(error);
        match error.kind() {
            io::ErrorKind::NotFound => Error::NoKvm { path: path.to_owned() },
            io::ErrorKind::PermissionDenied => Error::Permission { path: path.to_owned() },
            _ => not_kvm(error.to_string()),
        }
    })?;
    // The stable API, since 2007.
    match kvm.get_api_version() {
        12 => Ok(kvm),
        -1 => Err(not_kvm(format!("KVM_GET_API_VERSION: {}", io::Error::last_os_error()))),
        version => Err(not_kvm(format!("it speaks version {version} of the API, not 12"))),
    }
}

/// Makes a VM with this irqchip, without memory and vCPUs.
///
/// # Errors
/// [`Error::NoFullIrqchip`], or the error of the step that failed.
pub(crate) fn create_vm(kvm: &Kvm, irqchip: Irqchip) -> Result<VmFd> {
    // Retry after EINTR: a pending signal makes KVM_CREATE_VM fail. Ctrl-C is handled elsewhere.
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == EINTR => {}
            made => break made.map_err(at("KVM_CREATE_VM"))?,
        }
    };
    create_irqchip(&vm, irqchip)?;
    Ok(vm)
}

#[cfg(target_arch = "x86_64")]
fn create_irqchip(vm: &VmFd, irqchip: Irqchip) -> Result<()> {
    // Three pages outside the memory of the guest; only Intel hosts without unrestricted guests use them.
    vm.set_tss_address(0xfffb_d000).map_err(at("KVM_SET_TSS_ADDR"))?;
    match irqchip {
        Irqchip::Kernel => vm.create_irq_chip().map_err(Error::NoFullIrqchip)?,
        Irqchip::Split => enable_split_irqchip(vm, SPLIT_PINS)?,
        Irqchip::User => {}
    }
    Ok(())
}

/// KVM makes a GIC after the vCPUs.
#[cfg(target_arch = "aarch64")]
fn create_irqchip(vm: &VmFd, irqchip: Irqchip) -> Result<()> {
    match irqchip {
        Irqchip::Kernel | Irqchip::User => Ok(()),
        Irqchip::Split => Ok(enable_split_irqchip(vm, SPLIT_PINS)?),
    }
}

/// Gives the VM its memory. `memory` has to outlive the vCPUs.
///
/// # Errors
/// The error of the ioctl.
pub(crate) fn map(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<()> {
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a mapping that `memory` owns. Only a running vCPU reaches it through KVM. The owner of
        // the vCPU (`Machine`, then `Running`) owns the memory too, and drops it last.
        unsafe { vm.set_user_memory_region(region) }.map_err(at("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}
