// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A part of a VFIO device's BAR, mapped into this process.

use std::fmt;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_MMAP;
use vfio_ioctls::VfioDevice;

/// A part of a BAR of VFIO, mapped.
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
    /// Maps `size` bytes of region `region` from byte `offset` on. Both are multiples of the page size.
    ///
    /// # Errors
    /// One line that names the reason: VFIO does not let the region be mapped, or the error of mmap(2).
    pub fn new(device: &Arc<VfioDevice>, region: u32, offset: u64, size: usize) -> Result<Self, String> {
        if device.get_region_flags(region) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Err(format!("VFIO does not let it be mapped ({size} bytes)"));
        }
        // SAFETY: the file is open for as long as `device` is borrowed.
        let file = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let offset = device.get_region_offset(region) + offset;
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

    /// The number of mapped bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Loads the register of 4 bytes at `offset`; ones outside of the mapping.
    pub(super) fn load(&self, offset: usize) -> u32 {
        match self.register(offset) {
            // SAFETY: the register is within the mapping, and aligned.
            Some(register) => unsafe { register.read_volatile() },
            None => u32::MAX,
        }
    }

    /// Stores to the register of 4 bytes at `offset`; nothing outside of the mapping.
    pub(super) fn store(&self, offset: usize, value: u32) {
        if let Some(register) = self.register(offset) {
            // SAFETY: as in `load`.
            unsafe { register.write_volatile(value) }
        }
    }

    fn register(&self, offset: usize) -> Option<*mut u32> {
        let within = offset % 4 == 0 && offset.checked_add(4).is_some_and(|end| end <= self.size);
        within.then(|| self.address.as_ptr().wrapping_add(offset).cast())
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
        write!(f, "{} bytes of a BAR", self.size)
    }
}
