// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM that uses another version of vfio-ioctls than this project tests with, and hides its devices behind a trait of
//! its own, as cloud-hypervisor does. The VMM implements `DeviceInterrupt` for its devices' INTx, and uses neither the
//! feature `vfio` nor an event loop.
//!
//! The implementation for vfio-ioctls' device is only compiled. The same INTx code runs on a device without hardware.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::{Arc, Mutex};

use interrupt_core::forward::{Connection, DeviceInterrupt, GuestLine, InterruptInfo, Path};
use interrupt_core::{Error, Gsi, Level, Line, LoweredBy, Result, testing::RecordingPin};
use vfio_intx::irq_set::{INTX, IrqInfo};
use vfio_intx::{Intx, State};
use vmm_sys_util::eventfd::EventFd;

/// The VMM's own trait over its VFIO devices, unchanged.
trait Vfio: Send + Sync {
    fn irq_info(&self, index: u32) -> Option<(u32, u32)>;
    fn enable_irq(&self, index: u32, event: &EventFd) -> io::Result<()>;
    fn disable_irq(&self, index: u32) -> io::Result<()>;
    fn unmask_irq(&self, index: u32) -> io::Result<()>;
}

impl Vfio for vfio_ioctls::VfioDevice {
    fn irq_info(&self, index: u32) -> Option<(u32, u32)> {
        self.get_irq_info(index).map(|info| (info.flags, info.count))
    }
    fn enable_irq(&self, index: u32, event: &EventFd) -> io::Result<()> {
        self.enable_irq(index, vec![event]).map_err(io::Error::other)
    }
    fn disable_irq(&self, index: u32) -> io::Result<()> {
        self.disable_irq(index).map_err(io::Error::other)
    }
    fn unmask_irq(&self, index: u32) -> io::Result<()> {
        self.unmask_irq(index).map_err(io::Error::other)
    }
}

/// The code for vfio-intx: the INTx of such a device.
struct OwnIntx<V: ?Sized>(Arc<V>);

impl<V: Vfio + ?Sized> OwnIntx<V> {
    fn done(&self, operation: &'static str, outcome: io::Result<()>) -> Result<()> {
        outcome.map_err(|source| Error::Device {
            operation,
            device: self.label().to_owned(),
            source,
        })
    }
}

impl<V: Vfio + ?Sized> DeviceInterrupt for OwnIntx<V> {
    fn label(&self) -> &str {
        "passthrough"
    }

    fn info(&self) -> Result<InterruptInfo> {
        let (flags, count) = self.0.irq_info(INTX).unwrap_or((0, 0));
        Ok(InterruptInfo {
            // This version of vfio-ioctls can neither mask nor remove an unmask eventfd. The relay needs neither.
            maskable: false,
            unmask_fd: false,
            ..IrqInfo { flags, count }.interrupt(self.label())?
        })
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let outcome = match fd {
            None => self.0.disable_irq(INTX),
            Some(fd) => fd.try_clone_to_owned().and_then(|fd| {
                // SAFETY: `into_raw_fd` gives up ownership of an open descriptor.
                let event = unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) };
                self.0.enable_irq(INTX, &event)
            }),
        };
        self.done("set the trigger", outcome)
    }

    fn set_unmask(&self, _fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.done("set the unmask eventfd", Err(io::ErrorKind::Unsupported.into()))
    }

    fn mask(&self) -> Result<()> {
        self.done("mask", Err(io::ErrorKind::Unsupported.into()))
    }

    fn unmask(&self) -> Result<()> {
        self.done("unmask", self.0.unmask_irq(INTX))
    }
}

impl<V: ?Sized> std::fmt::Debug for OwnIntx<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("INTx of the VMM's own device")
    }
}

/// Shows that the code above compiles for vfio-ioctls' device.
#[allow(dead_code, reason = "a VMM with hardware calls it")]
fn intx_of(device: Arc<vfio_ioctls::VfioDevice>) -> Arc<dyn DeviceInterrupt> {
    Arc::new(OwnIntx(device))
}

/// A device without hardware that masks itself, as vfio-pci does.
#[derive(Default)]
struct SoftDevice(Mutex<Soft>);

#[derive(Default)]
struct Soft {
    trigger: Option<EventFd>,
    asserts: bool,
    masked: bool,
    signals: u32,
}

impl Soft {
    fn evaluate(&mut self) -> io::Result<()> {
        match &self.trigger {
            Some(trigger) if self.asserts && !self.masked => {
                (self.masked, self.signals) = (true, self.signals + 1);
                trigger.write(1)
            }
            _ => Ok(()),
        }
    }
}

impl SoftDevice {
    fn set(&self, asserts: bool) -> io::Result<()> {
        let mut soft = self.0.lock().unwrap();
        soft.asserts = asserts;
        soft.evaluate()
    }
}

impl Vfio for SoftDevice {
    fn irq_info(&self, index: u32) -> Option<(u32, u32)> {
        const EVENTFD_MASKABLE_AUTOMASKED: u32 = 7;
        (index == INTX).then_some((EVENTFD_MASKABLE_AUTOMASKED, 1))
    }
    fn enable_irq(&self, _index: u32, event: &EventFd) -> io::Result<()> {
        let mut soft = self.0.lock().unwrap();
        soft.trigger = Some(event.try_clone()?);
        soft.evaluate()
    }
    fn disable_irq(&self, _index: u32) -> io::Result<()> {
        *self.0.lock().unwrap() = Soft::default();
        Ok(())
    }
    fn unmask_irq(&self, _index: u32) -> io::Result<()> {
        let mut soft = self.0.lock().unwrap();
        if soft.trigger.is_none() {
            return Err(io::Error::from_raw_os_error(22)); // EINVAL, as VFIO has it
        }
        soft.masked = false;
        soft.evaluate()
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let device = Arc::new(SoftDevice::default());
    let (intx, mut relay) = Intx::new(Arc::new(OwnIntx(device.clone())))?;
    let line = Line::new(Gsi(11), RecordingPin::default());
    let source = Arc::new(line.source("passthrough", LoweredBy::Eoi));
    let intx = Arc::new(intx);
    let connection = Connection::new(intx.clone());
    let guest = GuestLine::relay(source, line.clone(), "the VMM has its own IOAPIC");
    connection.set_consumer(Some(Arc::new(guest)))?;
    assert_eq!(intx.enable()?, State::Carried(Path::Relay));
    relay.wait(None)?;

    for round in 1..=3 {
        device.set(true)?;
        relay.wait(None)?;
        assert_eq!(line.level(), Level::High, "round {round}");
        assert!(device.0.lock().unwrap().masked, "it masks itself when it signals");
        device.set(false)?; // the guest's handler acknowledges
        assert!(device.0.lock().unwrap().masked, "and an acknowledge is no EOI");
        assert_eq!(line.eoi()?, Level::Low);
        relay.wait(None)?;
        let soft = device.0.lock().unwrap();
        assert!(!soft.masked, "the EOI has unmasked it");
        assert_eq!(soft.signals, round);
    }
    println!("3 interrupts of a device behind the VMM's own trait: {}", intx.status());
    drop((connection, intx));
    assert!(device.0.lock().unwrap().trigger.is_none(), "dropping it disables INTx");
    Ok(())
}
