// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model device as a rig.

use std::sync::Arc;
use std::time::Duration;

use interrupt_core::forward::DeviceInterrupt;
use vfio_intx::ModelIntx;
use vfio_intx::irq_set::{IrqInfo, IrqSet, flags};

use super::Rig;

impl Rig for Arc<ModelIntx> {
    fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        self.clone()
    }

    fn set_irqs(&self, request: &IrqSet<'_>) -> std::io::Result<()> {
        ModelIntx::set_irqs(self, request)
    }

    fn irq_info(&self) -> IrqInfo {
        let info = self.info().unwrap();
        let bit = |set, flag| if set { flag } else { 0 };
        IrqInfo {
            flags: flags::INFO_EVENTFD
                | bit(info.maskable, flags::INFO_MASKABLE)
                | bit(info.automasked, flags::INFO_AUTOMASKED),
            count: 1,
        }
    }

    fn raise(&self, bits: u32) {
        ModelIntx::raise(self, bits);
    }

    fn acknowledge(&self, bits: u32) {
        ModelIntx::acknowledge(self, bits);
    }

    fn status(&self) -> u32 {
        ModelIntx::status(self)
    }

    fn set_disintx(&self, disable: bool) {
        ModelIntx::set_disintx(self, disable);
    }

    fn pump(&self) {
        self.poll_unmask();
    }

    fn quiet(&self) -> Duration {
        // What the model does it has done when the call returns.
        Duration::ZERO
    }
}

/// A device as vfio-pci shows one.
pub fn level() -> Arc<ModelIntx> {
    Arc::new(ModelIntx::new("model"))
}

/// A device as libvfio-user shows one.
pub fn pulse() -> Arc<ModelIntx> {
    Arc::new(ModelIntx::pulse("pulsing model"))
}
