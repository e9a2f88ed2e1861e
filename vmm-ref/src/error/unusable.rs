// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a device cannot be given to the guest.

use std::path::PathBuf;

use crate::composition::pci_address::PciAddress;

/// Why a device cannot be had. Each is one line, and says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no such device.
    #[error("no PCI device {0}; `lspci -D` lists those that there are")]
    NoDevice(PciAddress),
    /// The embedded guest has no driver for it.
    #[error(
        "{address} is a {id}, and the embedded guest drives QEMU's edu (1234:11e8) only; `cargo xtask lab` has one"
    )]
    NotEdu {
        /// The device.
        address: PciAddress,
        /// Vendor and device ID.
        id: String,
    },
    /// It interrupts by messages only, or not at all.
    #[error("{0} has no INTx pin (Interrupt Pin is 0 in its configuration space); use a device that has one")]
    NoIntx(PciAddress),
    /// Nothing keeps its DMA apart.
    #[error(
        "{0} is in no IOMMU group: there is no IOMMU, or it is off; enable VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on"
    )]
    NoIommu(PciAddress),
    /// Another driver has it, or none.
    #[error(
        "{address} is bound to {driver}, not to vfio-pci; run: modprobe vfio-pci; echo vfio-pci > \
         /sys/bus/pci/devices/{address}/driver_override; {unbind}echo {address} > /sys/bus/pci/drivers_probe"
    )]
    NotBound {
        /// The device.
        address: PciAddress,
        /// The driver, or "no driver".
        driver: String,
        /// The command that takes it from that driver.
        unbind: String,
    },
    /// A device that could reach the same memory belongs to the host.
    #[error(
        "IOMMU group {group} of {address} is not viable: {others}; bind them to vfio-pci too, or to no driver: they share the IOMMU's protection"
    )]
    NotViable {
        /// The device.
        address: PciAddress,
        /// The group's number.
        group: String,
        /// The other devices that stand in the way, with their drivers.
        others: String,
    },
    /// The modules are not loaded.
    #[error("{0} does not exist; run: modprobe vfio-pci; modprobe vfio_iommu_type1")]
    NoVfio(PathBuf),
    /// The group may not be opened by this user.
    #[error("no permission for {0}; run as root, or give the file to this user")]
    Permission(PathBuf),
    /// Another process has it.
    #[error("{0} is in use by another process; a group has one user: end that one first")]
    Busy(PathBuf),
    /// Nobody listens where a vfio-user server was to be.
    #[error(
        "vfio-user:{}: {reason}; start a server there first, as: cargo run -p vfio-intx --features vfio-user --example \
         vfio-user-edu -- {}",
        path.display(),
        path.display()
    )]
    NoServer {
        /// The path of the socket.
        path: PathBuf,
        /// Why there is no connection.
        reason: std::io::Error,
    },
    /// A vfio-user server is there and is of no use.
    #[error("vfio-user:{}: {step}: {reason}", path.display())]
    Server {
        /// The path of the socket.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What came of it.
        reason: String,
    },
    /// VFIO refused for another reason.
    #[error("{address}: {step}: {reason}; dmesg may say more")]
    Refused {
        /// The device.
        address: PciAddress,
        /// What was tried.
        step: &'static str,
        /// What VFIO answered.
        reason: String,
    },
}
