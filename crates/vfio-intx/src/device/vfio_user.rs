// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The INTx of a device behind vfio-user: a server in another process, and a Unix socket.
//!
//! The requests follow the vfio-user specification (libvfio-user, docs/vfio-user.rst).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use interrupt_core::forward::{DeviceInterrupt, InterruptInfo};
use interrupt_core::{Error, Result};
use rustix::io::Errno;

use crate::device::connection::{Connection, Request, word, words};
use crate::device::irq_set::{Data, INTX, IrqInfo, IrqSet};

const GET_IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;

/// A device behind vfio-user, and its INTx.
///
/// There is one connection, with one request at a time. So a slow access to a region delays a mask or an unmask by a
/// call. With an unmask eventfd an EOI needs no call.
///
/// Each request ends within the time limit, which begins when the requests of other threads are done, also while
/// signals interrupt the thread. A request that gets no reply within the limit, or a reply that does not keep to the
/// protocol, ends the connection: a late reply would be taken for the reply to the next request. Each later request
/// fails with ENOTCONN.
///
/// Poll the descriptor ([`AsFd`]) without any requested event: it reports `POLLHUP` when the server has closed or the
/// connection has ended. Do not read from the descriptor or write to it.
pub struct VfioUserIntx {
    label: String,
    connection: Connection,
}

impl VfioUserIntx {
    /// Connects to the server that listens at `path`, and uses the INTx of its device. Errors name the device by
    /// `label`. Connecting takes no longer than `timeout`, and so does each request after it.
    ///
    /// The process needs neither /proc nor a free descriptor beyond the socket.
    ///
    /// # Errors
    /// * The error of the connect: ENOENT, ECONNREFUSED, EACCES, EMFILE, ENAMETOOLONG.
    /// * `TimedOut`: the server does not accept or reply in time, or `timeout` is 0.
    /// * An error that names the request: the server refused the request, closed the connection (ENOTCONN), or sent an
    ///   invalid reply or another major version (EPROTO); or its device is no PCI device (`Unsupported`).
    pub fn connect(label: impl Into<String>, path: &Path, timeout: Duration) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::new(path, timeout)?,
            label: label.into(),
        })
    }

    /// Makes one request that has no method of its own, such as VFIO_USER_DMA_MAP or VFIO_USER_DEVICE_RESET. `body`
    /// follows the header, and the data of the reply fill `reply`. `fd` goes to the server with the message.
    ///
    /// # Errors
    /// * The server's errno, or EIO when the server refused without an errno, as vfio_user's server does. The
    ///   connection stays.
    /// * ETIMEDOUT, and ENOTCONN from then on.
    /// * EPROTO for a reply to another request or of another size than `reply`, and ENOTCONN from then on.
    /// * ENOTCONN: the connection has ended.
    pub fn request(&self, command: u16, body: &[u8], fd: Option<BorrowedFd<'_>>, reply: &mut [u8]) -> io::Result<()> {
        let request = Request::new(command, [body, &[]], fd);
        self.connection.request(&request, [reply, &mut []], |_| true)
    }

    /// Asks `VFIO_USER_DEVICE_GET_IRQ_INFO` of INTx.
    ///
    /// # Errors
    /// As [`request`](Self::request); EPROTO also for a reply about another index.
    pub fn irq_info(&self) -> io::Result<IrqInfo> {
        // struct vfio_irq_info: argsz, flags, index, count.
        let body: [u8; 16] = words([16, 0, INTX, 0]);
        let mut info = [0; 16];
        let reply = [&mut info[..], &mut []];
        let request = Request::new(GET_IRQ_INFO, [&body, &[]], None);
        self.connection.request(&request, reply, |info| word(info, 8) == INTX)?;
        Ok(IrqInfo {
            flags: word(&info, 4),
            count: word(&info, 12),
        })
    }

    /// Makes one `VFIO_USER_DEVICE_SET_IRQS` request. An eventfd is sent to the server, which keeps the eventfd until
    /// the next request for it or the end of the connection.
    ///
    /// # Errors
    /// As [`request`](Self::request). A success is only the server's statement: libvfio-user's server accepts masks and
    /// does nothing, so [`IrqInfo`] decides.
    pub fn set_irqs(&self, request: &IrqSet<'_>) -> io::Result<()> {
        let (data, fd): (&[u8], _) = match &request.data {
            Data::None => (&[], None),
            Data::Bool(value) => (std::slice::from_ref(value), None),
            // A request without its descriptor removes the eventfd.
            Data::Eventfd(fd) => (&[], *fd),
        };
        // An eventfd travels beside the message, and not in its bytes.
        let argsz = IrqSet::HEADER + data.len() as u32;
        let body: [u8; 20] = words([argsz, request.flags, request.index, request.start, request.count]);
        let request = Request::new(SET_IRQS, [&body, data], fd);
        self.connection.request(&request, [&mut [], &mut []], |_| true)
    }

    /// Reads `data.len()` bytes from byte `offset` of region `region` (`VFIO_PCI_*_REGION_INDEX`). A server takes at
    /// most the bytes that its capabilities say, or 1 MiB if they say nothing.
    ///
    /// # Errors
    /// As [`request`](Self::request); EPROTO also for a reply about another offset, region or count; EMSGSIZE for 4 GiB
    /// and more.
    pub fn region_read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        // The reply repeats offset, region and count, and the data follow.
        let place = place(region, offset, data.len())?;
        let reply = [&mut [0; PLACE][..], data];
        let request = Request::new(REGION_READ, [&place, &[]], None);
        self.connection.request(&request, reply, |answered| answered == place)
    }

    /// Writes `data` to byte `offset` of region `region` (`VFIO_PCI_*_REGION_INDEX`). A server takes at most the bytes
    /// that its capabilities say, or 1 MiB if they say nothing.
    ///
    /// # Errors
    /// As [`region_read`](Self::region_read).
    pub fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let place = place(region, offset, data.len())?;
        let reply = [&mut [0; PLACE][..], &mut []];
        let request = Request::new(REGION_WRITE, [&place, data], None);
        self.connection.request(&request, reply, |answered| answered == place)
    }
}

/// The bytes of offset, region and count.
const PLACE: usize = 16;

/// Offset, region and count, as a message has them.
fn place(region: u32, offset: u64, count: usize) -> io::Result<[u8; PLACE]> {
    let count = u32::try_from(count).map_err(|_| Errno::MSGSIZE)?;
    let mut place = words([0, 0, region, count]);
    place[..8].copy_from_slice(&offset.to_ne_bytes());
    Ok(place)
}

impl AsFd for VfioUserIntx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl DeviceInterrupt for VfioUserIntx {
    fn label(&self) -> &str {
        &self.label
    }

    fn info(&self) -> Result<InterruptInfo> {
        let info = self.irq_info().map_err(|source| Error::Device {
            operation: "VFIO_USER_DEVICE_GET_IRQ_INFO(INTx)",
            device: self.label.clone(),
            source,
        })?;
        info.interrupt(&self.label)
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let request = IrqSet::set_trigger(fd);
        request.outcome(&self.label, self.set_irqs(&request))
    }

    fn set_unmask(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let request = IrqSet::unmask_eventfd(fd);
        request.outcome(&self.label, self.set_irqs(&request))
    }

    fn mask(&self) -> Result<()> {
        let request = IrqSet::mask();
        request.outcome(&self.label, self.set_irqs(&request))
    }

    fn unmask(&self) -> Result<()> {
        let request = IrqSet::unmask();
        request.outcome(&self.label, self.set_irqs(&request))
    }
}

impl fmt::Debug for VfioUserIntx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INTx of {}", self.label)
    }
}
