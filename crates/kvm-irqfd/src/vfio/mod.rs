// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The KVM-VFIO device: what KVM is told of VFIO, and the forwarding of interrupts by the host that was proposed for it
//! in 2015.

pub(crate) mod host_forward;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use interrupt_core::forward::ForwardIrq;
use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::error::{Error, Reason, Result};

/// The numbers of the proposal ("KVM-VFIO IRQ forward control", v4 of 2015). No released kernel has them.
mod proposed {
    /// Group: a VFIO device.
    pub(super) const KVM_DEV_VFIO_DEVICE: u32 = 2;
    pub(super) const FORWARD_IRQ: u64 = 1;
    pub(super) const UNFORWARD_IRQ: u64 = 2;
}

/// The ioctls of a KVM device.
trait Attributes: Send + Sync {
    /// KVM_HAS_DEVICE_ATTR.
    fn has(&self, group: u32, attr: u64) -> io::Result<()>;
    /// KVM_SET_DEVICE_ATTR, with the address of `argument`. The kernel reads as much of it as the attribute says, which
    /// is not more than there is.
    fn set(&self, group: u32, attr: u64, argument: &[u8]) -> io::Result<()>;
}

impl Attributes for DeviceFd {
    fn has(&self, group: u32, attr: u64) -> io::Result<()> {
        let request = kvm_device_attr {
            group,
            attr,
            ..Default::default()
        };
        Ok(self.has_device_attr(&request)?)
    }

    fn set(&self, group: u32, attr: u64, argument: &[u8]) -> io::Result<()> {
        let request = kvm_device_attr {
            group,
            attr,
            addr: argument.as_ptr() as u64,
            flags: 0,
        };
        Ok(self.set_device_attr(&request)?)
    }
}

/// A VM's KVM-VFIO device. There is one for each VM, and a VMM that has one already gives that.
pub struct KvmVfio {
    attributes: Box<dyn Attributes>,
}

impl KvmVfio {
    /// Creates the VM's device.
    ///
    /// # Errors
    /// [`Reason::Os`]: EBUSY when the VM has one, ENODEV when the kernel is built without (CONFIG_KVM_VFIO).
    pub fn new(vm: &VmFd) -> Result<Self> {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            fd: 0,
            // Not KVM_CREATE_DEVICE_TEST: the kernel then returns no fd, and kvm-ioctls 0.25 takes the 0 that stands
            // there for one, which it closes when it is dropped.
            flags: 0,
        };
        let device = vm
            .create_device(&mut device)
            .map_err(|error| Error::vm("KVM_CREATE_DEVICE(KVM_DEV_TYPE_VFIO)", error))?;
        Ok(device.into())
    }

    /// Tells KVM of a VFIO group, or of a VFIO device that was opened by its own file (Linux 6.6): it keeps a
    /// reference.
    ///
    /// # Errors
    /// [`Reason::Os`]: EINVAL for a file that is neither, EEXIST for one that it has been told of.
    pub fn add_file(&self, file: impl AsFd) -> Result<()> {
        self.file("KVM_DEV_VFIO_FILE_ADD", KVM_DEV_VFIO_FILE_ADD, file)
    }

    /// Ends [`add_file`](Self::add_file).
    ///
    /// # Errors
    /// [`Reason::Os`]: ENOENT for a file that it has not been told of.
    pub fn remove_file(&self, file: impl AsFd) -> Result<()> {
        self.file("KVM_DEV_VFIO_FILE_DEL", KVM_DEV_VFIO_FILE_DEL, file)
    }

    fn file(&self, operation: &'static str, attr: u32, file: impl AsFd) -> Result<()> {
        let fd = file.as_fd().as_raw_fd().to_ne_bytes();
        self.attributes
            .set(KVM_DEV_VFIO_FILE, attr.into(), &fd)
            .map_err(|error| Error::vm(operation, error))
    }

    /// Whether the kernel forwards interrupts, by KVM_HAS_DEVICE_ATTR.
    ///
    /// # Errors
    /// [`Reason::Os`] with ENXIO: it does not. No kernel to date does.
    pub fn can_forward(&self) -> Result<()> {
        use proposed::{FORWARD_IRQ, KVM_DEV_VFIO_DEVICE, UNFORWARD_IRQ};
        [FORWARD_IRQ, UNFORWARD_IRQ]
            .into_iter()
            .try_for_each(|attr| self.attributes.has(KVM_DEV_VFIO_DEVICE, attr))
            .map_err(|error| Error::vm("KVM_HAS_DEVICE_ATTR(KVM_DEV_VFIO_DEVICE_FORWARD_IRQ)", error))
    }

    /// KVM_DEV_VFIO_DEVICE_FORWARD_IRQ: the host's controller hands these interrupts to the guest's lines, and the
    /// guest's EOI ends them there.
    ///
    /// # Errors
    /// [`Reason::Request`] for a malformed request. [`Reason::Os`]: ENXIO when the kernel has no such thing, EAGAIN
    /// when one of the interrupts is masked or active, EBADF when the file is no VFIO device's.
    pub fn forward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        const OPERATION: &str = "KVM_SET_DEVICE_ATTR(KVM_DEV_VFIO_DEVICE_FORWARD_IRQ)";
        self.device(OPERATION, proposed::FORWARD_IRQ, request)
    }

    /// KVM_DEV_VFIO_DEVICE_UNFORWARD_IRQ. It works at any time.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), but for EAGAIN.
    pub fn unforward(&self, request: &ForwardIrq<'_>) -> Result<()> {
        const OPERATION: &str = "KVM_SET_DEVICE_ATTR(KVM_DEV_VFIO_DEVICE_UNFORWARD_IRQ)";
        self.device(OPERATION, proposed::UNFORWARD_IRQ, request)
    }

    fn device(&self, operation: &'static str, attr: u64, request: &ForwardIrq<'_>) -> Result<()> {
        let argument = encode(request).map_err(|error| Error::of_vm(operation, Reason::Request(Box::new(error))))?;
        self.attributes
            .set(proposed::KVM_DEV_VFIO_DEVICE, attr, &argument)
            .map_err(|error| Error::vm(operation, error))
    }
}

/// Takes over a device that the VMM has made.
impl From<DeviceFd> for KvmVfio {
    fn from(device: DeviceFd) -> Self {
        Self {
            attributes: Box::new(device),
        }
    }
}

impl fmt::Debug for KvmVfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KVM-VFIO device")
    }
}

/// The request as the proposal lays it out: `__u32 argsz, fd, index, start, count; __u32 gsi[]`. The kernel would read
/// `count` GSIs, so that a request without as many is refused here.
fn encode(request: &ForwardIrq<'_>) -> interrupt_core::forward::Result<Vec<u8>> {
    request.irqs().map(drop)?;
    let header = [
        request.argsz,
        // A file descriptor is never negative, and is the same number with or without a sign.
        request.device as u32,
        request.index,
        request.start,
        request.count,
    ];
    let words = header.into_iter().chain(request.gsis.iter().map(|gsi| gsi.0));
    Ok(words.flat_map(u32::to_ne_bytes).collect())
}
