// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI host of a machine: the bus, its devices, and their interrupts.

use std::collections::BTreeMap;
use std::sync::Arc;

use interrupt_core::{Gsi, Irqchip};
use kvm_ioctls::VmFd;
use kvm_irqfd::SPLIT_PINS;
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};
use vm_memory::GuestMemoryMmap;

use super::address_map::{DEVICES, IO_WINDOW, MEMORY_WINDOW, gsi};
use super::config_ports::{self, ConfigPorts};
use super::config_space::ConfigSpace;
use super::device::PciDevice;
use super::device::vfio::{Container, Vfio};
use super::device::vfio_user::VfioUser;
use super::function::{Function, Identity};
use super::host_bridge::HostBridge;
use super::line_eois::LineEois;
use super::msix::{Msix, WithMsix};
use super::windows::Windows;
use crate::composition::options::{DeviceKind, Forward, Source};
use crate::error::Result;
use crate::error::unusable::Unusable;
use crate::passthrough::forwarding::Forwarding;
use crate::passthrough::preflight;
use crate::vm::ending::Ending;
use crate::vm::irqchip::{Controllers, occupied};

/// The GSI of the first vector of MSI-X, after the pins of the IOAPIC.
const FIRST_VECTOR: Gsi = Gsi(SPLIT_PINS);

const MIB: u64 = 1 << 20;

/// The bytes of the bus's memory window.
const WINDOW: u64 = *MEMORY_WINDOW.end() - *MEMORY_WINDOW.start() + 1;

/// The devices that a guest gets.
#[derive(Clone, Debug)]
pub struct PciOptions {
    /// The devices, in the order of their numbers on the bus.
    pub devices: Vec<DeviceKind>,
    /// The forwarder of their interrupts.
    pub forward: Forward,
    /// Whether all devices have one line.
    pub share_irq: bool,
    /// Whether the guest may use MSI-X.
    pub msi: bool,
}

impl PciOptions {
    /// The number of each device on the bus.
    fn numbers(&self) -> impl Iterator<Item = u8> {
        // The pins of every fourth device have the same lines.
        (1..DEVICES as u8).step_by(if self.share_irq { 4 } else { 1 })
    }

    /// Checks the options and, without touching them, the devices.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn check(&self) -> std::result::Result<(), Unusable> {
        let most = self.numbers().count();
        if self.devices.len() > most {
            let count = self.devices.len();
            return Err(Unusable::TooMany { count, most });
        }
        for (index, device) in self.devices.iter().enumerate() {
            if self.devices[..index].contains(device) {
                return Err(Unusable::Twice(device.to_string()));
            }
            match device {
                DeviceKind::Vfio(address) => preflight::check(*address)?,
                DeviceKind::VfioUser(_) => {}
                DeviceKind::Embedded | DeviceKind::Model => return Err(Unusable::NotPci(device.to_string())),
            }
        }
        Ok(())
    }

    /// Whether a device of another process is among them, which needs the guest's memory in a file.
    pub fn shares_memory(&self) -> bool {
        self.devices
            .iter()
            .any(|device| matches!(device, DeviceKind::VfioUser(_)))
    }
}

/// A device on the bus, with its interrupt.
#[derive(Debug)]
pub struct Card {
    /// The device's label.
    pub name: String,
    /// Vendor and device ID.
    pub id: String,
    /// The device number on the guest's bus.
    pub number: u8,
    /// The forwarder between the device and its line.
    pub forwarding: Forwarding,
    /// The line's EOIs, which the devices on the line share.
    pub eois: Arc<LineEois>,
    /// The device's MSI-X, if the guest may use it.
    pub msix: Option<Arc<Msix>>,
}

/// The parts of the machine that the bus connects to.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The VM.
    pub vm: &'a Arc<VmFd>,
    /// The guest's memory.
    pub memory: &'a Arc<GuestMemoryMmap>,
    /// The interrupt controllers.
    pub controllers: &'a Controllers,
    /// The end of the machine.
    pub ending: &'a Arc<Ending>,
}

/// The bus and its devices.
// Field order is drop order: INTx is disabled before the devices are dropped.
#[derive(Debug)]
pub struct PciHost {
    /// The devices, in the order of their numbers.
    pub cards: Vec<Card>,
    ports: Arc<ConfigPorts>,
    windows: Arc<Windows>,
}

impl PciHost {
    /// Opens the devices and resets them, puts them on the bus, and connects their interrupts.
    ///
    /// # Errors
    /// [`Unusable`] for a device that cannot be given to the guest, and those of [`Forwarding::start`].
    pub fn new(options: &PciOptions, machine: Machine<'_>) -> Result<Self> {
        let (vm, kind) = (Arc::clone(machine.vm), source(machine.controllers.irqchip()));
        let set_memory = move |region| {
            // SAFETY: the windows give ranges that a device has mapped. The devices are dropped with this host, when no
            // vCPU runs any more.
            unsafe { vm.set_user_memory_region(region) }
        };
        let windows = Arc::new(Windows::new(Box::new(set_memory), Arc::clone(machine.ending)));
        let bridge: Arc<dyn ConfigSpace> = Arc::new(HostBridge);
        let (mut functions, mut cards) = (BTreeMap::from([(0, bridge)]), Vec::new());
        let (mut container, vfio) = (Container::default(), machine.controllers.kvm_vfio());
        let mut lines: BTreeMap<Gsi, Arc<LineEois>> = BTreeMap::new();
        let (mut vector, mut room) = (FIRST_VECTOR, WINDOW);
        for (number, wanted) in options.numbers().zip(&options.devices) {
            let device = open(wanted, &mut container, machine.memory)?;
            let unfit = |reason| Unusable::Unfit {
                device: wanted.to_string(),
                reason,
            };
            let identity = Identity::read(&*device, options.msi && device.has_messages()).map_err(unfit)?;
            if identity.pin == 0 {
                let reason =
                    "it has no INTx pin (Interrupt Pin is 0 in its configuration space); use a device that has one";
                return Err(unfit(reason.to_owned()).into());
            }
            room = without(room, identity.memory()).map_err(unfit)?;
            device.reset().map_err(|error| unfit(format!("reset: {error}")))?;
            let (name, id) = (device.label().to_owned(), identity.id.clone());
            let gsi = gsi(number, identity.pin);
            let source = machine.controllers.source(kind, gsi, name.clone())?;
            let line = machine.controllers.line(kind, source, vfio.clone());
            let forwarding = Forwarding::start(device.interrupt(), device.irq(), options.forward, line)?;
            let (intx, ending) = (forwarding.intx(), Arc::clone(machine.ending));
            let msix = match (identity.msix(), machine.controllers.kvm()) {
                (Some(capability), Some(interrupts)) => {
                    let (first, device, interrupts) = (vector, Arc::clone(&device), interrupts.clone());
                    vector.0 += u32::from(capability.vectors);
                    let (intx, ending) = (forwarding.intx(), Arc::clone(machine.ending));
                    Some(Arc::new(Msix::new(capability, device, intx, interrupts, first, ending)))
                }
                _ => None,
            };
            let device: Arc<dyn PciDevice> = match &msix {
                Some(msix) => Arc::new(WithMsix::new(device, Arc::clone(msix))),
                None => device,
            };
            let (windows, to_function) = (Arc::clone(&windows), msix.clone());
            let function =
                Function::new(number, device, identity, windows, intx, to_function, ending).map_err(unfit)?;
            functions.insert(number, Arc::new(function));
            let eois = match lines.get(&gsi) {
                Some(eois) => Arc::clone(eois),
                None => Arc::new(LineEois::new(&*machine.controllers.notifier(), gsi)?),
            };
            lines.insert(gsi, Arc::clone(&eois));
            cards.push(Card {
                name,
                id,
                number,
                forwarding,
                eois,
                msix,
            });
        }
        Ok(Self {
            cards,
            ports: Arc::new(ConfigPorts::new(functions)),
            windows,
        })
    }

    /// Gives the guest the configuration ports and the windows of the bus.
    ///
    /// # Errors
    /// [`Error::Guest`](crate::error::Error::Guest) when a device already has one of their addresses.
    pub fn attach(&self, devices: &mut IoManager) -> Result<()> {
        let (ports, io, memory) = (
            Arc::clone(&self.ports),
            Arc::clone(&self.windows),
            Arc::clone(&self.windows),
        );
        let range = PioRange::new(PioAddress(config_ports::PORT), config_ports::PORTS).map_err(occupied)?;
        devices.register_pio(range, ports).map_err(occupied)?;
        // The bounds are below 64 KiB.
        let (first, last) = (*IO_WINDOW.start() as u16, *IO_WINDOW.end() as u16);
        let range = PioRange::new(PioAddress(first), last - first + 1).map_err(occupied)?;
        devices.register_pio(range, io).map_err(occupied)?;
        let range = MmioRange::new(MmioAddress(*MEMORY_WINDOW.start()), WINDOW).map_err(occupied)?;
        devices.register_mmio(range, memory).map_err(occupied)
    }
}

/// The room that is left for BARs when those of a device, which decode `memory` bytes, have their place. A guest places
/// BARs by their sizes, the largest first, and so without holes: the window begins at a multiple of any size that fits.
fn without(room: u64, memory: u64) -> std::result::Result<u64, String> {
    room.checked_sub(memory).ok_or_else(|| {
        format!(
            "its BARs decode {} MiB of memory, of which the guest's bus has {} MiB left; use a device with smaller BARs, or \
             fewer devices",
            memory.div_ceil(MIB),
            room / MIB
        )
    })
}

/// The kind of source by which a device's interrupt drives its line: the one that the best path needs.
fn source(irqchip: Irqchip) -> Source {
    match irqchip {
        Irqchip::Kernel => Source::Resample,
        Irqchip::Split => Source::Irqfd,
        Irqchip::User => Source::Pin,
    }
}

/// Opens a device that has been checked, and gives it the guest's memory.
///
/// # Errors
/// [`Unusable`].
fn open(
    device: &DeviceKind,
    container: &mut Container,
    memory: &Arc<GuestMemoryMmap>,
) -> std::result::Result<Arc<dyn PciDevice>, Unusable> {
    match device {
        DeviceKind::Vfio(address) => Ok(Arc::new(Vfio::open(*address, container, memory)?)),
        DeviceKind::VfioUser(path) => Ok(Arc::new(VfioUser::connect(path, memory)?)),
        DeviceKind::Embedded | DeviceKind::Model => Err(Unusable::NotPci(device.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config_space::{INTERRUPT_PIN, SIZE};
    use crate::pci::view::View;

    #[test]
    fn a_bar_without_room_is_refused() {
        let room = without(WINDOW, 256 * MIB).unwrap();
        assert_eq!(without(room, 236 * MIB), Ok(0));
        for memory in [256 * MIB, 8 << 30, u64::MAX] {
            let refused = without(room, memory).unwrap_err();
            let (asked, left) = (format!(" {} MiB", memory.div_ceil(MIB)), " 236 MiB left; use");
            assert!(refused.contains(&asked) && refused.contains(left), "{refused}");
        }
    }

    #[test]
    fn devices_that_share_have_one_line_whatever_their_pins() {
        let options = PciOptions {
            devices: Vec::new(),
            forward: Forward::Auto,
            share_irq: true,
            msi: false,
        };
        // Functions of one device of the host have different pins.
        let lines = options.numbers().zip([1, 2, 3, 4]).map(|(number, pin)| {
            let mut space = [0; SIZE];
            space[usize::from(INTERRUPT_PIN)] = pin;
            gsi(number, View::new(&space, false).pin).0
        });
        assert_eq!(lines.collect::<Vec<_>>(), [21; 4]);
    }
}
