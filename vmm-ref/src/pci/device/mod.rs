// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A PCI device of the host or of a server, before the guest gets it.

pub mod vfio;
pub mod vfio_user;

use std::fmt;
use std::io;
use std::sync::Arc;

use interrupt_core::forward::{DeviceInterrupt, DeviceIrq};
use vmm_sys_util::eventfd::EventFd;

/// The region of BAR 0; those of the other BARs follow.
pub const BAR0_REGION: u32 = vfio_bindings::bindings::vfio::VFIO_PCI_BAR0_REGION_INDEX;
/// The region of the configuration space.
pub const CONFIG_REGION: u32 = vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

/// A part of a BAR that is mapped into this process, and can be memory of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The offset in the BAR, a multiple of the page size.
    pub offset: u64,
    /// The size in bytes, a multiple of the page size.
    pub size: u64,
    /// The address in this process. The mapping lives as long as the device.
    pub address: u64,
}

/// A device: its regions, its interrupt and its reset.
pub trait PciDevice: fmt::Debug + Send + Sync {
    /// A label for messages: the address on the host's bus, or the server's path.
    fn label(&self) -> &str;

    /// The device's INTx.
    fn interrupt(&self) -> Arc<dyn DeviceInterrupt>;

    /// The host's name of the interrupt, if the device is the host's.
    fn irq(&self) -> Option<DeviceIrq>;

    /// The size of a BAR's region in bytes; 0 for a BAR that the device does not have.
    ///
    /// # Errors
    /// The server's error, or that of the connection to the server.
    fn bar_size(&self, bar: u8) -> io::Result<u64>;

    /// The parts of a BAR that are mapped. Accesses to the other parts take [`read`](Self::read) and
    /// [`write`](Self::write).
    fn areas(&self, bar: u8) -> Vec<Area>;

    /// Reads from byte `offset` of a region.
    ///
    /// # Errors
    /// The error of the device, such as EIO while its memory space is off; that of the server or the connection to it.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes to byte `offset` of a region.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Whether [`set_messages`](Self::set_messages) works.
    fn has_messages(&self) -> bool;

    /// Enables MSI-X, with an eventfd for each vector from the first on; without eventfds, disables it. INTx is disabled
    /// while MSI-X is enabled.
    ///
    /// # Errors
    /// The device's, or `Unsupported` for a device whose messages this process cannot have.
    fn set_messages(&self, triggers: &[EventFd]) -> io::Result<()>;

    /// Resets the device. A device that cannot be reset is left as it is.
    ///
    /// # Errors
    /// Why the reset failed: the host's error, that of the server or of the connection to it.
    fn reset(&self) -> io::Result<()>;

    /// Whether an error of an access means that the device has gone for good. Any other error is that of one access.
    fn is_gone(&self, error: &io::Error) -> bool;
}
