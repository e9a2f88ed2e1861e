// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's capabilities, each found by a trial. KVM's capability bits are not used: for example,
//! KVM_CAP_IRQFD_RESAMPLE is 1 on a split irqchip that refuses a resample irqfd.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
#[cfg(target_arch = "x86_64")]
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[cfg(target_arch = "x86_64")]
use interrupt_core::{Delivery, Gsi};
#[cfg(target_arch = "x86_64")]
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_bindings::{kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::{DeviceFd, IoEventAddress, Kvm, NoDatamatch, VmFd};
#[cfg(target_arch = "aarch64")]
use kvm_irqfd::{GIC_SPIS, GicV3};
#[cfg(target_arch = "x86_64")]
use kvm_irqfd::{KvmInterrupts, MAX_ROUTES, Route};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::trial::{GSI, Trial, event};
#[cfg(target_arch = "x86_64")]
use super::unmask;
use crate::composition::options::{Composition, Controller};
use crate::error::{Error, Result, at};
use crate::host::Host;
#[cfg(target_arch = "aarch64")]
use crate::roundtrip::guest::layout::{DISTRIBUTOR, PORTS, REDISTRIBUTORS};
use crate::roundtrip::negative_control::{EndedBy, ended_by};
use crate::vm::kvm::open_kvm;

/// The result of one trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Whether the host has the capability.
    pub available: bool,
    /// The answer of the system.
    pub detail: String,
}

/// The capabilities of a host.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The host.
    pub host: Host,
    /// The name and the result of each capability.
    #[serde(serialize_with = "by_name")]
    pub capabilities: Vec<(&'static str, Found)>,
}

fn by_name<S: Serializer>(capabilities: &[(&str, Found)], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(capabilities.len()))?;
    for (name, found) in capabilities {
        map.serialize_entry(name, found)?;
    }
    map.end()
}

/// A capability of KVM: its name and its trial.
type KvmTrial = (&'static str, fn(&Kvm) -> Trial);

impl Probe {
    /// Tries every capability on this host. A capability that cannot be tried, because its precondition is missing,
    /// counts as absent.
    pub fn this_host(kvm_device: &Path) -> Self {
        let mut capabilities = Vec::new();
        let mut add = |name, trial: Trial| {
            let (available, detail) = match trial {
                Ok(detail) => (true, detail),
                Err(error) => (false, error.to_string()),
            };
            capabilities.push((name, Found { available, detail }));
        };
        match open_kvm(kvm_device) {
            Err(error) => add("kvm", Err(error)),
            Ok(kvm) => {
                add("kvm", Ok(format!("{} opens", kvm_device.display())));
                for (name, trial) in KVM_TRIALS {
                    add(name, trial(&kvm));
                }
            }
        }
        add("vfio", vfio());
        Self {
            host: Host::this(),
            capabilities,
        }
    }
}

#[cfg(target_arch = "x86_64")]
const KVM_TRIALS: &[KvmTrial] = &[
    ("irqchip-kernel", |kvm| {
        full(kvm).map(|_| "8259 pair, IOAPIC and LAPIC".to_owned())
    }),
    ("irqchip-split", |kvm| {
        split(kvm).map(|_| "LAPIC in the kernel, 24 GSIs for an IOAPIC in userspace".to_owned())
    }),
    ("resample-irqfd-kernel", |kvm| resample_irqfd(&full(kvm)?)),
    ("resample-irqfd-split", |kvm| resample_irqfd(&split(kvm)?)),
    ("unmask-resample", unmask::trial),
    ("eoi-ioapic", |kvm| eoi(kvm, Controller::Ioapic)),
    ("eoi-pic", |kvm| eoi(kvm, Controller::Pic)),
    ("irq-line-status", irq_line_status),
    ("gsi-routing", gsi_routing),
    ("irqfd-exclusive", irqfd_exclusive),
    ("ioeventfd", |kvm| {
        ioeventfd(kvm, 0xabu8, "a 1-byte write of one value to a port")
    }),
    ("ioeventfd-any-length", |kvm| {
        ioeventfd(kvm, NoDatamatch, "a write of any length to a port")
    }),
    ("kvm-vfio", |kvm| {
        kvm_vfio(kvm).map(|_| "the KVM-VFIO device".to_owned())
    }),
    ("kvm-vfio-forward-irq", forward_irq),
];

#[cfg(target_arch = "aarch64")]
const KVM_TRIALS: &[KvmTrial] = &[
    ("irqchip-kernel", |kvm| full(kvm).map(|_| "GICv3".to_owned())),
    ("resample-irqfd-kernel", |kvm| resample_irqfd(&full(kvm)?)),
    ("eoi-gic", |kvm| eoi(kvm, Controller::Gic)),
    ("its", |kvm| {
        GicV3::its(&full(kvm)?, ITS)?;
        Ok("messages with a device id, by an ITS".to_owned())
    }),
    ("irqfd-exclusive", irqfd_exclusive),
    ("ioeventfd", |kvm| {
        ioeventfd(kvm, 0xabu8, "a 1-byte write of one value to an address")
    }),
    ("ioeventfd-any-length", |kvm| {
        ioeventfd(kvm, NoDatamatch, "a write of any length to an address")
    }),
    ("kvm-vfio", |kvm| {
        kvm_vfio(kvm).map(|_| "the KVM-VFIO device".to_owned())
    }),
    ("kvm-vfio-forward-irq", forward_irq),
];

/// The address of the ITS of a trial.
#[cfg(target_arch = "aarch64")]
const ITS: u64 = 0x808_0000;

fn create(kvm: &Kvm) -> Result<VmFd> {
    kvm.create_vm().map_err(at("KVM_CREATE_VM"))
}

#[cfg(target_arch = "x86_64")]
fn full(kvm: &Kvm) -> Result<VmFd> {
    let vm = create(kvm)?;
    vm.create_irq_chip().map_err(Error::NoFullIrqchip)?;
    Ok(vm)
}

/// A VM with a GIC and no vCPU.
#[cfg(target_arch = "aarch64")]
fn full(kvm: &Kvm) -> Result<VmFd> {
    let vm = create(kvm)?;
    let gic = GicV3 {
        spis: GIC_SPIS,
        distributor: DISTRIBUTOR,
        redistributors: REDISTRIBUTORS,
    };
    gic.create(&vm)?;
    Ok(vm)
}

#[cfg(target_arch = "x86_64")]
fn split(kvm: &Kvm) -> Result<VmFd> {
    let vm = create(kvm)?;
    let pins = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [24, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&pins).map_err(at("KVM_CAP_SPLIT_IRQCHIP"))?;
    Ok(vm)
}

fn resample_irqfd(vm: &VmFd) -> Trial {
    vm.register_irqfd_with_resample(&event()?, &event()?, GSI)
        .map_err(at("KVM_IRQFD(resample)"))?;
    Ok("an irqfd with a resamplefd".to_owned())
}

fn eoi(kvm: &Kvm, controller: Controller) -> Trial {
    match ended_by(Some(kvm), Composition::in_kernel(controller), &AtomicBool::new(false))? {
        EndedBy::Guest => Ok(EndedBy::Guest.to_string()),
        other => Err(Error::Absent(other.to_string())),
    }
}

#[cfg(target_arch = "x86_64")]
fn irq_line_status(kvm: &Kvm) -> Trial {
    // Use a pin that only the IOAPIC has: below 16 the 8259 would answer too.
    const IOAPIC_ONLY: Gsi = Gsi(20);
    let interrupts = KvmInterrupts::new(Arc::new(full(kvm)?))?;
    // The pin is masked after reset. A kernel with KVM_IRQ_LINE_STATUS reports that.
    match interrupts.irq_line_source(IOAPIC_ONLY, "probe")?.assert()? {
        Delivery::Pending => Ok("KVM_IRQ_LINE_STATUS says that a masked pin holds the level back".to_owned()),
        other => Err(Error::Absent(format!(
            "a level on a masked pin is answered with {other:?}"
        ))),
    }
}

#[cfg(target_arch = "x86_64")]
fn gsi_routing(kvm: &Kvm) -> Trial {
    let interrupts = KvmInterrupts::new(Arc::new(full(kvm)?))?;
    let mut routing = interrupts.routing();
    let room = MAX_ROUTES - interrupts.routes().len();
    for gsi in (24..).take(room) {
        let message = Route::Msi {
            address: 0xfee0_0000,
            data: 0x41,
            device: None,
        };
        routing.set(Gsi(gsi), &[message])?;
    }
    routing.commit()?;
    Ok(format!("{MAX_ROUTES} routes"))
}

fn irqfd_exclusive(kvm: &Kvm) -> Trial {
    let (first, second, trigger) = (full(kvm)?, full(kvm)?, event()?);
    first.register_irqfd(&trigger, GSI).map_err(at("KVM_IRQFD"))?;
    match second.register_irqfd(&trigger, GSI) {
        Ok(()) => Err(Error::Absent("one eventfd can be bound in two VMs".to_owned())),
        Err(error) => Ok(format!("one eventfd in two VMs is refused: {error}")),
    }
}

#[cfg(target_arch = "x86_64")]
const IO_ADDRESS: IoEventAddress = IoEventAddress::Pio(0x5a0);
#[cfg(target_arch = "aarch64")]
const IO_ADDRESS: IoEventAddress = IoEventAddress::Mmio(PORTS);

fn ioeventfd(kvm: &Kvm, datamatch: impl Into<u64>, detail: &str) -> Trial {
    create(kvm)?
        .register_ioevent(&event()?, &IO_ADDRESS, datamatch)
        .map_err(at("KVM_IOEVENTFD"))?;
    Ok(detail.to_owned())
}

fn kvm_vfio(kvm: &Kvm) -> Result<(VmFd, DeviceFd)> {
    let vm = create(kvm)?;
    // Create the device: with KVM_CREATE_DEVICE_TEST, kvm-ioctls would close fd 0.
    let device = vm
        .create_device(&mut kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            ..Default::default()
        })
        .map_err(at("KVM_CREATE_DEVICE(VFIO)"))?;
    Ok((vm, device))
}

fn forward_irq(kvm: &Kvm) -> Trial {
    // As proposed in 2015 and never merged.
    const KVM_DEV_VFIO_DEVICE: u32 = 2;
    const KVM_DEV_VFIO_DEVICE_FORWARD_IRQ: u64 = 1;
    let (_vm, device) = kvm_vfio(kvm)?;
    device
        .has_device_attr(&kvm_device_attr {
            group: KVM_DEV_VFIO_DEVICE,
            attr: KVM_DEV_VFIO_DEVICE_FORWARD_IRQ,
            ..Default::default()
        })
        .map_err(at("KVM_HAS_DEVICE_ATTR(KVM_DEV_VFIO_DEVICE_FORWARD_IRQ)"))?;
    Ok("the hardware can forward a device's interrupt and its EOI".to_owned())
}

fn vfio() -> Trial {
    const CONTAINER: &str = "/dev/vfio/vfio";
    let opened = OpenOptions::new().read(true).write(true).open(CONTAINER);
    opened.map_err(|error| Error::Absent(format!("{CONTAINER}: {error}")))?;
    let is_group = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
    };
    let groups = fs::read_dir("/dev/vfio")
        .into_iter()
        .flatten()
        .filter_map(|entry| is_group(entry).then_some(()));
    Ok(format!("{CONTAINER} opens, {} groups bound to it", groups.count()))
}
