// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device behind a vfio-user server.
//!
//! Requests: the vfio-user specification (libvfio-user, docs/vfio-user.rst).

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use interrupt_core::forward::{DeviceInterrupt, DeviceIrq};
use vfio_intx::VfioUserIntx;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use super::{Area, BAR0_REGION, PciDevice};
use crate::composition::socket_path::SocketPath;
use crate::error::unusable::Unusable;
use crate::passthrough::open::connect;

const DMA_MAP: u16 = 2;
const GET_REGION_INFO: u16 = 5;
const DEVICE_RESET: u16 = 13;

/// Flags of DMA_MAP: the device may read and write.
const READ_WRITE: u32 = 1 << 0 | 1 << 1;

/// A device whose server has the guest's memory. Every access to its regions is a message.
#[derive(Debug)]
pub struct VfioUser {
    label: String,
    server: Arc<VfioUserIntx>,
}

impl VfioUser {
    /// Connects to the server at `path` and gives it the guest's memory, which has to be in files.
    ///
    /// # Errors
    /// [`Unusable::NoServer`], [`Unusable::Server`].
    pub fn connect(path: &SocketPath, memory: &GuestMemoryMmap) -> Result<Self, Unusable> {
        let refused = |step| {
            move |error: io::Error| Unusable::Server {
                path: path.path().to_owned(),
                step,
                reason: error.to_string(),
            }
        };
        let server = connect(path)?;
        for region in memory.iter() {
            let Some(file) = region.file_offset() else {
                let error = io::Error::new(io::ErrorKind::Unsupported, "the guest's memory is in no file");
                return Err(refused("DMA_MAP")(error));
            };
            // struct vfio_user_dma_map: argsz, flags, offset in the file, address of the device's, size.
            let mut body = [0_u8; 32];
            body[..4].copy_from_slice(&32_u32.to_ne_bytes());
            body[4..8].copy_from_slice(&READ_WRITE.to_ne_bytes());
            for (field, value) in [(8, file.start()), (16, region.start_addr().0), (24, region.len())] {
                body[field..field + 8].copy_from_slice(&value.to_ne_bytes());
            }
            server
                .request(DMA_MAP, &body, Some(file.file().as_fd()), &mut [])
                .map_err(refused("DMA_MAP"))?;
        }
        Ok(Self {
            label: format!("vfio-user:{path}"),
            server,
        })
    }
}

impl PciDevice for VfioUser {
    fn label(&self) -> &str {
        &self.label
    }

    fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        Arc::<VfioUserIntx>::clone(&self.server)
    }

    fn irq(&self) -> Option<DeviceIrq> {
        None
    }

    fn bar_size(&self, bar: u8) -> io::Result<u64> {
        // struct vfio_region_info: argsz, flags, index, cap_offset, size, offset.
        const SIZE: usize = 32;
        let mut body = [0; SIZE];
        body[..4].copy_from_slice(&(SIZE as u32).to_ne_bytes());
        body[8..12].copy_from_slice(&(BAR0_REGION + u32::from(bar)).to_ne_bytes());
        let mut info = [0; SIZE];
        self.server.request(GET_REGION_INFO, &body, None, &mut info)?;
        let mut size = [0; 8];
        size.copy_from_slice(&info[16..24]);
        Ok(u64::from_ne_bytes(size))
    }

    fn areas(&self, _: u8) -> Vec<Area> {
        Vec::new()
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.server.region_read(region, offset, data)
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.server.region_write(region, offset, data)
    }

    /// `VfioUserIntx` sends one descriptor with a message.
    fn has_messages(&self) -> bool {
        false
    }

    fn set_messages(&self, _: &[EventFd]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn reset(&self) -> io::Result<()> {
        self.server.request(DEVICE_RESET, &[], None, &mut [])
    }

    /// A refusal of the server's has an errno of its own. After any of these the connection has ended.
    fn is_gone(&self, error: &io::Error) -> bool {
        use rustix::io::Errno;
        [Errno::NOTCONN, Errno::TIMEDOUT, Errno::PROTO]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    }
}
