// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! BAR 0 of an edu, as this process reaches it: mapped, or by messages to the server that has the device.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP};
use vfio_intx::VfioUserIntx;
use vfio_ioctls::VfioDevice;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::error::Error;
use crate::passthrough::edu_registers::{ACKNOWLEDGE, BAR_SIZE, RAISE, STATUS};
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
        Mapping::new(device).map(Self::Mapped)
    }

    /// The BAR of a device of vfio-user.
    pub(super) fn remote(device: Arc<VfioUserIntx>) -> Self {
        Self::Remote(Remote(device))
    }

    /// The number of mapped or reachable bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Mapped(mapping) => mapping.size,
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

/// The first bytes of a BAR of VFIO, mapped.
pub struct Mapping {
    address: NonNull<u8>,
    size: usize,
    /// Keeps the device open: closing it would turn its memory space off.
    _device: Arc<VfioDevice>,
}

// SAFETY: the address points to a device's registers, which any thread may access. Only the drop of this value unmaps
// the range.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; each access is one load or store of a register.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(device: &Arc<VfioDevice>) -> Result<Self, String> {
        let size = usize::try_from(device.get_region_size(BAR)).map_or(BAR_SIZE, |size| size.min(BAR_SIZE));
        if device.get_region_flags(BAR) & VFIO_REGION_INFO_FLAG_MMAP == 0 || size <= ACKNOWLEDGE {
            return Err(format!("VFIO does not let it be mapped ({size} bytes)"));
        }
        // SAFETY: the file is open for as long as `device` is borrowed.
        let file = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let offset = device.get_region_offset(BAR);
        // SAFETY: the kernel chooses the address of the new mapping, so no existing mapping is replaced.
        let mapped = unsafe { mmap(std::ptr::null_mut(), size, access, MapFlags::SHARED, file, offset) };
        let mapped = mapped.map_err(|errno| format!("mmap: {errno}"))?;
        Ok(Self {
            address: NonNull::new(mapped.cast()).ok_or("mmap: it is at address 0")?,
            size,
            _device: Arc::clone(device),
        })
    }

    /// The address of the mapping in this process.
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    fn load(&self, register: usize) -> u32 {
        // SAFETY: `register` is one of the constants of `guest::edu`: aligned, and within the mapping by the check in
        // `new`.
        unsafe { self.register(register).read_volatile() }
    }

    fn store(&self, register: usize, value: u32) {
        // SAFETY: as in `load`.
        unsafe { self.register(register).write_volatile(value) }
    }

    fn register(&self, register: usize) -> *mut u32 {
        debug_assert!(register % 4 == 0 && register <= ACKNOWLEDGE);
        self.address.as_ptr().wrapping_add(register).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no reference to it is left. munmap fails only for an invalid range.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.size) };
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of BAR 0", self.size)
    }
}
