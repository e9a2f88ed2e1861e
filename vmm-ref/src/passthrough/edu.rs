// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device behind vfio-pci or a vfio-user server, and its interrupt pin, which this process can assert.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use interrupt_core::forward::DeviceInterrupt;
use interrupt_core::forward::DeviceIrq;
use interrupt_core::{Delivery, Gsi, LevelSource, SourceKey};
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vfio_intx::VfioIntx;
use vfio_intx::irq_set::INTX;

use crate::composition::pci_address::PciAddress;
use crate::composition::socket_path::SocketPath;
use crate::error::unusable::Unusable;
use crate::passthrough::bar::Bar;
use crate::passthrough::edu_registers::{ID, ID_EDU};
use crate::passthrough::open::{connect, container, open};
use crate::passthrough::preflight::{check, check_edu};

/// The command register (PCI Local Bus Specification 3.0, 6.2.2) and its bits.
const COMMAND: u64 = 0x04;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// Vendor and device ID (QEMU, docs/specs/edu.rst).
const EDU: (u16, u16) = (0x1234, 0x11e8);

/// An edu that only this process uses. The device asserts nothing when it is opened.
#[derive(Debug)]
pub struct Edu {
    label: String,
    interrupt: Arc<dyn DeviceInterrupt>,
    irq: Option<DeviceIrq>,
    bar: Arc<Bar>,
}

impl Edu {
    /// Runs the [preflight](crate::passthrough::preflight) checks, opens the device, enables its memory space and maps
    /// its BAR.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn open(address: PciAddress) -> Result<Self, Unusable> {
        check(address)?;
        check_edu(address)?;
        let refused = |step| move |reason: String| Unusable::Refused { address, step, reason };
        let device = open(address, container(address)?)?;

        let mut command = [0; 2];
        device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut command, COMMAND);
        let command = (u16::from_le_bytes(command) | MEMORY_SPACE | BUS_MASTER) & !INTERRUPT_DISABLE;
        device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &command.to_le_bytes(), COMMAND);
        // Read the command register back: vfio-ioctls does not report a failed write, and an access to a BAR whose
        // memory space is off is a bus error.
        let mut now = [0; 2];
        device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut now, COMMAND);
        if u16::from_le_bytes(now) & MEMORY_SPACE == 0 {
            return Err(refused("command register")(
                "memory space cannot be turned on".to_owned(),
            ));
        }

        let bar = Bar::map(&device).map_err(refused("BAR 0"))?;
        let irq = DeviceIrq {
            device: device.as_raw_fd(),
            index: INTX,
            sub: 0,
        };
        let interrupt = VfioIntx::new(address.to_string(), device);
        Self::new(Arc::new(interrupt), Some(irq), bar).map_err(refused("BAR 0"))
    }

    /// Connects to the vfio-user server that listens at `path`, and turns its device's memory space on.
    ///
    /// # Errors
    /// [`Unusable::NoServer`], [`Unusable::Server`].
    pub fn connect(path: &SocketPath) -> Result<Self, Unusable> {
        let server = |step, reason: String| Unusable::Server {
            path: path.path().to_owned(),
            step,
            reason,
        };
        let refused = |step| move |error: io::Error| server(step, error.to_string());
        let device = connect(path)?;
        let mut ids = [0; 4];
        device
            .region_read(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut ids)
            .map_err(refused("vendor and device ID"))?;
        let [vendor, id] = [[ids[0], ids[1]], [ids[2], ids[3]]].map(u16::from_le_bytes);
        if (vendor, id) != EDU {
            let other = format!("{vendor:04x}:{id:04x}, and the embedded guest drives QEMU's edu (1234:11e8) only");
            return Err(server("its device is", other));
        }
        let command = (MEMORY_SPACE | BUS_MASTER).to_le_bytes();
        device
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &command)
            .map_err(refused("command register"))?;
        let bar = Bar::remote(Arc::clone(&device));
        Self::new(device, None, bar).map_err(|reason| server("BAR 0", reason))
    }

    fn new(interrupt: Arc<dyn DeviceInterrupt>, irq: Option<DeviceIrq>, bar: Bar) -> Result<Self, String> {
        let id = bar.load(ID).map_err(|error| error.to_string())?;
        if id & 0xff != ID_EDU {
            return Err("it does not answer as an edu does".to_owned());
        }
        bar.acknowledge().map_err(|error| error.to_string())?;
        Ok(Self {
            label: interrupt.label().to_owned(),
            interrupt,
            irq,
            bar: Arc::new(bar),
        })
    }

    /// A label for messages: the device's address or the server's path.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Arc<dyn DeviceInterrupt> {
        &self.interrupt
    }

    /// The number of the host's interrupt, if the device is a PCI device of the host.
    pub fn irq(&self) -> Option<DeviceIrq> {
        self.irq
    }

    /// The device's registers.
    pub fn bar(&self) -> &Arc<Bar> {
        &self.bar
    }
}

/// The device's own interrupt pin, which the device asserts on command. The forwarder carries the interrupt on.
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
            label: edu.label().to_owned(),
            bar: Arc::clone(edu.bar()),
        }
    }
}

impl EduPin {
    fn done(&self, operation: &'static str, outcome: io::Result<()>) -> interrupt_core::Result<()> {
        outcome.map_err(|source| interrupt_core::Error::Device {
            operation,
            device: self.label.clone(),
            source,
        })
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
        self.done("raise", self.bar.raise())?;
        Ok(Delivery::Unknown)
    }

    /// The guest's handler has acknowledged the device, which lowers the pin.
    fn deassert(&self) -> interrupt_core::Result<()> {
        Ok(())
    }

    fn force_deassert(&self) -> interrupt_core::Result<()> {
        self.done("acknowledge", self.bar.acknowledge())
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
