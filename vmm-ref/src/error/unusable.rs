// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a device cannot be given to the guest.

use std::path::PathBuf;

use crate::composition::pci_address::PciAddress;

/// Why a device cannot be used. The message is one line and names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// No PCI device has this address.
    #[error("no PCI device {0}; `lspci -D` lists those that there are")]
    NoDevice(PciAddress),
    /// The embedded guest has no driver for the device.
    #[error(
        "{address} is a {id}, and the embedded guest drives QEMU's edu (1234:11e8) only; `cargo xtask lab` has one; a Linux \
         guest has drivers for others: use --kernel"
    )]
    NotEdu {
        /// The device.
        address: PciAddress,
        /// Vendor and device ID.
        id: String,
    },
    /// The device has no INTx pin: it interrupts by messages only, or not at all.
    #[error("{0} has no INTx pin (Interrupt Pin is 0 in its configuration space); use a device that has one")]
    NoIntx(PciAddress),
    /// The device is in no IOMMU group, so nothing isolates its DMA.
    #[error(
        "{0} is in no IOMMU group: there is no IOMMU, or it is off; enable VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on"
    )]
    NoIommu(PciAddress),
    /// The device is not bound to vfio-pci.
    #[error(
        "{address} is bound to {driver}, not to vfio-pci; run: modprobe vfio-pci; echo vfio-pci > \
         /sys/bus/pci/devices/{address}/driver_override; {unbind}echo {address} > /sys/bus/pci/drivers_probe"
    )]
    NotBound {
        /// The device.
        address: PciAddress,
        /// The driver, or "no driver".
        driver: String,
        /// The command that unbinds the device from that driver.
        unbind: String,
    },
    /// A driver of the host uses another device of the same IOMMU group.
    #[error(
        "IOMMU group {group} of {address} is not viable: {others}; bind them to vfio-pci too, or to no driver: they share the IOMMU's protection"
    )]
    NotViable {
        /// The device.
        address: PciAddress,
        /// The group's number.
        group: String,
        /// The other devices of the group that the host uses, with their drivers.
        others: String,
    },
    /// A VFIO device file is missing, because the modules are not loaded.
    #[error("{0} does not exist; run: modprobe vfio-pci; modprobe vfio_iommu_type1")]
    NoVfio(PathBuf),
    /// This user may not open the group.
    #[error("no permission for {0}; run as root, or give the file to this user")]
    Permission(PathBuf),
    /// Another process uses the group.
    #[error("{0} is in use by another process; a group has one user: end that one first")]
    Busy(PathBuf),
    /// No vfio-user server listens at the path.
    #[error(
        "vfio-user:{}: {reason}; start a server there first, as: cargo run -p vfio-intx --features vfio-user --example \
         vfio-user-edu -- {}",
        path.display(),
        path.display()
    )]
    NoServer {
        /// The path of the socket.
        path: PathBuf,
        /// The error of connect(2).
        reason: std::io::Error,
    },
    /// A vfio-user server answers, but cannot serve as the device.
    #[error("vfio-user:{}: {step}: {reason}; start that server again, or use another one", path.display())]
    Server {
        /// The path of the socket.
        path: PathBuf,
        /// The operation.
        step: &'static str,
        /// Why the operation failed.
        reason: String,
    },
    /// The same device is given twice.
    #[error("--device {0} is given twice; a device can be given once")]
    Twice(String),
    /// A Linux guest has a driver for PCI devices alone.
    #[error("--device {0} with --kernel: it is no PCI device; use vfio: and a PCI address, or vfio-user: and a socket")]
    NotPci(String),
    /// The bus has no room for so many devices.
    #[error(
        "{count} --device: the guest's bus has room for {most} devices (with --share-irq, one in four has the same line); use fewer"
    )]
    TooMany {
        /// The number of devices.
        count: usize,
        /// The most devices.
        most: usize,
    },
    /// The guest's memory cannot be mapped for the device's DMA.
    #[error(
        "{address}: {reason}: the IOMMU cannot map the guest's memory, which has to be locked; raise the limit (ulimit -l unlimited), or use less --memory"
    )]
    Dma {
        /// The device.
        address: PciAddress,
        /// VFIO's error.
        reason: String,
    },
    /// The device cannot be a function of the guest's bus.
    #[error("--device {device}: {reason}")]
    Unfit {
        /// The device, as the option names it.
        device: String,
        /// Why.
        reason: String,
    },
    /// VFIO refused for another reason.
    #[error("{address}: {step}: {reason}; dmesg may say more")]
    Refused {
        /// The device.
        address: PciAddress,
        /// The operation.
        step: &'static str,
        /// VFIO's error.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_breaks_the_protocol_has_a_way_out() {
        let error = Unusable::Server {
            path: "/run/edu.sock".into(),
            step: "connect",
            reason: "Protocol error".to_owned(),
        };
        assert!(
            error
                .to_string()
                .ends_with("; start that server again, or use another one")
        );
    }
}
