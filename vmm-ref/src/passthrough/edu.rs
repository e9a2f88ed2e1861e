// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device behind vfio-pci: its BAR, and its interrupt pin as a thing that can be made to assert.

use std::fmt;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use interrupt_core::{Delivery, Gsi, LevelSource, Lowered, SourceKey};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

use super::{PciAddress, Unusable, check};
use crate::guest::BAR_SIZE;
use crate::guest::edu::{ACKNOWLEDGE, ID, ID_EDU, RAISE, STATUS};

/// The command register (PCI Local Bus Specification 3.0, 6.2.2) and its bits.
const COMMAND: u64 = 0x04;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// An edu that this process has to itself. It asserts nothing when it is opened.
pub struct Edu {
    address: PciAddress,
    device: Arc<VfioDevice>,
    bar: Arc<Bar>,
}

impl Edu {
    /// Checks what an operator forgets, opens the device, turns its memory space on and maps its BAR.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn open(address: PciAddress) -> Result<Self, Unusable> {
        check(address)?;
        let refused = |step| move |reason: String| Unusable::Refused { address, step, reason };
        let container = VfioContainer::new(None).map_err(|error| refused("VFIO")(error.to_string()))?;
        let path = format!("/sys/bus/pci/devices/{address}");
        let device = VfioDevice::new(Path::new(&path), Arc::new(container), false)
            .map_err(|error| refused("VFIO")(advice(&error)))?;
        let device = Arc::new(device);

        let mut command = [0; 2];
        device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut command, COMMAND);
        let command = (u16::from_le_bytes(command) | MEMORY_SPACE | BUS_MASTER) & !INTERRUPT_DISABLE;
        device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &command.to_le_bytes(), COMMAND);
        // vfio-ioctls says nothing of a write that failed, and a BAR whose memory space is off is a bus error.
        let mut now = [0; 2];
        device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut now, COMMAND);
        if u16::from_le_bytes(now) & MEMORY_SPACE == 0 {
            return Err(refused("command register")(
                "memory space cannot be turned on".to_owned(),
            ));
        }

        let bar = Arc::new(Bar::map(&device).map_err(refused("BAR 0"))?);
        if bar.load(ID) & 0xff != ID_EDU {
            return Err(refused("BAR 0")("it does not answer as an edu does".to_owned()));
        }
        bar.store(ACKNOWLEDGE, u32::MAX);
        Ok(Self { address, device, bar })
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its file.
    pub fn device(&self) -> &Arc<VfioDevice> {
        &self.device
    }

    /// Its registers.
    pub fn bar(&self) -> &Arc<Bar> {
        &self.bar
    }
}

/// What VFIO refused, and what is usually the matter.
fn advice(error: &VfioError) -> String {
    const EPERM: i32 = 1;
    match error {
        VfioError::ContainerSetIOMMU(errno) if errno.errno() == EPERM => format!(
            "{error}: the platform has no interrupt remapping; enable it (intremap=on), or load vfio_iommu_type1 with \
             allow_unsafe_interrupts=1 if the guest is trusted"
        ),
        other => other.to_string(),
    }
}

impl fmt::Debug for Edu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "edu at {}", self.address)
    }
}

/// The first bytes of an edu's BAR 0, mapped.
pub struct Bar {
    address: NonNull<u8>,
    size: usize,
    /// Keeps the device open, which keeps its memory space on.
    _device: Arc<VfioDevice>,
}

// SAFETY: what it points to is a device's registers, which any thread may read and write; it is unmapped by whoever drops it last.
unsafe impl Send for Bar {}
// SAFETY: as for Send; each access is one load or store of a register.
unsafe impl Sync for Bar {}

impl Bar {
    fn map(device: &Arc<VfioDevice>) -> Result<Self, String> {
        const BAR: u32 = VFIO_PCI_BAR0_REGION_INDEX;
        let size = usize::try_from(device.get_region_size(BAR)).map_or(BAR_SIZE, |size| size.min(BAR_SIZE));
        if device.get_region_flags(BAR) & VFIO_REGION_INFO_FLAG_MMAP == 0 || size <= ACKNOWLEDGE {
            return Err(format!("VFIO does not let it be mapped ({size} bytes)"));
        }
        // SAFETY: the file is open for as long as `device` is borrowed.
        let file = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let offset = device.get_region_offset(BAR);
        // SAFETY: a new mapping, at an address that the kernel chooses, takes nobody's memory away.
        let mapped = unsafe { mmap(std::ptr::null_mut(), size, access, MapFlags::SHARED, file, offset) };
        let mapped = mapped.map_err(|errno| format!("mmap: {errno}"))?;
        Ok(Self {
            address: NonNull::new(mapped.cast()).ok_or("mmap: it is at address 0")?,
            size,
            _device: Arc::clone(device),
        })
    }

    /// Where it is in this process.
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// How many bytes of it.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The interrupt status: 0 while the device asserts nothing.
    pub fn status(&self) -> u32 {
        self.load(STATUS)
    }

    fn load(&self, register: usize) -> u32 {
        // SAFETY: `register` is one of the constants of `guest::edu`: aligned, and within the mapping by the check in `map`.
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

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody has it any more. It fails only for a range that is none.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.size) };
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of BAR 0", self.size)
    }
}

/// The device's own interrupt pin, which it asserts when it is told to. Where that leads is for the forwarder.
#[derive(Debug)]
pub struct EduPin {
    key: SourceKey,
    label: String,
    bar: Arc<Bar>,
}

impl EduPin {
    /// The pin of `edu`, whose interrupt goes to `gsi`.
    pub fn new(edu: &Edu, gsi: Gsi) -> Self {
        Self {
            key: SourceKey::new(gsi),
            label: edu.address().to_string(),
            bar: Arc::clone(edu.bar()),
        }
    }
}

impl LevelSource for EduPin {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn assert(&self) -> interrupt_core::Result<Delivery> {
        self.bar.store(RAISE, 1);
        Ok(Delivery::Unknown)
    }

    /// The guest's handler has acknowledged, which was all.
    fn deassert(&self) -> interrupt_core::Result<Lowered> {
        Ok(Lowered::Now)
    }

    fn withdraw(&self) -> interrupt_core::Result<()> {
        self.bar.store(ACKNOWLEDGE, u32::MAX);
        Ok(())
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
