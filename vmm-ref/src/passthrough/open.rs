// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening a device of VFIO or of a vfio-user server.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vfio_intx::VfioUserIntx;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

use crate::composition::pci_address::PciAddress;
use crate::composition::socket_path::SocketPath;
use crate::error::unusable::Unusable;

/// A server that does not reply in this time is gone.
const SERVER_LIMIT: Duration = Duration::from_secs(10);

/// A container for the IOMMU groups of `address` and of other devices of this process.
///
/// # Errors
/// [`Unusable::Refused`].
pub fn container(address: PciAddress) -> Result<Arc<VfioContainer>, Unusable> {
    VfioContainer::new(None)
        .map(Arc::new)
        .map_err(|error| refused(address, &error))
}

/// Opens a device that has passed the [preflight](super::preflight) checks.
///
/// # Errors
/// [`Unusable::Refused`].
pub fn open(address: PciAddress, container: Arc<VfioContainer>) -> Result<Arc<VfioDevice>, Unusable> {
    let path = format!("/sys/bus/pci/devices/{address}");
    VfioDevice::new(Path::new(&path), container, false)
        .map(Arc::new)
        .map_err(|error| refused(address, &error))
}

fn refused(address: PciAddress, error: &VfioError) -> Unusable {
    Unusable::Refused {
        address,
        step: "VFIO",
        reason: advice(error),
    }
}

/// The text of VFIO's error. EPERM of the IOMMU set-up adds its usual cause and the remedy.
fn advice(error: &VfioError) -> String {
    const EPERM: i32 = 1;
    match error {
        VfioError::ContainerSetIOMMU(errno) if errno.errno() == EPERM => format!(
            "{error}: the platform has no interrupt remapping; enable it (intremap=on), or load vfio_iommu_type1 with \
             allow_unsafe_interrupts=1 if the guest is trusted"
        ),
        other => other.to_string(),
    }
}

/// Connects to the vfio-user server that listens at `path`.
///
/// # Errors
/// [`Unusable::NoServer`], [`Unusable::Server`].
pub fn connect(path: &SocketPath) -> Result<Arc<VfioUserIntx>, Unusable> {
    let device = VfioUserIntx::connect(format!("vfio-user:{path}"), path.path(), SERVER_LIMIT);
    device.map(Arc::new).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Unusable::NoServer {
            path: path.path().to_owned(),
            reason: error,
        },
        _ => Unusable::Server {
            path: path.path().to_owned(),
            step: "connect",
            reason: error.to_string(),
        },
    })
}
