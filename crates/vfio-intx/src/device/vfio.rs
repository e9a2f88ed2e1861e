// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The INTx of a VFIO device's file descriptor.
#![allow(
    unsafe_code,
    reason = "two ioctls; vfio-ioctls drops the errno of every interrupt request and has none to mask or to disarm"
)]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use interrupt_core::forward::{DeviceInterrupt, InterruptInfo};
use interrupt_core::{Error, Result};
use vfio_bindings::bindings::vfio;

use super::irq_set::{Data, INTX, IrqInfo, IrqSet};

/// The `_IO(';', 100 + n)` numbers of `linux/vfio.h`, for which bindgen generates no constants.
const fn ioctl_number(n: u32) -> libc::Ioctl {
    ((vfio::VFIO_TYPE as u32) << 8 | (vfio::VFIO_BASE + n)) as libc::Ioctl
}
const VFIO_DEVICE_GET_IRQ_INFO: libc::Ioctl = ioctl_number(9);
const VFIO_DEVICE_SET_IRQS: libc::Ioctl = ioctl_number(10);

/// A `vfio_irq_set` with room for the data of one interrupt.
#[repr(C)]
struct RawIrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    data: [u8; 4],
}

// The header has the kernel's size, and the data follow the header without a gap.
const _: () = assert!(std::mem::offset_of!(RawIrqSet, data) == size_of::<vfio::vfio_irq_set>());
const _: () = assert!(size_of::<vfio::vfio_irq_set>() == IrqSet::HEADER as usize);

/// The INTx of a VFIO device. `D` is any type that has the device's file descriptor, such as an
/// `Arc<vfio_ioctls::VfioDevice>` of any version.
///
/// `VfioIntx` makes the ioctls itself, because vfio-ioctls 0.10 drops their errno, cannot mask, and cannot remove an
/// unmask eventfd. `VfioIntx` keeps no state, and its drop does not disable the interrupt: the drop of
/// [`Intx`](crate::Intx) does.
pub struct VfioIntx<D> {
    label: String,
    device: D,
}

impl<D: AsRawFd + Send + Sync> VfioIntx<D> {
    /// The INTx of `device`. Errors name the device by `label`, usually its address in sysfs.
    ///
    /// `device` must return the same open file descriptor for as long as `device` lives.
    pub fn new(label: impl Into<String>, device: D) -> Self {
        Self {
            label: label.into(),
            device,
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Asks `VFIO_DEVICE_GET_IRQ_INFO` of INTx.
    ///
    /// # Errors
    /// The kernel's errno: EINVAL for a device that is not PCI, ENODEV for a removed device, ENOTTY for a file that is
    /// no device.
    pub fn irq_info(&self) -> io::Result<IrqInfo> {
        let mut info = vfio::vfio_irq_info {
            argsz: size_of::<vfio::vfio_irq_info>() as u32,
            index: INTX,
            ..Default::default()
        };
        // SAFETY: the request takes a `vfio_irq_info`, and reads and writes `argsz` bytes of it, which is its size. On
        // a file that is no VFIO device the number means nothing, and the kernel answers ENOTTY.
        let outcome = unsafe { libc::ioctl(self.device.as_raw_fd(), VFIO_DEVICE_GET_IRQ_INFO, &raw mut info) };
        errno(outcome)?;
        Ok(IrqInfo {
            flags: info.flags,
            count: info.count,
        })
    }

    /// Makes one `VFIO_DEVICE_SET_IRQS` request.
    ///
    /// # Errors
    /// The kernel's errno, and EINVAL for an `argsz` beyond the data that `request` can have.
    pub fn set_irqs(&self, request: &IrqSet<'_>) -> io::Result<()> {
        let raw = RawIrqSet {
            argsz: request.argsz,
            flags: request.flags,
            index: request.index,
            start: request.start,
            count: request.count,
            data: match request.data {
                Data::None => [0; 4],
                Data::Bool(value) => [value, 0, 0, 0],
                Data::Eventfd(fd) => fd.map_or(-1, |fd| fd.as_raw_fd()).to_ne_bytes(),
            },
        };
        if raw.argsz as usize > size_of::<RawIrqSet>() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the request takes a `vfio_irq_set` with data behind it, of `argsz` bytes together, which the check
        // above keeps within `raw`; the kernel only reads. It holds references of its own to eventfds that it keeps.
        let outcome = unsafe { libc::ioctl(self.device.as_raw_fd(), VFIO_DEVICE_SET_IRQS, &raw const raw) };
        errno(outcome)
    }

    fn request(&self, request: &IrqSet<'_>) -> Result<()> {
        request.outcome(&self.label, self.set_irqs(request))
    }
}

fn errno(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl<D: AsRawFd + Send + Sync> DeviceInterrupt for VfioIntx<D> {
    fn label(&self) -> &str {
        &self.label
    }

    fn info(&self) -> Result<InterruptInfo> {
        let info = self.irq_info().map_err(|source| Error::Device {
            operation: "VFIO_DEVICE_GET_IRQ_INFO(INTx)",
            device: self.label.clone(),
            source,
        })?;
        info.interrupt(&self.label)
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.request(&IrqSet::set_trigger(fd))
    }

    fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.request(&IrqSet::unmask_eventfd(fd))
    }

    fn mask(&self) -> Result<()> {
        self.request(&IrqSet::mask())
    }

    fn unmask(&self) -> Result<()> {
        self.request(&IrqSet::unmask())
    }
}

impl<D> fmt::Debug for VfioIntx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INTx of {}", self.label)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_file_that_is_no_device_is_a_typed_error() {
        let intx = VfioIntx::new("not a device", File::open("/dev/null").unwrap());
        let error = intx.info().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTTY));
        assert_eq!(
            error.to_string(),
            "VFIO_DEVICE_GET_IRQ_INFO(INTx) on device not a device: Inappropriate ioctl for device (os error 25)"
        );
        assert_eq!(intx.unmask().unwrap_err().errno(), Some(libc::ENOTTY));
    }

    #[test]
    fn a_size_beyond_the_buffer_does_not_reach_the_kernel() {
        let intx = VfioIntx::new("not a device", File::open("/dev/null").unwrap());
        let request = IrqSet {
            argsz: 28,
            ..IrqSet::mask()
        };
        assert_eq!(intx.set_irqs(&request).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
