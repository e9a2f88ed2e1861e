// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The INTx of a device behind vfio-user: a server in another process, and a Unix socket.
//!
//! The requests are those of the vfio-user specification (libvfio-user, docs/vfio-user.rst).

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
/// There is one connection, and one request under way on it: an access to a region that takes long holds up a mask or an
/// unmask that is made by a call. With an unmask eventfd no call is made at an EOI.
///
/// Each request ends within the time limit, which begins when the requests of other threads are done, also while signals
/// interrupt the thread. A request that gets no reply within the limit, or a reply that does not keep to the protocol,
/// ends the connection: a late reply would be taken for the
/// reply to the next request. From then on each request answers ENOTCONN.
///
/// The descriptor ([`AsFd`]) is for watching: polled for no event at all, it reports `POLLHUP` when the server has gone or
/// the connection was ended. Nothing must be read from it or written to it.
pub struct VfioUserIntx {
    label: String,
    connection: Connection,
}

impl VfioUserIntx {
    /// Connects to the server that listens at `path`, and takes the INTx of its device, which errors call `label`.
    /// Connecting takes no longer than `timeout`, and so does each request after it.
    ///
    /// The process needs neither /proc nor a free descriptor beyond the socket.
    ///
    /// # Errors
    /// * That of the connection: ENOENT, ECONNREFUSED, EACCES, EMFILE, ENAMETOOLONG.
    /// * `TimedOut`: the server does not accept or reply in time, or `timeout` is 0.
    /// * An error that names the request: the server refused it, has gone (ENOTCONN), or replied with what is no reply to
    ///   it or another major version (EPROTO); or its device is no PCI device (`Unsupported`).
    pub fn connect(label: impl Into<String>, path: &Path, timeout: Duration) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::new(path, timeout)?,
            label: label.into(),
        })
    }

    /// Makes one request that has no method here, such as VFIO_USER_DMA_MAP or VFIO_USER_DEVICE_RESET: `body` is what
    /// follows the header, and the data of the reply fill `reply`. `fd` goes to the server with the message.
    ///
    /// # Errors
    /// * The server's; EIO when it refused without an errno, as vfio_user's own does. The connection stays.
    /// * ETIMEDOUT, and ENOTCONN from then on.
    /// * EPROTO for a reply to another request or of another size than `reply`, and ENOTCONN from then on.
    /// * ENOTCONN: the connection is gone.
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

    /// Makes one `VFIO_USER_DEVICE_SET_IRQS` request. An eventfd goes to the server, which has it until it is told
    /// otherwise or is disconnected.
    ///
    /// # Errors
    /// As [`request`](Self::request). A success means that the server said so; libvfio-user's accepts masks and does
    /// nothing, which is why [`IrqInfo`] decides.
    pub fn set_irqs(&self, request: &IrqSet<'_>) -> io::Result<()> {
        let (data, fd): (&[u8], _) = match &request.data {
            Data::None => (&[], None),
            Data::Bool(value) => (std::slice::from_ref(value), None),
            // No descriptor where one belongs takes the eventfd away.
            Data::Eventfd(fd) => (&[], *fd),
        };
        // An eventfd travels beside the message, and is none of its bytes.
        let argsz = IrqSet::HEADER + data.len() as u32;
        let body: [u8; 20] = words([argsz, request.flags, request.index, request.start, request.count]);
        let request = Request::new(SET_IRQS, [&body, data], fd);
        self.connection.request(&request, [&mut [], &mut []], |_| true)
    }

    /// Reads `data.len()` bytes from byte `offset` of region `region` (`VFIO_PCI_*_REGION_INDEX`). A server takes at most
    /// the bytes that its capabilities say, and 1 MiB if they do not.
    ///
    /// # Errors
    /// As [`request`](Self::request); EPROTO also for a reply about another place; EMSGSIZE for 4 GiB and more.
    pub fn region_read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        // The reply repeats the place, and the data follow.
        let place = place(region, offset, data.len())?;
        let reply = [&mut [0; PLACE][..], data];
        let request = Request::new(REGION_READ, [&place, &[]], None);
        self.connection.request(&request, reply, |answered| answered == place)
    }

    /// Writes `data` to byte `offset` of region `region` (`VFIO_PCI_*_REGION_INDEX`). A server takes at most the bytes
    /// that its capabilities say, and 1 MiB if they do not.
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

/// The bytes of a place in a region.
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
