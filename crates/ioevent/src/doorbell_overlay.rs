// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fallback on a vm-device bus.

use std::sync::atomic::{AtomicBool, Ordering};

use log::{debug, error};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

use crate::bus::IoeventBus;
use crate::matching::Space;

/// A device with the doorbells of an [`IoeventBus`] over it.
///
/// The VMM puts the overlay on a vm-device bus in the device's place and range. A write that a registration matches
/// signals its eventfd and goes no further, as if the kernel had taken the write. Every other write, and every read,
/// goes to the device.
///
/// A VMM that calls [`IoeventBus::dispatch`] in its exit path, before its bus, needs no overlay.
///
/// vm-device's handlers cannot fail: a matching write that cannot be signalled is logged.
///
/// ```
/// use std::sync::Arc;
/// use ioevent::{DoorbellOverlay, IoeventBus, Length, Match, UnassignedRange};
/// use vm_device::bus::{MmioAddress, MmioRange};
/// use vm_device::device_manager::{IoManager, MmioManager};
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = IoeventBus::userspace();
/// let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
/// let _registration = bus.register(Match::mmio(0xd000_0004, Length::Bytes4), kick.clone())?;
///
/// let mut devices = IoManager::new();
/// let range = MmioRange::new(MmioAddress(0xd000_0000), 0x1000)?;
/// devices.register_mmio(range, Arc::new(DoorbellOverlay::new(bus, UnassignedRange)))?;
///
/// devices.mmio_write(MmioAddress(0xd000_0004), &[0; 4])?;
/// assert_eq!(kick.read()?, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DoorbellOverlay<D> {
    bus: IoeventBus,
    device: D,
    /// The guest decides how often it stores, so only the first failure is an error in the log.
    failure_reported: AtomicBool,
}

impl<D> DoorbellOverlay<D> {
    /// Puts the doorbells of `bus` over `device`.
    pub fn new(bus: IoeventBus, device: D) -> Self {
        Self {
            bus,
            device,
            failure_reported: AtomicBool::new(false),
        }
    }

    /// Whether a registration matched the write, even if its eventfd is broken: the write was not meant for the device.
    fn takes(&self, space: Space, address: u64, data: &[u8]) -> bool {
        self.bus.dispatch(space, address, data).unwrap_or_else(|failure| {
            if self.failure_reported.swap(true, Ordering::Relaxed) {
                debug!("{failure}");
            } else {
                error!("{failure}; more of the kind at level debug");
            }
            true
        })
    }
}

impl<D: DeviceMmio> DeviceMmio for DoorbellOverlay<D> {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.device.mmio_read(base, offset, data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        // The bus found `base + offset` inside a range, so it does not wrap.
        if !self.takes(Space::Mmio, base.0.wrapping_add(offset), data) {
            self.device.mmio_write(base, offset, data);
        }
    }
}

impl<D: DevicePio> DevicePio for DoorbellOverlay<D> {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.device.pio_read(base, offset, data);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if !self.takes(Space::Pio, u64::from(base.0.wrapping_add(offset)), data) {
            self.device.pio_write(base, offset, data);
        }
    }
}

/// An address range without a device, as hardware has it: reads are all ones, writes go nowhere. For a range that holds
/// only doorbells.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnassignedRange;

impl DeviceMmio for UnassignedRange {
    fn mmio_read(&self, _base: MmioAddress, _offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _base: MmioAddress, _offset: MmioAddressOffset, _data: &[u8]) {}
}

impl DevicePio for UnassignedRange {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, _data: &[u8]) {}
}
