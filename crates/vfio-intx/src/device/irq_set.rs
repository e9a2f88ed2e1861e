// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two requests of a VFIO device's interrupts: the answer to `VFIO_DEVICE_GET_IRQ_INFO`, and `VFIO_DEVICE_SET_IRQS`
//! (Linux, `include/uapi/linux/vfio.h`). This module has the parts that INTx needs, for a device behind an ioctl, for
//! vfio-user and for the model.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use interrupt_core::forward::InterruptInfo;
use interrupt_core::{Error, Result};
use vfio_bindings::bindings::vfio;

/// The bits of [`IrqInfo::flags`] and [`IrqSet::flags`], under the kernel's names without their common prefix.
pub mod flags {
    use vfio_bindings::bindings::vfio;

    /// The interrupt can signal an eventfd.
    pub const INFO_EVENTFD: u32 = vfio::VFIO_IRQ_INFO_EVENTFD;
    /// Mask and unmask work.
    pub const INFO_MASKABLE: u32 = vfio::VFIO_IRQ_INFO_MASKABLE;
    /// The interrupt masks itself when it signals.
    pub const INFO_AUTOMASKED: u32 = vfio::VFIO_IRQ_INFO_AUTOMASKED;
    /// The request carries no data.
    pub const DATA_NONE: u32 = vfio::VFIO_IRQ_SET_DATA_NONE;
    /// The request carries one byte for each interrupt.
    pub const DATA_BOOL: u32 = vfio::VFIO_IRQ_SET_DATA_BOOL;
    /// The request carries one eventfd, or -1, for each interrupt.
    pub const DATA_EVENTFD: u32 = vfio::VFIO_IRQ_SET_DATA_EVENTFD;
    /// The data types. A request has exactly one.
    pub const DATA_TYPES: u32 = vfio::VFIO_IRQ_SET_DATA_TYPE_MASK;
    /// Mask.
    pub const ACTION_MASK: u32 = vfio::VFIO_IRQ_SET_ACTION_MASK;
    /// Unmask.
    pub const ACTION_UNMASK: u32 = vfio::VFIO_IRQ_SET_ACTION_UNMASK;
    /// Signal, or set the eventfd that is signalled.
    pub const ACTION_TRIGGER: u32 = vfio::VFIO_IRQ_SET_ACTION_TRIGGER;
    /// The actions. A request has exactly one.
    pub const ACTIONS: u32 = vfio::VFIO_IRQ_SET_ACTION_TYPE_MASK;
}

/// The index of a PCI device's INTx.
pub const INTX: u32 = vfio::VFIO_PCI_INTX_IRQ_INDEX;
/// The index of a PCI device's MSI.
pub const MSI: u32 = vfio::VFIO_PCI_MSI_IRQ_INDEX;

const ENODEV: i32 = 19;
const ENOTTY: i32 = 25;

/// The answer of `VFIO_DEVICE_GET_IRQ_INFO` for one interrupt index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// `INFO_` bits of [`flags`].
    pub flags: u32,
    /// How many interrupts the index has; 0 or 1 for INTx.
    pub count: u32,
}

impl IrqInfo {
    /// Derives the properties of the INTx of `device`.
    ///
    /// INTx is a level only with AUTOMASKED. Without AUTOMASKED a signal reports an event, and the end of the event is
    /// never reported. A server that reports EVENTFD alone may accept MASK and UNMASK and do nothing, as libvfio-user's
    /// does. So the bits decide, and not the answer to a request.
    ///
    /// # Errors
    /// [`Error::Device`] with ENODEV when the device has no INTx pin, or the host gave it none (`count` 0); with ENOTTY
    /// when the interrupt cannot signal an eventfd.
    pub fn interrupt(self, device: &str) -> Result<InterruptInfo> {
        let refuse = |operation, errno| {
            Err(Error::Device {
                operation,
                device: device.to_owned(),
                source: io::Error::from_raw_os_error(errno),
            })
        };
        if self.count == 0 {
            return refuse("find an INTx pin (VFIO_DEVICE_GET_IRQ_INFO gives count 0)", ENODEV);
        }
        if self.flags & flags::INFO_EVENTFD == 0 {
            return refuse(
                "signal INTx by eventfd (VFIO_DEVICE_GET_IRQ_INFO gives no EVENTFD)",
                ENOTTY,
            );
        }
        let maskable = self.flags & flags::INFO_MASKABLE != 0;
        let automasked = self.flags & flags::INFO_AUTOMASKED != 0;
        Ok(InterruptInfo {
            level: automasked,
            maskable,
            automasked,
            unmask_fd: maskable && automasked,
        })
    }
}

/// The data of an [`IrqSet`], for the single interrupt of INTx.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// No data.
    None,
    /// `DATA_BOOL`: the action is done if this is not 0.
    Bool(u8),
    /// `DATA_EVENTFD`: an eventfd, or -1 to remove the eventfd.
    Eventfd(Option<BorrowedFd<'a>>),
}

/// One `VFIO_DEVICE_SET_IRQS` request. The constructors make the requests that INTx needs; the fields are public so
/// that tests can make other requests, including invalid ones.
#[derive(Clone, Copy, Debug)]
pub struct IrqSet<'a> {
    /// The size of the request in bytes: [`IrqSet::HEADER`] and the data.
    pub argsz: u32,
    /// One `DATA_` and one `ACTION_` bit of [`flags`].
    pub flags: u32,
    /// [`INTX`], [`MSI`], ...
    pub index: u32,
    /// The first interrupt of the index.
    pub start: u32,
    /// The number of interrupts; 0 with `DATA_NONE | ACTION_TRIGGER` disables the index.
    pub count: u32,
    /// The data.
    pub data: Data<'a>,
}

impl<'a> IrqSet<'a> {
    /// The size of a request without data, in bytes.
    pub const HEADER: u32 = 20;

    fn new(action: u32, count: u32, data: Data<'a>) -> Self {
        let (data_type, size) = match data {
            Data::None => (flags::DATA_NONE, 0),
            Data::Bool(_) => (flags::DATA_BOOL, 1),
            Data::Eventfd(_) => (flags::DATA_EVENTFD, 4),
        };
        Self {
            argsz: Self::HEADER + size,
            flags: data_type | action,
            index: INTX,
            start: 0,
            count,
            data,
        }
    }

    /// Sets the eventfd that INTx signals, which enables INTx. `None` removes the eventfd of an enabled INTx, and INTx
    /// stays enabled.
    pub fn trigger(eventfd: Option<BorrowedFd<'a>>) -> Self {
        Self::new(flags::ACTION_TRIGGER, 1, Data::Eventfd(eventfd))
    }

    /// Disables INTx, which removes the trigger and the eventfds for mask and unmask.
    pub fn disable() -> Self {
        Self::new(flags::ACTION_TRIGGER, 0, Data::None)
    }

    /// Signals the trigger as if the device had (loop-back).
    pub fn signal() -> Self {
        Self::new(flags::ACTION_TRIGGER, 1, Data::None)
    }

    /// Masks INTx.
    pub fn mask() -> Self {
        Self::new(flags::ACTION_MASK, 1, Data::None)
    }

    /// Unmasks INTx.
    pub fn unmask() -> Self {
        Self::new(flags::ACTION_UNMASK, 1, Data::None)
    }

    /// Sets or removes the eventfd that unmasks INTx.
    pub fn unmask_eventfd(eventfd: Option<BorrowedFd<'a>>) -> Self {
        Self::new(flags::ACTION_UNMASK, 1, Data::Eventfd(eventfd))
    }

    #[cfg(any(
        feature = "testing",
        feature = "vfio",
        feature = "vfio-user",
        feature = "vfio-user-client"
    ))]
    /// The request behind [`DeviceInterrupt::set_trigger`](interrupt_core::forward::DeviceInterrupt::set_trigger).
    pub(crate) fn set_trigger(eventfd: Option<BorrowedFd<'a>>) -> Self {
        match eventfd {
            Some(_) => Self::trigger(eventfd),
            None => Self::disable(),
        }
    }

    /// The request in words, for errors.
    pub fn operation(&self) -> &'static str {
        match (self.flags & flags::ACTIONS, self.data, self.count) {
            (flags::ACTION_MASK, ..) => "VFIO_DEVICE_SET_IRQS(mask)",
            (flags::ACTION_UNMASK, Data::Eventfd(Some(_)), _) => "VFIO_DEVICE_SET_IRQS(set the unmask eventfd)",
            (flags::ACTION_UNMASK, Data::Eventfd(None), _) => "VFIO_DEVICE_SET_IRQS(clear the unmask eventfd)",
            (flags::ACTION_UNMASK, ..) => "VFIO_DEVICE_SET_IRQS(unmask)",
            (flags::ACTION_TRIGGER, Data::Eventfd(Some(_)), _) => "VFIO_DEVICE_SET_IRQS(set the trigger)",
            (flags::ACTION_TRIGGER, Data::Eventfd(None), _) => "VFIO_DEVICE_SET_IRQS(clear the trigger)",
            (flags::ACTION_TRIGGER, _, 0) => "VFIO_DEVICE_SET_IRQS(disable)",
            (flags::ACTION_TRIGGER, ..) => "VFIO_DEVICE_SET_IRQS(signal the trigger)",
            _ => "VFIO_DEVICE_SET_IRQS",
        }
    }

    #[cfg(any(
        feature = "testing",
        feature = "vfio",
        feature = "vfio-user",
        feature = "vfio-user-client"
    ))]
    /// `outcome` of this request on `device`, in the words of the device trait.
    pub(crate) fn outcome(&self, device: &str, outcome: io::Result<()>) -> Result<()> {
        outcome.map_err(|source| Error::Device {
            operation: self.operation(),
            device: device.to_owned(),
            source,
        })
    }
}

impl fmt::Display for IrqSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_info_means_for_intx() {
        let info = |flags, count| IrqInfo { flags, count }.interrupt("dev");
        let all = flags::INFO_EVENTFD | flags::INFO_MASKABLE | flags::INFO_AUTOMASKED;
        assert_eq!(info(all, 0).unwrap_err().errno(), Some(ENODEV));
        assert_eq!(info(all & !flags::INFO_EVENTFD, 1).unwrap_err().errno(), Some(ENOTTY));
        let vfio_pci = info(all, 1).unwrap();
        assert!(vfio_pci.level && vfio_pci.maskable && vfio_pci.automasked && vfio_pci.unmask_fd);
        let vfio_user = info(flags::INFO_EVENTFD, 1).unwrap();
        assert!(!vfio_user.level && !vfio_user.maskable && !vfio_user.automasked && !vfio_user.unmask_fd);
    }

    #[test]
    fn an_error_names_request_and_device() {
        let outcome = IrqSet::unmask().outcome("0000:00:02.0", Err(io::Error::from_raw_os_error(22)));
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "VFIO_DEVICE_SET_IRQS(unmask) on device 0000:00:02.0: Invalid argument (os error 22)"
        );
    }
}
