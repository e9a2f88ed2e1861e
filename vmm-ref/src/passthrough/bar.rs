// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! BAR 0 of an edu, as this process reaches it: mapped, or by messages to the server that has the device.

use std::io;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_PCI_BAR0_REGION_INDEX;
use vfio_intx::VfioUserIntx;
use vfio_ioctls::VfioDevice;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::error::Error;
use crate::passthrough::edu_registers::{ACKNOWLEDGE, BAR_SIZE, RAISE, STATUS};
use crate::passthrough::mapping::Mapping;
use crate::vm::ending::Ending;

const BAR: u32 = VFIO_PCI_BAR0_REGION_INDEX;

/// The first bytes of an edu's BAR 0.
#[derive(Debug)]
pub enum Bar {
    /// Mapped into this process and into the guest. An access needs neither an exit nor a system call.
    Mapped(Mapping),
    /// In another process. Each access of the guest is an exit and a message to the server.
    Remote(Remote),
}

/// A BAR behind a vfio-user server.
#[derive(Clone, Debug)]
pub struct Remote(Arc<VfioUserIntx>);

impl Bar {
    /// The BAR of a device of VFIO.
    pub(super) fn map(device: &Arc<VfioDevice>) -> Result<Self, String> {
        Mapping::new(device, BAR, 0, BAR_SIZE).map(Self::Mapped)
    }

    /// The BAR of a device of vfio-user.
    pub(super) fn remote(device: Arc<VfioUserIntx>) -> Self {
        Self::Remote(Remote(device))
    }

    /// The number of mapped or reachable bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Mapped(mapping) => mapping.size(),
            Self::Remote(_) => BAR_SIZE,
        }
    }

    /// The interrupt status: 0 while the device asserts nothing.
    ///
    /// # Errors
    /// As [`Remote::read`].
    pub fn status(&self) -> io::Result<u32> {
        self.load(STATUS)
    }

    /// Makes the device assert, for request 1.
    pub(super) fn raise(&self) -> io::Result<()> {
        self.store(RAISE, 1)
    }

    /// Makes the device assert nothing.
    pub(super) fn acknowledge(&self) -> io::Result<()> {
        self.store(ACKNOWLEDGE, u32::MAX)
    }

    pub(super) fn load(&self, register: usize) -> io::Result<u32> {
        match self {
            Self::Mapped(mapping) => Ok(mapping.load(register)),
            Self::Remote(remote) => {
                let mut data = [0; 4];
                remote.read(register as u64, &mut data)?;
                Ok(u32::from_le_bytes(data))
            }
        }
    }

    fn store(&self, register: usize, value: u32) -> io::Result<()> {
        match self {
            Self::Mapped(mapping) => {
                mapping.store(register, value);
                Ok(())
            }
            Self::Remote(remote) => remote.write(register as u64, &value.to_le_bytes()),
        }
    }
}

impl Remote {
    /// Loads from `offset`, for the host or the guest.
    ///
    /// # Errors
    /// The server's error, or an error of the connection to the server.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.region_read(BAR, offset, data)
    }

    /// Stores to `offset`, for the host or the guest.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.region_write(BAR, offset, data)
    }

    /// Wraps the registers for the guest's bus. An access that fails ends the machine through `ending`.
    pub fn registers(&self, ending: Arc<Ending>) -> RemoteRegisters {
        let bar = self.clone();
        RemoteRegisters { bar, ending }
    }
}

/// A [`Remote`] BAR on the guest's bus.
#[derive(Debug)]
pub struct RemoteRegisters {
    bar: Remote,
    ending: Arc<Ending>,
}

impl RemoteRegisters {
    fn done(&self, accessed: io::Result<()>) {
        if let Err(source) = accessed {
            let step = "the guest's access to its device";
            self.ending.fail(Error::System { step, source });
        }
    }
}

impl DeviceMmio for RemoteRegisters {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.done(self.bar.read(offset, data));
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.done(self.bar.write(offset, data));
    }
}
