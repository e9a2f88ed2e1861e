// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port by which a guest program calls the VMM.

use std::fmt;
use std::sync::Arc;

use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

use super::ending::Ending;
use crate::error::Result;

/// A port that calls `on_write` at each write of the guest, whatever the value, on the thread of the processor that
/// writes. An error ends the machine. A read returns ones.
pub struct Port<F> {
    on_write: F,
    ending: Arc<Ending>,
}

impl<F: Fn() -> Result<()>> Port<F> {
    /// A port of the machine that `ending` ends.
    pub fn new(on_write: F, ending: Arc<Ending>) -> Self {
        Self { on_write, ending }
    }

    fn written(&self) {
        if let Err(error) = (self.on_write)() {
            self.ending.fail(error);
        }
    }
}

impl<F: Fn() -> Result<()>> DevicePio for Port<F> {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {
        self.written();
    }
}

/// The same at an address, for guests without ports.
impl<F: Fn() -> Result<()>> DeviceMmio for Port<F> {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {
        self.written();
    }
}

impl<F> fmt::Debug for Port<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("port of the VMM")
    }
}
