// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GSI routing table as data: what is legal in it, and what KVM makes of it.

use std::collections::BTreeMap;
use std::fmt;

use interrupt_core::Gsi;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_irq_routing_entry,
};
#[cfg(target_arch = "x86_64")]
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};

use crate::{Error, Irqchip, Result};

/// A controller in the kernel that has pins.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chip {
    /// The 8259 at ports 0x20 and 0x21: pins 0 to 7.
    PicMaster,
    /// The 8259 at ports 0xA0 and 0xA1: pins 0 to 7.
    PicSlave,
    /// The IOAPIC: pins 0 to 23.
    Ioapic,
}

#[cfg(target_arch = "x86_64")]
impl Chip {
    fn pins(self) -> u32 {
        match self {
            Self::PicMaster | Self::PicSlave => 8,
            Self::Ioapic => 24,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::PicMaster => KVM_IRQCHIP_PIC_MASTER,
            Self::PicSlave => KVM_IRQCHIP_PIC_SLAVE,
            Self::Ioapic => KVM_IRQCHIP_IOAPIC,
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl fmt::Display for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PicMaster => "first 8259",
            Self::PicSlave => "second 8259",
            Self::Ioapic => "IOAPIC",
        })
    }
}

/// A controller in the kernel that has pins.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chip {
    /// The GIC's distributor: pin n is SPI n, whose interrupt ID is 32+n. Pins 0 to 987.
    Gic,
}

#[cfg(target_arch = "aarch64")]
impl Chip {
    /// KVM_IRQCHIP_NUM_PINS: interrupt IDs end at 1020, and the first 32 are no SPIs.
    fn pins(self) -> u32 {
        1020 - 32
    }

    /// KVM has one irqchip.
    fn number(self) -> u32 {
        0
    }
}

#[cfg(target_arch = "aarch64")]
impl fmt::Display for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GIC")
    }
}

/// How many SPIs a vGIC has whose number of interrupts nobody has set (KVM_DEV_ARM_VGIC_GRP_NR_IRQS): 256 interrupts, of which the
/// first 32 are no SPIs.
#[cfg(target_arch = "aarch64")]
pub const GIC_SPIS: u32 = 256 - 32;

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
        /// The message's data. Bit 15 set makes it level-triggered, which on a split irqchip is what makes KVM report the EOI.
        data: u32,
        /// The device id that the message carries, where the controller wants one (GICv3 ITS).
        device: Option<u32>,
    },
}

/// The largest number of entries, and one more than the largest GSI, that KVM takes (KVM_MAX_IRQ_ROUTES).
pub const MAX_ROUTES: usize = 4096;

/// A whole routing table. It is legal at all times: an illegal change is refused and changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    // Ordered by GSI, because KVM tells the EOI of a pin to the GSI that was listed last for it.
    table: BTreeMap<Gsi, Vec<Route>>,
}

impl Routes {
    /// The table that KVM sets up together with the irqchip: GSIs 0 to 15 lead to the 8259s and to the IOAPIC, 16 to 23 to the
    /// IOAPIC alone. A split irqchip begins with an empty table.
    #[cfg(target_arch = "x86_64")]
    pub fn initial(irqchip: Irqchip) -> Self {
        let mut table = BTreeMap::new();
        if irqchip == Irqchip::Full {
            for gsi in 0..Chip::Ioapic.pins() {
                let mut routes = Vec::new();
                match gsi {
                    0..8 => routes.push(Route::Pin {
                        chip: Chip::PicMaster,
                        pin: gsi,
                    }),
                    8..16 => routes.push(Route::Pin {
                        chip: Chip::PicSlave,
                        pin: gsi - 8,
                    }),
                    _ => {}
                }
                routes.push(Route::Pin {
                    chip: Chip::Ioapic,
                    pin: gsi,
                });
                table.insert(Gsi(gsi), routes);
            }
        }
        Self { table }
    }

    /// The table that KVM sets up when the vGIC is initialised: GSI n leads to SPI n, interrupt ID 32+n.
    #[cfg(target_arch = "aarch64")]
    pub fn initial(irqchip: Irqchip) -> Self {
        Self::of_gic(if irqchip == Irqchip::Full { GIC_SPIS } else { 0 })
    }

    /// The same for a vGIC with another number of SPIs.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn of_gic(spis: u32) -> Self {
        let route = |pin| (Gsi(pin), vec![Route::Pin { chip: Chip::Gic, pin }]);
        Self {
            table: (0..spis.min(Chip::Gic.pins())).map(route).collect(),
        }
    }

    /// Where `gsi` leads; empty when nowhere.
    pub fn get(&self, gsi: Gsi) -> &[Route] {
        self.table.get(&gsi).map_or(&[], Vec::as_slice)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.table.values().map(Vec::len).sum()
    }

    /// Whether no GSI leads anywhere.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// All GSIs that lead somewhere, in order, with their routes.
    pub fn iter(&self) -> impl Iterator<Item = (Gsi, &[Route])> {
        self.table.iter().map(|(&gsi, routes)| (gsi, routes.as_slice()))
    }

    /// Replaces the routes of `gsi`; none takes the GSI out of the table.
    pub(crate) fn set(&mut self, irqchip: Irqchip, gsi: Gsi, routes: &[Route]) -> Result<()> {
        let refuse = |reason| Err(Error::Route { gsi, reason });
        if gsi.0 as usize >= MAX_ROUTES {
            return refuse("KVM takes GSIs below 4096");
        }
        for (n, route) in routes.iter().enumerate() {
            match route {
                Route::Pin { .. } if irqchip != Irqchip::Full => {
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
                Route::Msi { .. } => {}
            }
        }
        let entries = self.len() - self.get(gsi).len() + routes.len();
        if entries > MAX_ROUTES {
            return Err(Error::TableFull { gsi, entries });
        }
        if routes.is_empty() {
            self.table.remove(&gsi);
        } else {
            self.table.insert(gsi, routes.to_vec());
        }
        Ok(())
    }

    /// Whether an EOI of `gsi` is reported to a resample irqfd on it.
    pub(crate) fn check_resample(&self, operation: &'static str, gsi: Gsi) -> Result<()> {
        let routes = self.get(gsi);
        if routes.is_empty() {
            return Err(Error::UnknownGsi { operation, gsi });
        }
        for route in routes {
            let Route::Pin { chip, pin } = *route else {
                return Err(Error::MsiRoute { operation, gsi });
            };
            let last = self.table.iter().rev().find(|(_, routes)| routes.contains(route));
            match last {
                Some((&by, _)) if by != gsi => return Err(Error::ShadowedPin { gsi, chip, pin, by }),
                _ => {}
            }
        }
        Ok(())
    }

    /// The table as KVM_SET_GSI_ROUTING takes it.
    pub(crate) fn to_kvm(&self) -> Result<KvmIrqRouting> {
        let entries: Vec<kvm_irq_routing_entry> = self
            .iter()
            .flat_map(|(gsi, routes)| routes.iter().map(move |route| entry(gsi, route)))
            .collect();
        KvmIrqRouting::from_entries(&entries).map_err(|_| Error::TableFull {
            gsi: Gsi(0),
            entries: entries.len(),
        })
    }
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
        Routes::initial(Irqchip::Full)
    }

    #[test]
    fn the_initial_table_is_kvms() {
        let routes = full();
        let counts: Vec<_> = (0..24).map(|gsi| routes.get(Gsi(gsi)).len()).collect();
        assert_eq!(counts[..16], [2; 16]);
        assert_eq!(counts[16..], [1; 8]);
        assert_eq!(
            routes.get(Gsi(9))[0],
            Route::Pin {
                chip: Chip::PicSlave,
                pin: 1
            }
        );
        assert!(Routes::initial(Irqchip::Split).is_empty());
    }

    #[test]
    fn row_71_what_kvm_refuses_is_refused_here() {
        let mut routes = full();
        let before = routes.clone();
        for (irqchip, gsi, wanted) in [
            (Irqchip::Full, 4096, vec![MSI]),
            (Irqchip::Full, 30, vec![ioapic(3), ioapic(4)]),
            (Irqchip::Full, 30, vec![ioapic(3), MSI]),
            (Irqchip::Full, 30, vec![MSI, MSI]),
            (Irqchip::Full, 30, vec![ioapic(24)]),
            (
                Irqchip::Full,
                30,
                vec![Route::Pin {
                    chip: Chip::PicSlave,
                    pin: 8,
                }],
            ),
            (Irqchip::Split, 30, vec![ioapic(3)]),
        ] {
            let error = routes.set(irqchip, Gsi(gsi), &wanted).unwrap_err();
            assert_eq!(error.errno(), Some(22), "{error}");
        }
        assert_eq!(routes, before);
    }

    #[test]
    fn the_table_holds_4096_entries_and_no_more() {
        let mut routes = Routes::default();
        for gsi in 0..4096 {
            routes.set(Irqchip::Full, Gsi(gsi), &[MSI]).unwrap();
        }
        assert_eq!(routes.to_kvm().unwrap().as_slice().len(), 4096);
        let both = [
            Route::Pin {
                chip: Chip::PicMaster,
                pin: 1,
            },
            ioapic(1),
        ];
        assert_eq!(routes.set(Irqchip::Full, Gsi(1), &both).unwrap_err().errno(), Some(28));
        routes.set(Irqchip::Full, Gsi(1), &[MSI]).unwrap();
    }

    #[test]
    fn row_69_only_the_last_gsi_of_a_pin_reports_an_eoi() {
        let mut routes = full();
        routes.set(Irqchip::Full, Gsi(40), &[ioapic(20)]).unwrap();
        let error = routes.check_resample("test", Gsi(20)).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ShadowedPin {
                    by: Gsi(40),
                    pin: 20,
                    ..
                }
            ),
            "{error}"
        );
        routes.check_resample("test", Gsi(40)).unwrap();
    }

    #[test]
    fn row_70_an_msi_has_no_eoi_and_row_13_no_route_no_line() {
        let mut routes = full();
        routes.set(Irqchip::Full, Gsi(40), &[MSI]).unwrap();
        assert!(matches!(
            routes.check_resample("test", Gsi(40)),
            Err(Error::MsiRoute { .. })
        ));
        for gsi in [24, 5000, u32::MAX] {
            assert!(matches!(
                routes.check_resample("test", Gsi(gsi)),
                Err(Error::UnknownGsi { .. })
            ));
        }
    }
}
