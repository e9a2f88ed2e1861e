// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC's registers as the guest accesses them.

use std::sync::atomic::Ordering;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::pin::AfterWrite;
use super::regs::{self, Half, Register};
use super::{Ioapic, Version};
use crate::bus;
use crate::sync::lock;

/// Reads and writes of 1, 2, 4 and 8 bytes; of 8 bytes written, the low half counts. The data window and the EOI register
/// are written with 4 or 8 bytes. Everything else is ignored, reads as 0, and is [counted](super::Counts::ignored_accesses);
/// a read that is no access at all (of 3 or 9 bytes, say) leaves the bytes as they are.
impl DeviceMmio for Ioapic {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let value = match offset {
            regs::SELECT => Some(self.select.load(Ordering::Relaxed).into()),
            regs::WINDOW => Some(self.read_selected()),
            regs::EOI if self.version == Version::V20 => Some(0),
            _ => None,
        };
        if !bus::answer(data, value.unwrap_or(0)) || value.is_none() {
            self.chip.counters.ignored_accesses.count();
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let value = bus::value(data);
        let is_wide = matches!(data.len(), 4 | 8);
        match offset {
            regs::SELECT if bus::has_valid_width(data) => self.select.store(value as u8, Ordering::Relaxed),
            regs::WINDOW if is_wide => self.write_selected(value),
            regs::EOI if is_wide && self.version == Version::V20 => self.eoi(value as u8),
            _ => self.chip.counters.ignored_accesses.count(),
        }
    }
}

impl Ioapic {
    fn read_selected(&self) -> u32 {
        match Register::at(self.select.load(Ordering::Relaxed)) {
            Register::Id | Register::Arbitration => regs::id_register(self.id.load(Ordering::Relaxed)),
            Register::Version => regs::version_register(self.version.number(), self.lines.len()),
            Register::Entry { pin, half } => match self.lines.get(usize::from(pin)) {
                Some(line) => line.pin().state().entry().half(half),
                None => u32::MAX,
            },
            Register::Reserved => 0,
        }
    }

    fn write_selected(&self, value: u32) {
        match Register::at(self.select.load(Ordering::Relaxed)) {
            Register::Id => self.id.store(regs::id_of(value), Ordering::Relaxed),
            Register::Entry { pin, half } => self.write_entry(pin, half, value),
            Register::Version | Register::Arbitration | Register::Reserved => {}
        }
    }

    fn write_entry(&self, pin: u8, half: Half, value: u32) {
        let Some(line) = self.lines.get(usize::from(pin)) else {
            return;
        };
        let pin = line.pin();
        let after = {
            let _writes = lock(&self.writes);
            let mut state = pin.state();
            let program = pin.change(&mut state, |state| state.write(half, value));
            if state.is_illegal() {
                self.chip.counters.illegal_entries.count();
            }
            if let Some(program) = program {
                drop(state);
                // The error is counted, and there is nobody to return it to.
                pin.program(program).ok();
                state = pin.state();
            }
            state.after_write()
        };
        match after {
            AfterWrite::Nothing => {}
            AfterWrite::Send(send) => pin.send_unasked(Some(send)),
            AfterWrite::Resample => {
                self.ask(line);
                let send = pin.state().resampled();
                pin.send_unasked(send);
            }
        }
    }
}
