// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine's devices, and the window, the line and the doorbell of each.

use std::fs::File;
use std::sync::Arc;

use interrupt_core::{Gsi, LevelInterrupt};
use ioevent::{IoeventBus, Length, Match, Path, Registration};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::composition::options::Source;
use crate::error::{Error, Result};
use crate::linux::boot::acpi::VirtioDevice;
use crate::linux::boot::memory_map::{
    COM1, EXIT_STATUS_PORT, FIRST_VIRTIO_GSI, I8042, SERIAL_GSI, SLEEP_CONTROL, VIRTIO_GSIS, VIRTIO_WINDOW,
    VIRTIO_WINDOWS,
};
use crate::linux::devices::console::Console;
use crate::linux::devices::power::Power;
use crate::linux::virtio::backend::Backend;
use crate::linux::virtio::mmio::{Mmio, QUEUE_NOTIFY, WINDOW};
use crate::vm::ending::Ending;
use crate::vm::irqchip::{Controllers, occupied};

/// A virtio device on its window and its line.
#[derive(Debug)]
pub struct OnLine {
    /// A description for people.
    pub name: String,
    /// The device's registers.
    pub mmio: Arc<Mmio>,
    /// The device's doorbell.
    pub doorbell: Registration,
}

/// All devices.
#[derive(Debug)]
pub struct Devices {
    /// The serial port.
    pub console: Arc<Console>,
    /// The registers by which the guest ends the run.
    pub power: Arc<Power>,
    /// The virtio devices in the order of their windows.
    pub virtio: Vec<OnLine>,
}

/// The parts of the machine that devices connect to.
#[derive(Debug)]
pub struct Wiring<'a> {
    /// The interrupt controllers.
    pub controllers: &'a Controllers,
    /// The kind of source by which a device drives its line.
    pub source: Source,
    /// Whether all virtio devices share one line.
    pub share_irq: bool,
    /// The guest's memory.
    pub memory: &'a Arc<GuestMemoryMmap>,
    /// The doorbells.
    pub doorbells: &'a IoeventBus,
}

/// The window and the line of each of `count` virtio devices. With more devices than lines, devices share.
pub fn virtio_places(count: usize, share_irq: bool) -> Vec<VirtioDevice> {
    let lines = if share_irq { 1 } else { VIRTIO_GSIS };
    let place = |number: usize| VirtioDevice {
        window: VIRTIO_WINDOWS + number as u64 * VIRTIO_WINDOW,
        size: WINDOW,
        gsi: Gsi(FIRST_VIRTIO_GSI.0 + (number % lines) as u32),
        // Another device has the same remainder.
        shared: share_irq || number + lines < count || number >= lines,
    };
    (0..count).map(place).collect()
}

impl Devices {
    /// Makes the devices, each with its interrupt.
    ///
    /// # Errors
    /// The errors of the controllers, of the doorbells' bus, and of making eventfds.
    pub fn new(
        wiring: &Wiring<'_>,
        backends: Vec<(String, Box<dyn Backend>)>,
        out: File,
        ending: &Arc<Ending>,
    ) -> Result<Self> {
        let notifier = wiring.controllers.notifier();
        let interrupt = |gsi: Gsi, label: String| {
            let source = wiring.controllers.source(wiring.source, gsi, label)?;
            let scope = match wiring.source {
                // A KVM_IRQ_LINE source has no EOI of its own.
                Source::Line => gsi.into(),
                Source::Resample | Source::Pin | Source::Irqfd => source.key().into(),
            };
            Ok::<_, Error>(LevelInterrupt::with_scope(source, &*notifier, scope)?)
        };
        let console = Console::new(interrupt(SERIAL_GSI, "ttyS0".to_owned())?, out, Arc::clone(ending))?;
        let mut virtio = Vec::new();
        for (place, (name, backend)) in virtio_places(backends.len(), wiring.share_irq).iter().zip(backends) {
            let kick = Arc::new(EventFd::new(EFD_CLOEXEC).map_err(|source| Error::System {
                step: "eventfd",
                source,
            })?);
            // Match any width and any value, because the device has one queue.
            let at = Match::mmio(place.window + QUEUE_NOTIFY, Length::Any);
            let doorbell = wiring.doorbells.register(at, Arc::clone(&kick))?;
            let mmio = Mmio::new(
                Arc::clone(wiring.memory),
                interrupt(place.gsi, name.clone())?,
                kick,
                backend,
            );
            virtio.push(OnLine { name, mmio, doorbell });
        }
        Ok(Self {
            console,
            power: Power::new(Arc::clone(ending)),
            virtio,
        })
    }

    /// The devices by their addresses.
    ///
    /// # Errors
    /// [`Error::Guest`] when the ranges of two devices overlap.
    pub fn io_manager(&self) -> Result<IoManager> {
        let mut manager = IoManager::new();
        for (base, size) in [(I8042, 5), (SLEEP_CONTROL, 2), (EXIT_STATUS_PORT, 1)] {
            let range = PioRange::new(PioAddress(base), size).map_err(occupied)?;
            let power: Arc<Power> = Arc::clone(&self.power);
            manager.register_pio(range, power).map_err(occupied)?;
        }
        let console: Arc<Console> = Arc::clone(&self.console);
        let range = PioRange::new(PioAddress(COM1), 8).map_err(occupied)?;
        manager.register_pio(range, console).map_err(occupied)?;
        for (number, device) in self.virtio.iter().enumerate() {
            let base = MmioAddress(VIRTIO_WINDOWS + number as u64 * VIRTIO_WINDOW);
            let mmio: Arc<Mmio> = Arc::clone(&device.mmio);
            let range = MmioRange::new(base, WINDOW).map_err(occupied)?;
            manager.register_mmio(range, mmio).map_err(occupied)?;
        }
        Ok(manager)
    }
}

impl OnLine {
    /// Why stores to the device's doorbell exit although KVM was asked to take them.
    pub fn trapped(&self) -> Option<String> {
        match self.doorbell.path() {
            Path::Kernel => None,
            Path::Trapped(refusal) => Some(refusal.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_virtio_device_shares_the_line_of_the_first() {
        let lines = |count, share_irq| -> Vec<_> {
            let places = virtio_places(count, share_irq);
            places.iter().map(|place| (place.gsi.0, place.shared)).collect()
        };
        assert_eq!(lines(2, false), [(16, false), (17, false)]);
        assert_eq!(
            lines(5, false),
            [(16, true), (17, false), (18, false), (19, false), (16, true)]
        );
        assert_eq!(lines(2, true), [(16, true), (16, true)]);
    }
}
