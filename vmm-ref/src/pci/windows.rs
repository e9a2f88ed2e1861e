// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The windows of the bus: which BAR decodes which address.
//!
//! The parts of a BAR that are mapped into this process are memory of the guest while the BAR decodes. The guest reaches
//! them without an exit. Accesses to the other parts, to BARs smaller than a page and to ports exit to this process, which
//! makes them at the device.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kvm_bindings::kvm_userspace_memory_region;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::errno;

use super::bar::{BARS, Bar, Space};
use super::device::{BAR0_REGION, PciDevice};
use crate::error::Error;
use crate::vm::ending::Ending;

/// The first memory slot of the BARs. The slots below are the guest's memory.
const FIRST_SLOT: u32 = 16;
/// The most mapped parts of a BAR. Further parts are trapped.
const PARTS: u32 = 4;

/// Makes a range of this process memory of the guest, or takes it away (size 0): KVM_SET_USER_MEMORY_REGION. The caller
/// of this type guarantees that the range is mapped for as long as a vCPU can run.
pub type SetMemory = Box<dyn Fn(kvm_userspace_memory_region) -> errno::Result<()> + Send + Sync>;

/// The memory slots of a function.
pub(super) fn slots_of(function: u8) -> Range<u32> {
    let slots = BARS as u32 * PARTS;
    let first = FIRST_SLOT + u32::from(function) * slots;
    first..first + slots
}

/// A BAR that its function wants to decode.
#[derive(Debug)]
struct Decoder {
    /// The function's device number.
    function: u8,
    device: Arc<dyn PciDevice>,
    bar: Bar,
    first: u64,
    last: u64,
    /// Whether it decodes. It does not while another BAR has one of its addresses.
    active: bool,
    /// The memory slots of its mapped parts.
    slots: Vec<u32>,
}

impl Decoder {
    fn is(&self, function: u8, bar: &Bar, range: (u64, u64)) -> bool {
        (self.function, self.bar.number) == (function, bar.number) && (self.first, self.last) == range
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.bar.space == other.bar.space && self.first <= other.last && other.first <= self.last
    }
}

/// The windows.
pub struct Windows {
    set_memory: SetMemory,
    ending: Arc<Ending>,
    /// In the order in which they came. Where two overlap the first one decodes. Read while an access is made.
    decoders: RwLock<Vec<Decoder>>,
}

impl Windows {
    /// Windows in which nothing decodes. A device that is gone ends the machine.
    pub fn new(set_memory: SetMemory, ending: Arc<Ending>) -> Self {
        Self {
            set_memory,
            ending,
            decoders: RwLock::default(),
        }
    }

    /// From now on `bars` are what the function decodes, and nothing else. A BAR that is where it was is not touched.
    ///
    /// When this returns, no access of the guest reaches the BARs that are gone: the memory slots are removed, and trapped
    /// accesses are completed.
    pub fn decode<'a>(&self, function: u8, device: &Arc<dyn PciDevice>, bars: impl Iterator<Item = &'a Bar>) {
        let wanted: Vec<_> = bars.filter_map(|bar| Some((*bar, bar.range()?))).collect();
        let mut decoders = self.change();
        decoders.retain(|old| {
            let stays = old.function != function || wanted.iter().any(|(bar, range)| old.is(function, bar, *range));
            if !stays {
                old.slots.iter().for_each(|slot| self.remove(*slot));
            }
            stays
        });
        for (bar, range) in wanted {
            if !decoders.iter().any(|old| old.is(function, &bar, range)) {
                decoders.push(Decoder {
                    function,
                    device: Arc::clone(device),
                    bar,
                    first: range.0,
                    last: range.1,
                    active: false,
                    slots: Vec::new(),
                });
            }
        }
        for index in 0..decoders.len() {
            let is_free = |new: &Decoder| !decoders.iter().any(|other| other.active && other.overlaps(new));
            if !decoders[index].active && is_free(&decoders[index]) {
                decoders[index].active = true;
                decoders[index].slots = self.add(&decoders[index]);
            }
        }
    }

    /// Makes the mapped parts memory of the guest. A part that KVM refuses is trapped.
    fn add(&self, decoder: &Decoder) -> Vec<u32> {
        let first = slots_of(decoder.function).start + u32::from(decoder.bar.number) * PARTS;
        let areas = decoder
            .device
            .areas(decoder.bar.number)
            .into_iter()
            .take(PARTS as usize);
        let made = (first..).zip(areas).filter(|(slot, area)| {
            let fits = area
                .offset
                .checked_add(area.size)
                .is_some_and(|end| end <= decoder.bar.size);
            let region = kvm_userspace_memory_region {
                slot: *slot,
                flags: 0,
                guest_phys_addr: decoder.first + area.offset,
                memory_size: area.size,
                userspace_addr: area.address,
            };
            fits && (self.set_memory)(region).is_ok()
        });
        made.map(|(slot, _)| slot).collect()
    }

    /// KVM can run out of memory here. The guest would keep what it must not reach, so the machine ends.
    fn remove(&self, slot: u32) {
        let removed = (self.set_memory)(kvm_userspace_memory_region {
            slot,
            ..Default::default()
        });
        if let Err(errno) = removed {
            let (step, source) = ("KVM_SET_USER_MEMORY_REGION (removing a BAR)", errno.into());
            self.ending.fail(Error::System { step, source });
        }
    }

    /// Calls `access` with what decodes all `size` bytes from `address` on: the device, the region and the offset in it.
    /// Returns whether anything does and the access succeeded.
    fn access(
        &self,
        space: Space,
        address: u64,
        size: usize,
        access: impl FnOnce(&dyn PciDevice, u32, u64) -> io::Result<()>,
    ) -> bool {
        let decoders = self.look();
        let target = decoders.iter().find(|decoder| {
            let last = address.checked_add(size as u64).and_then(|end| end.checked_sub(1));
            let ends_within = last.is_some_and(|last| last <= decoder.last);
            decoder.active && decoder.bar.space == space && decoder.first <= address && ends_within
        });
        let Some(decoder) = target else {
            return false;
        };
        let region = BAR0_REGION + u32::from(decoder.bar.number);
        access(&*decoder.device, region, address - decoder.first)
            .map_err(|source| {
                if decoder.device.is_gone(&source) {
                    let step = "the guest's access to its device";
                    self.ending.fail(Error::System { step, source });
                }
            })
            .is_ok()
    }

    fn read(&self, space: Space, address: u64, data: &mut [u8]) {
        let size = data.len();
        if !self.access(space, address, size, |device, region, offset| {
            device.read(region, offset, data)
        }) {
            data.fill(0xff);
        }
    }

    fn write(&self, space: Space, address: u64, data: &[u8]) {
        self.access(space, address, data.len(), |device, region, offset| {
            device.write(region, offset, data)
        });
    }

    // Nothing under the lock panics.
    fn look(&self) -> RwLockReadGuard<'_, Vec<Decoder>> {
        self.decoders.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Vec<Decoder>> {
        self.decoders.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceMmio for Windows {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read(Space::Memory, base.0 + offset, data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write(Space::Memory, base.0 + offset, data);
    }
}

impl DevicePio for Windows {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.read(Space::Io, u64::from(base.0) + u64::from(offset), data);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.write(Space::Io, u64::from(base.0) + u64::from(offset), data);
    }
}

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windows")
            .field("decoders", &*self.look())
            .finish_non_exhaustive()
    }
}
