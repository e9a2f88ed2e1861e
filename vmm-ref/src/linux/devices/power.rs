// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers by which a guest switches itself off, resets itself, or reports an exit status.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use crate::linux::boot::acpi::{S5, SLEEP_ENABLE, SLEEP_TYPE_SHIFT};
use crate::linux::boot::memory_map::{EXIT_STATUS_PORT, I8042, SLEEP_CONTROL};
use crate::vm::ending::{End, Ending};

/// The registers: ACPI's sleep control, the reset command of the keyboard controller, and the exit status.
#[derive(Debug)]
pub struct Power {
    ending: Arc<Ending>,
    keyboard: Mutex<I8042Device<Reset>>,
    /// The exit status; 256 until the guest reports one.
    status: AtomicU16,
}

const NO_STATUS: u16 = 256;

impl Power {
    /// The registers of a machine that has just been switched on.
    pub fn new(ending: Arc<Ending>) -> Arc<Self> {
        Arc::new(Self {
            keyboard: Mutex::new(I8042Device::new(Reset(Arc::clone(&ending)))),
            ending,
            status: AtomicU16::new(NO_STATUS),
        })
    }

    /// The exit status that the guest has reported, if any.
    pub fn status(&self) -> Option<u8> {
        u8::try_from(self.status.load(Ordering::Acquire)).ok()
    }
}

#[derive(Debug)]
struct Reset(Arc<Ending>);

impl Trigger for Reset {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.end(End::Reset);
        Ok(())
    }
}

/// Serves accesses of one byte. Other reads return ones, other writes are ignored.
impl DevicePio for Power {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        match (base.0, data) {
            (I8042, [byte]) => {
                let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
                *byte = keyboard.read(offset as u8);
            }
            (SLEEP_CONTROL, [byte]) => *byte = 0,
            _ => {}
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        const POWER_OFF: u8 = S5 << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
        match (base.0, offset, data) {
            (I8042, _, [byte]) => {
                let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(()) = keyboard.write(offset as u8, *byte);
            }
            (SLEEP_CONTROL, 0, [POWER_OFF]) => self.ending.end(End::PowerOff),
            (EXIT_STATUS_PORT, 0, [byte]) => self.status.store((*byte).into(), Ordering::Release),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power() -> Arc<Power> {
        Power::new(Ending::new().unwrap())
    }

    #[test]
    fn the_guest_switches_itself_off_by_the_sleep_register_alone() {
        let power = power();
        for (offset, value) in [(0, 0), (0, S5 << SLEEP_TYPE_SHIFT), (0, SLEEP_ENABLE), (1, 0x34)] {
            power.pio_write(PioAddress(SLEEP_CONTROL), offset, &[value]);
            assert_eq!(power.ending.ended(), None, "{value:#x} at {offset}");
        }
        power.pio_write(PioAddress(SLEEP_CONTROL), 0, &[0x34]);
        assert_eq!(power.ending.ended(), Some(End::PowerOff));
    }

    #[test]
    fn the_first_end_is_the_end() {
        let power = power();
        power.pio_write(PioAddress(I8042), 4, &[0xfe]);
        power.ending.end(End::Interrupted);
        assert_eq!(power.ending.ended(), Some(End::Reset));
    }

    #[test]
    fn a_guest_has_a_status_once_it_has_given_one() {
        let power = power();
        assert_eq!(power.status(), None);
        power.pio_write(PioAddress(EXIT_STATUS_PORT), 0, &[1, 2]);
        assert_eq!(power.status(), None, "no byte");
        power.pio_write(PioAddress(EXIT_STATUS_PORT), 0, &[0]);
        assert_eq!(power.status(), Some(0));
        power.pio_write(PioAddress(EXIT_STATUS_PORT), 0, &[255]);
        assert_eq!(power.status(), Some(255));
    }
}
