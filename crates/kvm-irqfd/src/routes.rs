// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GSI routing table as data: what is legal in it, and what KVM makes of it.

use std::collections::BTreeMap;
use std::ops::Range;

use interrupt_core::{Gsi, Irqchip};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_irq_routing_entry,
};

use crate::chip::Chip;
use crate::error::{Error, Reason, Result};

/// How many SPIs a vGIC has whose number of interrupts nobody has set (KVM_DEV_ARM_VGIC_GRP_NR_IRQS): 256 interrupts,
/// of which the first 32 are no SPIs.
#[cfg(target_arch = "aarch64")]
pub const GIC_SPIS: u32 = 256 - 32;

/// Why a message without a device id is refused on aarch64.
pub(crate) const NO_DEVICE_ID: Reason = Reason::Route("an ITS needs the device id of a message");

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// To a pin of a controller in the kernel.
    Pin {
        /// The controller.
        chip: Chip,
        /// Its pin, from 0.
        pin: u32,
    },
    /// To a message.
    Msi {
        /// The message's address, 0xFEEx_xxxx on x86.
        address: u64,
        /// The message's data. Bit 15 set makes it level-triggered, which on a split irqchip is what makes KVM report
        /// the EOI.
        data: u32,
        /// The device id that the message carries. An ITS (aarch64) finds the interrupt by it; a LAPIC needs none.
        device: Option<u32>,
    },
}

/// The largest number of entries, and one more than the largest GSI, that KVM takes (KVM_MAX_IRQ_ROUTES).
pub const MAX_ROUTES: usize = 4096;

/// A whole routing table, in the order in which KVM is given it: by GSI. KVM tells the EOI of a pin to the GSI that was
/// listed last for the pin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    entries: Vec<(Gsi, Route)>,
}

impl Routes {
    /// The table that KVM sets up together with the irqchip: GSIs 0 to 15 lead to the 8259s and to the IOAPIC, 16 to 23
    /// to the IOAPIC alone. A split irqchip begins with an empty table.
    #[cfg(target_arch = "x86_64")]
    pub fn initial(irqchip: Irqchip) -> Self {
        let mut entries = Vec::new();
        let gsis = if irqchip == Irqchip::Kernel {
            0..Chip::Ioapic.pins()
        } else {
            0..0
        };
        for pin in gsis {
            let pic = match pin {
                0..8 => Some((Chip::PicMaster, pin)),
                8..16 => Some((Chip::PicSlave, pin - 8)),
                _ => None,
            };
            for (chip, at) in pic.into_iter().chain([(Chip::Ioapic, pin)]) {
                entries.push((Gsi(pin), Route::Pin { chip, pin: at }));
            }
        }
        Self { entries }
    }

    /// The table that KVM sets up when the vGIC is initialised: GSI n leads to SPI n, interrupt ID 32+n.
    #[cfg(target_arch = "aarch64")]
    pub fn initial(irqchip: Irqchip) -> Self {
        Self::of_gic(if irqchip == Irqchip::Kernel { GIC_SPIS } else { 0 })
    }

    /// The same for a vGIC with another number of SPIs.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn of_gic(spis: u32) -> Self {
        let route = |pin| (Gsi(pin), Route::Pin { chip: Chip::Gic, pin });
        Self {
            entries: (0..spis.min(Chip::Gic.pins())).map(route).collect(),
        }
    }

    /// The table that a VMM has given KVM_SET_GSI_ROUTING.
    ///
    /// # Errors
    /// [`Reason::Route`]: an entry of a type that is none of a pin or a message (Hyper-V's and Xen's), or a pin of a
    /// controller that does not exist.
    pub fn from_kvm(entries: &[kvm_irq_routing_entry]) -> Result<Self> {
        let mut routes = entries.iter().map(route).collect::<Result<Vec<_>>>()?;
        // Stable: two entries of one GSI keep their order.
        routes.sort_by_key(|(gsi, _)| *gsi);
        Ok(Self { entries: routes })
    }

    /// Where `gsi` leads; empty when nowhere.
    pub fn get(&self, gsi: Gsi) -> Vec<Route> {
        self.of(gsi).map(|(_, route)| *route).collect()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no GSI leads anywhere.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, by GSI.
    pub fn iter(&self) -> impl Iterator<Item = (Gsi, Route)> {
        self.entries.iter().copied()
    }

    fn range(&self, gsi: Gsi) -> Range<usize> {
        let below = |bound: Gsi| self.entries.partition_point(|(other, _)| *other < bound);
        // A GSI in the table is below 4096.
        below(gsi)..below(Gsi(gsi.0.saturating_add(1)))
    }

    fn of(&self, gsi: Gsi) -> impl Iterator<Item = &(Gsi, Route)> {
        self.entries[self.range(gsi)].iter()
    }

    pub(crate) fn is_unrouted(&self, gsi: Gsi) -> bool {
        self.range(gsi).is_empty()
    }

    pub(crate) fn leads_to_msi(&self, gsi: Gsi) -> bool {
        self.of(gsi).any(|(_, route)| matches!(route, Route::Msi { .. }))
    }

    /// The pins that a GSI leads to.
    pub(crate) fn pins(&self, gsi: Gsi) -> impl Iterator<Item = (Chip, u32)> {
        self.of(gsi).filter_map(|(_, route)| match *route {
            Route::Pin { chip, pin } => Some((chip, pin)),
            Route::Msi { .. } => None,
        })
    }

    /// The GSIs that lead to a pin, the last listed first: KVM tells the pin's EOIs to that one.
    pub(crate) fn all_to(&self, chip: Chip, pin: u32) -> impl Iterator<Item = Gsi> {
        let there = move |(_, route): &&(Gsi, Route)| *route == Route::Pin { chip, pin };
        self.entries.iter().rev().filter(there).map(|(gsi, _)| *gsi)
    }

    /// Whether `routes` can be the routes of `gsi`, whatever else is in the table.
    pub(crate) fn check(irqchip: Irqchip, gsi: Gsi, routes: &[Route]) -> Result<()> {
        let refuse = |reason| Err(Error::new("KVM_SET_GSI_ROUTING", gsi, Reason::Route(reason)));
        if gsi.0 as usize >= MAX_ROUTES {
            return refuse("KVM takes GSIs below 4096");
        }
        for (n, route) in routes.iter().enumerate() {
            match route {
                Route::Pin { .. } if irqchip != Irqchip::Kernel => {
                    return refuse("this irqchip has no pins in the kernel");
                }
                Route::Pin { chip, pin } if *pin >= chip.pins() => return refuse("the controller has no such pin"),
                Route::Pin { chip, .. } => {
                    let same = |other: &Route| matches!(other, Route::Pin { chip: other, .. } if other == chip);
                    if routes[..n].iter().any(same) {
                        return refuse("two pins of one controller");
                    }
                }
                Route::Msi { .. } if routes.len() > 1 => return refuse("an MSI beside another route"),
                // KVM takes the route, and then drops every message.
                Route::Msi { device: None, .. } if cfg!(target_arch = "aarch64") => {
                    return Err(Error::new("KVM_SET_GSI_ROUTING", gsi, NO_DEVICE_ID));
                }
                Route::Msi { .. } => {}
            }
        }
        Ok(())
    }

    /// Replaces the routes of some GSIs; none takes the GSI out of the table. Returns those that were there before.
    ///
    /// Routes in the place of as many others are written there: a table of thousands is not copied for that.
    pub(crate) fn replace(&mut self, changes: Changes) -> Result<Changes> {
        let mut before = Changes::new();
        let (mut entries, mut last) = (self.len(), Gsi(0));
        for (&gsi, routes) in &changes {
            let old = self.get(gsi);
            entries = entries + routes.len() - old.len();
            last = gsi;
            before.insert(gsi, old);
        }
        if entries > MAX_ROUTES {
            return Err(Error::new("KVM_SET_GSI_ROUTING", last, Reason::TableFull { entries }));
        }
        for (gsi, routes) in changes {
            let range = self.range(gsi);
            self.entries.splice(range, routes.into_iter().map(|route| (gsi, route)));
        }
        Ok(before)
    }

    /// The table as KVM_SET_GSI_ROUTING takes it.
    pub(crate) fn to_kvm(&self) -> Result<KvmIrqRouting> {
        let entries = self.len();
        let full = |_| Error::of_vm("KVM_SET_GSI_ROUTING", Reason::TableFull { entries });
        let mut table = KvmIrqRouting::new(entries).map_err(full)?;
        for (kvm, (gsi, route)) in table.as_mut_slice().iter_mut().zip(&self.entries) {
            *kvm = entry(*gsi, route);
        }
        Ok(table)
    }
}

/// New routes, by GSI.
pub(crate) type Changes = BTreeMap<Gsi, Vec<Route>>;

fn route(entry: &kvm_irq_routing_entry) -> Result<(Gsi, Route)> {
    let gsi = Gsi(entry.gsi);
    let refuse = |reason| Err(Error::new("use routes", gsi, Reason::Route(reason)));
    let route = match entry.type_ {
        KVM_IRQ_ROUTING_IRQCHIP => {
            // SAFETY: every member of the union is integers, which any bits are; this is the one that the type names.
            let to = unsafe { entry.u.irqchip };
            let Some(chip) = Chip::ALL.into_iter().find(|chip| chip.number() == to.irqchip) else {
                return refuse("no such controller");
            };
            Route::Pin { chip, pin: to.pin }
        }
        KVM_IRQ_ROUTING_MSI => {
            // SAFETY: as above.
            let message = unsafe { entry.u.msi };
            // SAFETY: as above; the union has one member of meaning.
            let device = unsafe { message.__bindgen_anon_1.devid };
            Route::Msi {
                address: u64::from(message.address_hi) << 32 | u64::from(message.address_lo),
                data: message.data,
                device: (entry.flags & KVM_MSI_VALID_DEVID != 0).then_some(device),
            }
        }
        _ => return refuse("neither a pin nor a message"),
    };
    Ok((gsi, route))
}

fn entry(gsi: Gsi, route: &Route) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        ..Default::default()
    };
    match *route {
        Route::Pin { chip, pin } => {
            entry.type_ = KVM_IRQ_ROUTING_IRQCHIP;
            entry.u.irqchip.irqchip = chip.number();
            entry.u.irqchip.pin = pin;
        }
        Route::Msi { address, data, device } => {
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi.address_lo = address as u32;
            entry.u.msi.address_hi = (address >> 32) as u32;
            entry.u.msi.data = data;
            if let Some(device) = device {
                entry.flags = KVM_MSI_VALID_DEVID;
                entry.u.msi.__bindgen_anon_1.devid = device;
            }
        }
    }
    entry
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    const MSI: Route = Route::Msi {
        address: 0xFEE0_0000,
        data: 0x31,
        device: None,
    };

    fn ioapic(pin: u32) -> Route {
        Route::Pin {
            chip: Chip::Ioapic,
            pin,
        }
    }

    fn full() -> Routes {
        Routes::initial(Irqchip::Kernel)
    }

    fn set(routes: &mut Routes, gsi: u32, wanted: &[Route]) -> Result<Changes> {
        routes.replace(Changes::from([(Gsi(gsi), wanted.to_vec())]))
    }

    #[test]
    fn the_initial_table_is_kvms() {
        let routes = full();
        let counts: Vec<_> = (0..24).map(|gsi| routes.get(Gsi(gsi)).len()).collect();
        assert_eq!(counts[..16], [2; 16]);
        assert_eq!(counts[16..], [1; 8]);
        let slave = Route::Pin {
            chip: Chip::PicSlave,
            pin: 1,
        };
        assert_eq!(routes.get(Gsi(9)), [slave, ioapic(9)]);
        assert!(Routes::initial(Irqchip::Split).is_empty());
    }

    #[test]
    fn row_71_what_kvm_refuses_is_refused_here() {
        let slave = Route::Pin {
            chip: Chip::PicSlave,
            pin: 8,
        };
        for (irqchip, gsi, wanted) in [
            (Irqchip::Kernel, 4096, vec![MSI]),
            (Irqchip::Kernel, 30, vec![ioapic(3), ioapic(4)]),
            (Irqchip::Kernel, 30, vec![ioapic(3), MSI]),
            (Irqchip::Kernel, 30, vec![MSI, MSI]),
            (Irqchip::Kernel, 30, vec![ioapic(24)]),
            (Irqchip::Kernel, 30, vec![slave]),
            (Irqchip::Split, 30, vec![ioapic(3)]),
        ] {
            let error = Routes::check(irqchip, Gsi(gsi), &wanted).unwrap_err();
            assert_eq!(error.errno(), Some(22), "{error}");
        }
    }

    #[test]
    fn the_table_holds_4096_entries_and_no_more() {
        let mut routes = Routes::default();
        let all = (0..4096).map(|gsi| (Gsi(gsi), vec![MSI])).collect();
        routes.replace(all).unwrap();
        assert_eq!(routes.to_kvm().unwrap().as_slice().len(), 4096);
        let both = [
            Route::Pin {
                chip: Chip::PicMaster,
                pin: 1,
            },
            ioapic(1),
        ];
        let before = routes.clone();
        assert_eq!(set(&mut routes, 1, &both).unwrap_err().errno(), Some(28));
        assert_eq!(routes, before);
        set(&mut routes, 1, &[MSI]).unwrap();
    }

    #[test]
    fn a_change_can_be_taken_back() {
        let before = full();
        let mut routes = before.clone();
        let changes = Changes::from([(Gsi(3), vec![]), (Gsi(16), vec![MSI]), (Gsi(40), vec![ioapic(3)])]);
        let back = routes.replace(changes).unwrap();
        assert_eq!(
            (routes.get(Gsi(3)), routes.get(Gsi(16)), routes.get(Gsi(40))),
            (vec![], vec![MSI], vec![ioapic(3)])
        );
        assert!(routes.iter().map(|(gsi, _)| gsi).is_sorted());
        routes.replace(back).unwrap();
        assert_eq!(routes, before);
    }

    #[test]
    fn a_table_comes_back_from_kvms_entries() {
        let mut routes = full();
        let device = Route::Msi {
            address: 0x1_FEE0_1000,
            data: 0x4031,
            device: Some(7),
        };
        set(&mut routes, 40, &[device]).unwrap();
        set(&mut routes, 41, &[MSI]).unwrap();
        let mut entries = routes.to_kvm().unwrap().as_slice().to_vec();
        assert_eq!(Routes::from_kvm(&entries).unwrap(), routes);
        entries.rotate_left(4);
        assert_eq!(Routes::from_kvm(&entries).unwrap(), routes, "by GSI");
        entries[0].type_ = 4; // KVM_IRQ_ROUTING_HV_SINT
        Routes::from_kvm(&entries).unwrap_err();
    }

    #[test]
    fn row_69_the_last_gsi_of_a_pin_is_the_one_that_kvm_tells() {
        let mut routes = full();
        set(&mut routes, 40, &[ioapic(20)]).unwrap();
        assert_eq!(routes.all_to(Chip::Ioapic, 20).collect::<Vec<_>>(), [Gsi(40), Gsi(20)]);
        assert_eq!(routes.pins(Gsi(40)).collect::<Vec<_>>(), [(Chip::Ioapic, 20)]);
    }
}
