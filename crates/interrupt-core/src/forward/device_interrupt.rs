// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's interrupt as a forwarder sees it.

use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};

use crate::Result;

/// What a device's interrupt can do. Nothing of it may be assumed: a vfio-user INTx is often a plain pulse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterruptInfo {
    /// The device holds a level until it is serviced. Otherwise each signal is an event of its own.
    pub level: bool,
    /// [`DeviceInterrupt::mask`] and [`DeviceInterrupt::unmask`] work.
    pub maskable: bool,
    /// The interrupt masks itself when it signals and stays masked until [`DeviceInterrupt::unmask`]
    /// (`VFIO_IRQ_INFO_AUTOMASKED`).
    pub automasked: bool,
    /// [`DeviceInterrupt::set_unmask`] works: the interrupt can be unmasked by an eventfd, without this process.
    pub unmask_fd: bool,
}

/// The device side of a forwarder: an interrupt that signals an eventfd, and can be masked and unmasked.
///
/// The mask is a flag and not a count: two `mask` and one `unmask` leave the interrupt unmasked.
pub trait DeviceInterrupt: fmt::Debug + Send + Sync {
    /// Who this is, for people.
    fn label(&self) -> &str;

    /// What the interrupt can do.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the device has no such interrupt or cannot be asked.
    fn info(&self) -> Result<InterruptInfo>;

    /// Sets the eventfd that the device signals, or takes it away. A first trigger enables the interrupt; `None`
    /// disables it, and clears the unmask eventfd too. Exchanging one trigger for another keeps the mask; a signal that
    /// arrives in between goes to one of the two.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device); the trigger is then what it was before.
    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()>;

    /// Sets the eventfd whose write unmasks the interrupt without this process, or takes it away. It needs a trigger
    /// first. A count that waits in the eventfd already unmasks at once.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), with EINVAL when there is no trigger and EBUSY when there is an unmask
    /// eventfd already; nothing has changed then.
    fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> Result<()>;

    /// Masks the interrupt. A level that rises while masked is signalled at the unmask, if it still holds then.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), with EINVAL when there is no trigger.
    fn mask(&self) -> Result<()>;

    /// Unmasks the interrupt. When the device still holds its level it signals the trigger again and, when automasked,
    /// is masked again. Unmasking an unmasked interrupt does nothing.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), with EINVAL when there is no trigger.
    fn unmask(&self) -> Result<()>;
}

/// The host's name of a device's interrupt: the coordinates of VFIO_DEVICE_SET_IRQS, and of the 2015 proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceIrq {
    /// The VFIO device's file descriptor. It has to stay open while the interrupt is connected.
    pub device: RawFd,
    /// The interrupt index: 0 is INTx, 1 MSI, 2 MSI-X.
    pub index: u32,
    /// Which interrupt of the index.
    pub sub: u32,
}

impl fmt::Display for DeviceIrq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "device fd {}, index {}, interrupt {}",
            self.device, self.index, self.sub
        )
    }
}
