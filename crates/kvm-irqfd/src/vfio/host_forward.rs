// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's line whose interrupt the host may be able to forward.

use std::sync::{Arc, Mutex, PoisonError};

use interrupt_core::forward::GuestLine;
use interrupt_core::forward::{Consumer, ConsumerInfo, DeviceIrq, ForwardIrq, Path, Producer};
use rustix::io::Errno;

use crate::error::Error;
use crate::vfio::KvmVfio;

/// A line of a guest that the host may be able to forward to. As any [`GuestLine`] in everything else.
#[derive(Debug)]
pub struct HostForwarded {
    line: GuestLine,
    vfio: Arc<KvmVfio>,
    possible: Result<(), Arc<str>>,
    forwarded: Mutex<Option<DeviceIrq>>,
}

impl HostForwarded {
    /// The kernel is asked once, now, whether it forwards.
    pub fn new(line: GuestLine, vfio: Arc<KvmVfio>) -> Self {
        let possible = vfio.can_forward().map_err(|error| match error.errno() {
            Some(errno) if errno == Errno::NXIO.raw_os_error() => {
                "this kernel has no KVM_DEV_VFIO_DEVICE_FORWARD_IRQ (ENXIO)".into()
            }
            _ => error.to_string().into(),
        });
        Self {
            line,
            vfio,
            possible,
            forwarded: Mutex::new(None),
        }
    }

    fn forwarded(&self) -> std::sync::MutexGuard<'_, Option<DeviceIrq>> {
        // What is under it is one value, which is whole.
        self.forwarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Consumer for HostForwarded {
    fn line(&self) -> &GuestLine {
        &self.line
    }

    fn info(&self) -> ConsumerInfo {
        ConsumerInfo {
            host_forward: self.possible.clone(),
            ..self.line.info()
        }
    }

    fn stop(&self) -> interrupt_core::Result<()> {
        self.line.stop()
    }

    fn connect(&self, path: Path, producer: &dyn Producer) -> interrupt_core::Result<()> {
        const OPERATION: &str = "forward";
        if path != Path::HostForward {
            return self.line.connect(path, producer);
        }
        let gsi = self.line.gsi();
        let Some(irq) = producer.info().irq else {
            let error = Error::vm(OPERATION, Errno::BADF);
            return Err(error.into_core(OPERATION, gsi));
        };
        let forwarded = self
            .vfio
            .forward(&ForwardIrq::new(irq.device, irq.index, irq.sub, &[gsi]));
        forwarded.map_err(|error| error.into_core(OPERATION, gsi))?;
        *self.forwarded() = Some(irq);
        Ok(())
    }

    fn disconnect(&self, path: Path) {
        if path != Path::HostForward {
            return self.line.disconnect(path);
        }
        if let Some(irq) = self.forwarded().take() {
            let gsi = [self.line.gsi()];
            let request = ForwardIrq::new(irq.device, irq.index, irq.sub, &gsi);
            // It works at any time; if it does not, the kernel ends it with the device's file.
            let _ = self.vfio.unforward(&request);
        }
    }

    fn start(&self) -> interrupt_core::Result<()> {
        self.line.start()
    }
}
