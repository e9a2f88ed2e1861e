// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks that a device can be given to a guest, made before the device is touched. Each failure is a step of the
//! set-up that an operator can forget.
//!
//! Sources: Linux, Documentation/driver-api/vfio.rst, and the files of sysfs.

use std::fs;
use std::io;
use std::path::Path;

use crate::composition::pci_address::PciAddress;
use crate::error::unusable::Unusable;

/// Checks whether the device can be given to a guest, without touching the device.
///
/// # Errors
/// The first requirement that is not met.
pub fn check(address: PciAddress) -> Result<(), Unusable> {
    check_in(Path::new("/sys"), Path::new("/dev"), address)
}

/// Checks whether the device is one that the embedded guest drives.
///
/// # Errors
/// [`Unusable::NotEdu`].
pub fn check_edu(address: PciAddress) -> Result<(), Unusable> {
    check_edu_in(Path::new("/sys"), address)
}

/// The device's vendor and device ID, as lspci writes them.
fn id(sys: &Path, address: PciAddress) -> String {
    let device = sys.join(format!("bus/pci/devices/{address}"));
    let read = |file: &str| fs::read_to_string(device.join(file)).unwrap_or_default();
    let ids = ["vendor", "device"].map(|file| read(file).trim().trim_start_matches("0x").to_owned());
    ids.join(":")
}

fn check_edu_in(sys: &Path, address: PciAddress) -> Result<(), Unusable> {
    match id(sys, address) {
        id if id == "1234:11e8" => Ok(()),
        id => Err(Unusable::NotEdu { address, id }),
    }
}

fn check_in(sys: &Path, dev: &Path, address: PciAddress) -> Result<(), Unusable> {
    let device = sys.join(format!("bus/pci/devices/{address}"));
    if !device.exists() {
        return Err(Unusable::NoDevice(address));
    }
    const INTERRUPT_PIN: usize = 0x3d;
    let configuration = fs::read(device.join("config")).unwrap_or_default();
    if configuration.get(INTERRUPT_PIN).is_none_or(|pin| *pin == 0) {
        return Err(Unusable::NoIntx(address));
    }
    let Some(group) = link(&device, "iommu_group") else {
        return Err(Unusable::NoIommu(address));
    };
    let driver = link(&device, "driver");
    if !driver.as_deref().is_some_and(is_vfio) {
        return Err(Unusable::NotBound {
            address,
            unbind: match driver {
                Some(_) => format!("echo {address} > /sys/bus/pci/devices/{address}/driver/unbind; "),
                None => String::new(),
            },
            driver: driver.unwrap_or_else(|| "no driver".to_owned()),
        });
    }
    let others = in_the_way(&device);
    if !others.is_empty() {
        return Err(Unusable::NotViable {
            address,
            group,
            others: others.join(", "),
        });
    }
    for node in ["vfio".to_owned(), group] {
        can_be_opened(&dev.join("vfio").join(node))?;
    }
    Ok(())
}

/// The last path component of the target of one of the device's symbolic links.
fn link(device: &Path, name: &str) -> Option<String> {
    let target = fs::read_link(device.join(name)).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// vfio-pci itself, or a variant for one kind of device, such as mlx5_vfio_pci.
fn is_vfio(driver: &str) -> bool {
    driver.contains("vfio")
}

/// The devices of the group that a driver of the host uses. Devices without a driver, and bridges, are allowed.
fn in_the_way(device: &Path) -> Vec<String> {
    let devices = fs::read_dir(device.join("iommu_group/devices"))
        .into_iter()
        .flatten()
        .flatten();
    let mut others: Vec<_> = devices
        .filter_map(|entry| {
            let driver = link(&entry.path(), "driver")?;
            let harmless = is_vfio(&driver) || ["pci-stub", "pcieport"].contains(&driver.as_str());
            (!harmless).then(|| format!("{} is bound to {driver}", entry.file_name().to_string_lossy()))
        })
        .collect();
    others.sort();
    others
}

/// /dev/vfio/vfio may be opened many times, a group only once. Opening and closing it does not disturb its user.
fn can_be_opened(path: &Path) -> Result<(), Unusable> {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::PermissionDenied => Unusable::Permission(path.to_owned()),
            io::ErrorKind::ResourceBusy => Unusable::Busy(path.to_owned()),
            _ => Unusable::NoVfio(path.to_owned()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    use std::path::PathBuf;

    use super::*;

    const EDU: &str = "0000:00:02.0";
    const SHARER: &str = "0000:00:02.1";

    /// A machine with an edu that has everything it needs, as the files of /sys and /dev.
    struct Files(PathBuf);

    impl Files {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let files = Self(std::env::temp_dir().join(format!("vmm-ref-vfio-{}-{n}", std::process::id())));
            let device = files.device(EDU);
            for dir in [&device, &files.0.join("group/7/devices"), &files.0.join("dev/vfio")] {
                fs::create_dir_all(dir).unwrap();
            }
            fs::write(device.join("vendor"), "0x1234\n").unwrap();
            fs::write(device.join("device"), "0x11e8\n").unwrap();
            files.set_pin(1);
            symlink(files.0.join("group/7"), device.join("iommu_group")).unwrap();
            symlink(&device, files.0.join("group/7/devices").join(EDU)).unwrap();
            files.bind(EDU, "vfio-pci");
            for node in ["vfio", "7"] {
                fs::write(files.0.join("dev/vfio").join(node), "").unwrap();
            }
            files
        }

        fn device(&self, address: &str) -> PathBuf {
            self.0.join("bus/pci/devices").join(address)
        }

        fn set_pin(&self, pin: u8) {
            let mut configuration = [0; 64];
            configuration[0x3d] = pin;
            fs::write(self.device(EDU).join("config"), configuration).unwrap();
        }

        fn bind(&self, address: &str, driver: &str) {
            let link = self.device(address).join("driver");
            // The device may not be bound to a driver yet.
            let _ = fs::remove_file(&link);
            symlink(self.0.join("bus/pci/drivers").join(driver), link).unwrap();
        }

        fn check(&self) -> Result<(), Unusable> {
            check_in(&self.0, &self.0.join("dev"), EDU.parse().unwrap())
        }

        /// Asserts that the check refuses the device in one line that contains all of `says`.
        fn refuses(&self, says: &[&str]) {
            let line = self.check().unwrap_err().to_string();
            assert_eq!(line.lines().count(), 1, "{line}");
            for part in says {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            // A failed removal only leaves files in the temporary directory.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_device_that_has_everything() {
        Files::new().check().unwrap();
    }

    #[test]
    fn no_such_device() {
        let files = Files::new();
        fs::remove_dir_all(files.device(EDU)).unwrap();
        files.refuses(&["no PCI device 0000:00:02.0", "lspci -D"]);
    }

    #[test]
    fn another_device() {
        let files = Files::new();
        fs::write(files.device(EDU).join("vendor"), "0x8086\n").unwrap();
        files.check().unwrap();
        let line = check_edu_in(&files.0, EDU.parse().unwrap()).unwrap_err().to_string();
        for part in ["0000:00:02.0 is a 8086:11e8", "edu (1234:11e8) only", "--kernel"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn no_intx() {
        let files = Files::new();
        files.set_pin(0);
        files.refuses(&["no INTx pin", "use a device that has one"]);
    }

    #[test]
    fn no_iommu() {
        let files = Files::new();
        fs::remove_file(files.device(EDU).join("iommu_group")).unwrap();
        files.refuses(&["no IOMMU group", "intel_iommu=on"]);
    }

    #[test]
    fn not_bound() {
        let files = Files::new();
        files.bind(EDU, "edu");
        files.refuses(&[
            "bound to edu, not to vfio-pci",
            "echo vfio-pci > /sys/bus/pci/devices/0000:00:02.0/driver_override",
            "echo 0000:00:02.0 > /sys/bus/pci/devices/0000:00:02.0/driver/unbind",
        ]);
        fs::remove_file(files.device(EDU).join("driver")).unwrap();
        files.refuses(&["bound to no driver", "echo 0000:00:02.0 > /sys/bus/pci/drivers_probe"]);
        assert!(!files.check().unwrap_err().to_string().contains("unbind"));
    }

    #[test]
    fn not_viable() {
        let files = Files::new();
        fs::create_dir_all(files.device(SHARER)).unwrap();
        symlink(files.device(SHARER), files.0.join("group/7/devices").join(SHARER)).unwrap();
        files.check().unwrap();
        files.bind(SHARER, "e1000");
        files.refuses(&["IOMMU group 7 of 0000:00:02.0 is not viable: 0000:00:02.1 is bound to e1000;"]);
        for harmless in ["vfio-pci", "mlx5_vfio_pci", "pci-stub", "pcieport"] {
            files.bind(SHARER, harmless);
            files.check().unwrap();
        }
    }

    #[test]
    fn no_vfio() {
        let files = Files::new();
        fs::remove_file(files.0.join("dev/vfio/7")).unwrap();
        files.refuses(&["dev/vfio/7 does not exist", "modprobe vfio-pci"]);
        fs::remove_file(files.0.join("dev/vfio/vfio")).unwrap();
        files.refuses(&["dev/vfio/vfio does not exist", "modprobe vfio_iommu_type1"]);
    }
}
