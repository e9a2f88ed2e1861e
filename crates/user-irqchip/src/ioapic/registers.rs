// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOAPIC's registers as the guest accesses them.

use std::sync::atomic::Ordering;

use interrupt_core::EveryStep;
#[cfg(feature = "vm-device")]
use vm_device::DeviceMmio;
#[cfg(feature = "vm-device")]
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::Ioapic;
use super::pin_state::AfterWrite;
use super::spec::{self, Half, Register, Version};
use crate::bus;

/// [`Ioapic::read`] and [`Ioapic::write`] on vm-device's bus.
#[cfg(feature = "vm-device")]
#[cfg_attr(docsrs, doc(cfg(feature = "vm-device")))]
impl DeviceMmio for Ioapic {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write(offset, data);
    }
}

impl Ioapic {
    /// The guest reads at this offset in the range of the registers.
    ///
    /// Takes 1, 2, 4 and 8 bytes. An access to no register reads as 0, and is
    /// [counted](super::Counts::ignored_accesses). A read of another width (3 or 9 bytes, say) is counted too, and leaves
    /// the bytes as they are.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            spec::SELECT => Some(self.select.load(Ordering::Relaxed).into()),
            spec::WINDOW => Some(self.read_selected()),
            spec::EOI if self.version == Version::V20 => Some(0),
            _ => None,
        };
        if !bus::answer(data, value.unwrap_or(0)) || value.is_none() {
            self.shared.counters.ignored_accesses.count();
        }
    }

    /// The guest writes at this offset in the range of the registers.
    ///
    /// Takes 1, 2, 4 and 8 bytes; of 8 bytes, the low half counts. The data window and the EOI register take 4 or 8 bytes.
    /// Every other access is ignored, and is [counted](super::Counts::ignored_accesses).
    pub fn write(&self, offset: u64, data: &[u8]) {
        let value = bus::value(data);
        let is_wide = matches!(data.len(), 4 | 8);
        match offset {
            spec::SELECT if bus::has_valid_width(data) => self.select.store(value as u8, Ordering::Relaxed),
            spec::WINDOW if is_wide => self.write_selected(value),
            spec::EOI if is_wide && self.version == Version::V20 => self.eoi(value as u8),
            _ => self.shared.counters.ignored_accesses.count(),
        }
    }

    fn read_selected(&self) -> u32 {
        match Register::at(self.select.load(Ordering::Relaxed)) {
            Register::Id | Register::Arbitration => spec::id_register(self.id.load(Ordering::Relaxed)),
            Register::Version => spec::version_register(self.version.number(), self.lines.len()),
            Register::Entry { pin, half } => match self.lines.get(usize::from(pin)) {
                Some(line) => line.pin().entry().half(half),
                None => u32::MAX,
            },
            Register::Reserved => 0,
        }
    }

    fn write_selected(&self, value: u32) {
        match Register::at(self.select.load(Ordering::Relaxed)) {
            Register::Id => self.id.store(spec::id_of(value), Ordering::Relaxed),
            Register::Entry { pin, half } => self.write_entry(pin, half, value),
            Register::Version | Register::Arbitration | Register::Reserved => {}
        }
    }

    fn write_entry(&self, pin: u8, half: Half, value: u32) {
        let number = usize::from(pin);
        let Some(line) = self.lines.get(number) else {
            return;
        };
        let pin = line.pin();
        let mut steps = EveryStep::default();
        let refused = self.shared.refused().filter(|pin| *pin != number);
        match pin.write(half, value, &mut steps) {
            AfterWrite::Nothing => {}
            AfterWrite::Send(sent) => drop(steps.take(|| pin.send_unasked(Some(sent)))),
            AfterWrite::Resample => {
                steps.take(|| self.resample(line));
                steps.take(|| pin.resampled());
            }
            AfterWrite::ResampleGsi => {
                let told = steps.take(|| line.resample_gsi()).unwrap_or(Ok(()));
                self.shared.counters.listener_errors.count_error(told);
            }
        }
        self.tell_again(refused, &mut steps);
        steps.end();
    }
}
