// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI-X of a function: the vector table and the pending bits that the guest has, instead of the device's.
//!
//! A vector is an edge irqfd on a GSI of its own, whose route is the message that the guest has written. A vector that the
//! guest masks keeps what the device signals, and the guest reads that as the vector's pending bit. While MSI-X is
//! enabled, INTx is not, and the other way round.
//!
//! Source: PCI Local Bus Specification 3.0, 6.8.2.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use interrupt_core::Gsi;
use interrupt_core::forward::{DeviceInterrupt, DeviceIrq};
use kvm_irqfd::{EdgeIrqfd, KvmInterrupts, Route};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vfio_intx::Intx;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Area, BAR0_REGION, PciDevice};
use crate::error::{Error, Result};
use crate::vm::ending::Ending;

/// The bits of the control register.
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;
const LAST_VECTOR: u16 = 0x7ff;

/// The bytes of an entry of the table, and its words: the address in two, the data, and the mask.
const ENTRY: u64 = 16;
const MASKED: u32 = 1;

const PAGE: u64 = 4096;

/// The capability, as the device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The offset of the control register in the configuration space.
    pub control: u8,
    /// The number of vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR of the table, and the table's offset in it.
    pub table: (u8, u64),
    /// The BAR of the pending bits, and their offset in it.
    pub pending: (u8, u64),
}

impl Capability {
    /// Reads the capability at `start` of a configuration space, which has 12 bytes from there on.
    pub fn read(space: &[u8], start: usize) -> Self {
        let word = |at: usize| u32::from_le_bytes([space[at], space[at + 1], space[at + 2], space[at + 3]]);
        let place = |word: u32| ((word & 7) as u8, u64::from(word & !7));
        Self {
            control: start as u8 + 2,
            vectors: (word(start) >> 16) as u16 & LAST_VECTOR,
            table: place(word(start + 4)),
            pending: place(word(start + 8)),
        }
        .counted()
    }

    /// The register has the number less 1.
    fn counted(self) -> Self {
        Self {
            vectors: self.vectors + 1,
            ..self
        }
    }

    fn table_bytes(&self) -> Range<u64> {
        self.table.1..self.table.1 + u64::from(self.vectors) * ENTRY
    }

    fn pending_bytes(&self) -> Range<u64> {
        // Whole words of 64 bits.
        self.pending.1..self.pending.1 + u64::from(self.vectors).div_ceil(64) * 8
    }
}

/// The vectors of a function.
pub struct Msix {
    capability: Capability,
    device: Arc<dyn PciDevice>,
    intx: Weak<Intx>,
    interrupts: KvmInterrupts,
    /// The GSI of vector 0; the other vectors' follow.
    first: Gsi,
    ending: Arc<Ending>,
    state: Mutex<State>,
}

struct State {
    control: u16,
    entries: Vec<[u32; 4]>,
    /// While MSI-X is enabled.
    vectors: Vec<EdgeIrqfd>,
    /// How often MSI-X was enabled.
    enabled: u64,
}

impl State {
    fn is_masked(&self, vector: usize) -> bool {
        self.control & MASK_ALL != 0 || self.entries[vector][3] & MASKED != 0
    }
}

impl Msix {
    /// The vectors of `device`, all masked, and MSI-X disabled. `first` and the GSIs after it are for the vectors.
    pub fn new(
        capability: Capability,
        device: Arc<dyn PciDevice>,
        intx: Weak<Intx>,
        interrupts: KvmInterrupts,
        first: Gsi,
        ending: Arc<Ending>,
    ) -> Self {
        Self {
            capability,
            device,
            intx,
            interrupts,
            first,
            ending,
            state: Mutex::new(State {
                control: 0,
                entries: vec![[0, 0, 0, MASKED]; usize::from(capability.vectors)],
                vectors: Vec::new(),
                enabled: 0,
            }),
        }
    }

    /// The offset of the control register in the configuration space.
    pub fn register(&self) -> u8 {
        self.capability.control
    }

    /// What the control register reads.
    pub fn control(&self) -> u16 {
        self.lock().control | (self.capability.vectors - 1)
    }

    /// How often the guest has enabled MSI-X.
    pub fn enabled(&self) -> u64 {
        self.lock().enabled
    }

    /// Writes the control register. What cannot be done for the guest ends the machine.
    pub fn set_control(&self, value: u16) {
        let mut state = self.lock();
        let (was, control) = (state.control, value & (ENABLE | MASK_ALL));
        state.control = control;
        let changed = match (was & ENABLE != 0, control & ENABLE != 0) {
            (false, true) => self.enable(&mut state).map_err(|error| Error::System {
                step: "enabling MSI-X; use --msi off, or more open files (ulimit -n)",
                source: io::Error::other(error),
            }),
            (true, false) => self.disable(&mut state),
            (true, true) if was != control => {
                (0..state.entries.len()).try_for_each(|vector| self.apply(&state, vector))
            }
            _ => Ok(()),
        };
        drop(state);
        self.check(changed);
    }

    /// Disables MSI-X and masks all vectors, as a reset does.
    pub fn reset(&self) {
        self.set_control(0);
        self.lock().entries.fill([0, 0, 0, MASKED]);
    }

    fn enable(&self, state: &mut State) -> Result<()> {
        if let Some(intx) = self.intx.upgrade() {
            intx.enter_msi()?;
        }
        state.enabled += 1;
        // One change for all: each one hands KVM the whole table.
        let mut routing = self.interrupts.routing();
        for vector in 0..state.entries.len() {
            routing.set(self.gsi(vector), &[message(state, vector)])?;
        }
        routing.commit()?;
        let mut triggers = Vec::new();
        for vector in 0..state.entries.len() {
            let failed = |source| Error::System {
                step: "eventfd",
                source,
            };
            // Non-blocking, so that no signal of a device waits.
            let trigger = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(failed)?;
            triggers.push(trigger.try_clone().map_err(failed)?);
            state
                .vectors
                .push(self.interrupts.edge_irqfd_with(self.gsi(vector), trigger)?);
            self.apply(state, vector)?;
        }
        self.device.set_messages(&triggers).map_err(|source| Error::System {
            step: "VFIO_DEVICE_SET_IRQS",
            source,
        })
    }

    fn disable(&self, state: &mut State) -> Result<()> {
        let disabled = self.device.set_messages(&[]).map_err(|source| Error::System {
            step: "disabling MSI-X",
            source,
        });
        // The irqfds first, then their routes.
        state.vectors.clear();
        let mut routing = self.interrupts.routing();
        for vector in 0..state.entries.len() {
            routing.set(self.gsi(vector), &[])?;
        }
        routing.commit()?;
        disabled?;
        match self.intx.upgrade() {
            Some(intx) => Ok(intx.leave_msi().map(drop)?),
            None => Ok(()),
        }
    }

    /// Does for a vector what its entry says.
    fn apply(&self, state: &State, vector: usize) -> Result<()> {
        let Some(irqfd) = state.vectors.get(vector) else {
            return Ok(());
        };
        if state.is_masked(vector) {
            irqfd.mask();
            return Ok(());
        }
        self.route(state, vector)?;
        Ok(irqfd.unmask()?)
    }

    fn route(&self, state: &State, vector: usize) -> Result<()> {
        let mut routing = self.interrupts.routing();
        routing.set(self.gsi(vector), &[message(state, vector)])?;
        routing.commit()?;
        Ok(())
    }

    fn gsi(&self, vector: usize) -> Gsi {
        // At most 2048 vectors.
        Gsi(self.first.0 + vector as u32)
    }

    /// Reads words of the table or the pending bits; `None` where there are none.
    fn read(&self, bar: u8, offset: u64) -> Option<u32> {
        let (table, pending) = (self.capability.table_bytes(), self.capability.pending_bytes());
        let state = self.lock();
        if bar == self.capability.table.0 && table.contains(&offset) {
            let at = offset - table.start;
            return Some(state.entries[(at / ENTRY) as usize][(at % ENTRY / 4) as usize]);
        }
        if bar != self.capability.pending.0 || !pending.contains(&offset) {
            return None;
        }
        let first = (offset - pending.start) as usize * 8;
        let waits = |vector: &usize| {
            let irqfd = state.vectors.get(*vector).filter(|_| state.is_masked(*vector));
            irqfd.is_some_and(has_signal)
        };
        let bits = (first..first + 32).filter(waits).map(|vector| 1 << (vector - first));
        Some(bits.fold(0, |all: u32, bit: u32| all | bit))
    }

    /// Writes a word of the table. The pending bits cannot be written.
    fn write(&self, bar: u8, offset: u64, value: u32) {
        let table = self.capability.table_bytes();
        if bar != self.capability.table.0 || !table.contains(&offset) {
            return;
        }
        let at = offset - table.start;
        let (vector, word) = ((at / ENTRY) as usize, (at % ENTRY / 4) as usize);
        let mut state = self.lock();
        state.entries[vector][word] = value;
        let applied = self.apply(&state, vector);
        drop(state);
        self.check(applied);
    }

    fn check(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.ending.fail(error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message of a vector, as the guest has written it.
fn message(state: &State, vector: usize) -> Route {
    let [low, high, data, _] = state.entries[vector];
    Route::Msi {
        address: u64::from(high) << 32 | u64::from(low),
        data,
        device: None,
    }
}

/// Whether a signal waits in the irqfd's eventfd.
fn has_signal(irqfd: &EdgeIrqfd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(irqfd.trigger(), PollFlags::IN)];
    let at_once = Timespec::default();
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} vectors of MSI-X from {}", self.capability.vectors, self.first)
    }
}

/// A device whose table and pending bits are those of an [`Msix`].
#[derive(Debug)]
pub struct WithMsix {
    device: Arc<dyn PciDevice>,
    msix: Arc<Msix>,
}

impl WithMsix {
    /// The device with this table.
    pub fn new(device: Arc<dyn PciDevice>, msix: Arc<Msix>) -> Self {
        Self { device, msix }
    }

    /// Whether an access reaches the table or the pending bits.
    fn is_mine(&self, region: u32, offset: u64, size: usize) -> bool {
        let capability = &self.msix.capability;
        let places = [
            (capability.table.0, capability.table_bytes()),
            (capability.pending.0, capability.pending_bytes()),
        ];
        let end = offset.saturating_add(size as u64);
        places.iter().any(|(bar, bytes)| {
            region == BAR0_REGION + u32::from(*bar) && offset < bytes.end && bytes.start < end && *bar < 6
        })
    }
}

impl PciDevice for WithMsix {
    fn label(&self) -> &str {
        self.device.label()
    }

    fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        self.device.interrupt()
    }

    fn irq(&self) -> Option<DeviceIrq> {
        self.device.irq()
    }

    fn bar_size(&self, bar: u8) -> io::Result<u64> {
        self.device.bar_size(bar)
    }

    /// The pages of the table and of the pending bits are no memory of the guest.
    fn areas(&self, bar: u8) -> Vec<Area> {
        let capability = &self.msix.capability;
        let mut areas = self.device.areas(bar);
        for (of, bytes) in [
            (capability.table.0, capability.table_bytes()),
            (capability.pending.0, capability.pending_bytes()),
        ] {
            if of == bar {
                let pages = bytes.start / PAGE * PAGE..bytes.end.next_multiple_of(PAGE);
                areas = areas.iter().flat_map(|area| without(area, &pages)).collect();
            }
        }
        areas
    }

    /// An access of another kind than of 4 or 8 aligned bytes is undefined, and reads ones.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if !self.is_mine(region, offset, data.len()) {
            return self.device.read(region, offset, data);
        }
        match (offset % 4, data.len()) {
            (0, 4) => {
                let value = self.msix.read((region - BAR0_REGION) as u8, offset);
                data.copy_from_slice(&value.unwrap_or(u32::MAX).to_le_bytes());
                Ok(())
            }
            (0, 8) => {
                let (lower, upper) = data.split_at_mut(4);
                self.read(region, offset, lower)?;
                self.read(region, offset + 4, upper)
            }
            _ => {
                data.fill(0xff);
                Ok(())
            }
        }
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if !self.is_mine(region, offset, data.len()) {
            return self.device.write(region, offset, data);
        }
        match (offset % 4, data) {
            (0, &[b0, b1, b2, b3]) => {
                let value = u32::from_le_bytes([b0, b1, b2, b3]);
                self.msix.write((region - BAR0_REGION) as u8, offset, value);
                Ok(())
            }
            (0, data) if data.len() == 8 => {
                let (lower, upper) = data.split_at(4);
                self.write(region, offset, lower)?;
                self.write(region, offset + 4, upper)
            }
            _ => Ok(()),
        }
    }

    fn has_messages(&self) -> bool {
        self.device.has_messages()
    }

    fn set_messages(&self, triggers: &[EventFd]) -> io::Result<()> {
        self.device.set_messages(triggers)
    }

    fn reset(&self) -> io::Result<()> {
        self.device.reset()
    }

    fn is_gone(&self, error: &io::Error) -> bool {
        self.device.is_gone(error)
    }
}

/// The parts of `area` outside of `pages`.
fn without(area: &Area, pages: &Range<u64>) -> Vec<Area> {
    let end = area.offset + area.size;
    let part = |start: u64, end: u64| {
        (start < end).then(|| Area {
            offset: start,
            size: end - start,
            address: area.address + (start - area.offset),
        })
    };
    let before = part(area.offset, end.min(pages.start));
    let after = part(area.offset.max(pages.end), end);
    before.into_iter().chain(after).collect()
}
