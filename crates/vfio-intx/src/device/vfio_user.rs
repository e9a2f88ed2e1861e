// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The INTx of a device behind vfio-user: a server in another process, and a Unix socket.
//!
//! Messages and their order: the vfio-user specification (libvfio-user, docs/vfio-user.rst), VFIO_USER_DEVICE_GET_IRQ_INFO and
//! VFIO_USER_DEVICE_SET_IRQS.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interrupt_core::forward::{DeviceInterrupt, InterruptInfo};
use interrupt_core::{Error, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vfio_user::Client;

use super::irq_set::{Data, INTX, IrqInfo, IrqSet};

const GET_IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
/// The size of a message's header in bytes, and of the data of either reply.
const HEADER: usize = 16;
const IRQ_INFO: usize = 16;
const FLAG_TYPE: u32 = 0xf;
const FLAG_REPLY: u32 = 1;
const FLAG_ERROR: u32 = 1 << 5;

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EPROTO: i32 = 71;
const ENOTCONN: i32 = 107;
const ETIMEDOUT: i32 = 110;

/// The INTx of a vfio-user device.
///
/// The VMM keeps the [`Client`] that it has for the device's regions and DMA, and shares it through the mutex: there is one
/// socket, and one request under way on it. An access to a region that takes long holds up a mask or an unmask that is made by a
/// call; with an unmask eventfd there is none.
///
/// The client (0.1.7) takes an error reply to `set_irqs` for a success, and waits for ever for the rest of an error reply to
/// `get_irq_info`, since such a reply is a header and nothing more. It shows neither its socket nor a way to give it a time limit.
/// So the two requests are made here, on a second descriptor for the client's socket, and the socket is given a limit, which
/// holds for the client's own requests too. A server that does not keep to the protocol, or to the limit, is disconnected: a late
/// reply would be taken for the next one's.
pub struct VfioUserIntx {
    label: String,
    client: Arc<Mutex<Client>>,
    socket: UnixStream,
}

impl VfioUserIntx {
    /// Connects to the server that listens at `path`, and takes the INTx of its device, which errors call `label`. A server that
    /// does not reply within `timeout`, which is not 0, is gone.
    ///
    /// `Client::new` itself (0.1.7) waits for the server without a limit, and panics when the server's first replies are malformed.
    ///
    /// # Errors
    /// * That of the connection: ENOENT, ECONNREFUSED, EACCES, or EIO for a server that does not speak vfio-user.
    /// * EINVAL for a `timeout` of 0.
    /// * EBUSY: another thread, past this crate, connected to the same socket at the same time, so that it cannot be told which
    ///   connection is this.
    /// * EPERM: a seccomp filter forbids `pidfd_getfd` (Linux 5.6), by which the second descriptor is had.
    pub fn connect(label: impl Into<String>, path: &Path, timeout: Duration) -> io::Result<Self> {
        // One connection at a time, so that each is the only new one as far as this crate can see to it.
        static CONNECTING: Mutex<()> = Mutex::new(());
        let _connecting = CONNECTING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = sockets()?;
        let client = Client::new(path).map_err(|error| match error {
            vfio_user::Error::Connect(error) => error,
            other => io::Error::other(other),
        })?;
        let socket = new_socket(&before, path)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self {
            label: label.into(),
            client: Arc::new(Mutex::new(client)),
            socket,
        })
    }

    /// The client, for the device's regions and DMA. Whoever has it locked holds up [`DeviceInterrupt`]'s methods.
    pub fn client(&self) -> &Arc<Mutex<Client>> {
        &self.client
    }

    /// Asks `VFIO_USER_DEVICE_GET_IRQ_INFO` of INTx.
    ///
    /// # Errors
    /// * The server's; EIO when it refused without an errno, as vfio_user's own does for a device that has no interrupts.
    /// * ETIMEDOUT, and ENOTCONN from then on; EPROTO for a reply that is none, and ENOTCONN from then on.
    /// * That of the socket.
    pub fn irq_info(&self) -> io::Result<IrqInfo> {
        let body = [IRQ_INFO as u32, 0, INTX, 0];
        let reply: [u8; IRQ_INFO] = self.request(GET_IRQ_INFO, &body, &[], None)?;
        let field = |n: usize| u32::from_ne_bytes([reply[n], reply[n + 1], reply[n + 2], reply[n + 3]]);
        Ok(IrqInfo {
            flags: field(4),
            count: field(12),
        })
    }

    /// Makes one `VFIO_USER_DEVICE_SET_IRQS` request. An eventfd goes to the server, which has it until it is told otherwise or is
    /// disconnected.
    ///
    /// # Errors
    /// As [`irq_info`](Self::irq_info). A success means that the server said so; libvfio-user's accepts masks and does nothing,
    /// which is why [`IrqInfo`] decides.
    pub fn set_irqs(&self, request: &IrqSet<'_>) -> io::Result<()> {
        let (data, fd): (&[u8], _) = match &request.data {
            Data::None => (&[], None),
            Data::Bool(value) => (std::slice::from_ref(value), None),
            // No descriptor where one belongs takes the eventfd away.
            Data::Eventfd(fd) => (&[], *fd),
        };
        // An eventfd travels beside the message, and is none of its bytes.
        let argsz = IrqSet::HEADER + data.len() as u32;
        let body = [argsz, request.flags, request.index, request.start, request.count];
        self.request::<0>(SET_IRQS, &body, data, fd).map(drop)
    }

    /// One request and its reply, whose data are `N` bytes.
    fn request<const N: usize>(
        &self,
        command: u16,
        body: &[u32],
        data: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<[u8; N]> {
        // Nobody else's request is under way, and nobody else reads.
        let _client: MutexGuard<'_, Client> = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.exchange(command, body, data, fd);
        match outcome {
            Ok(answer) => answer,
            Err(error) => {
                // What comes now belongs to no request. There is nothing to do about a socket that is closed already.
                drop(self.socket.shutdown(std::net::Shutdown::Both));
                Err(match error.kind() {
                    io::ErrorKind::WouldBlock => io::Error::from_raw_os_error(ETIMEDOUT),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => io::Error::from_raw_os_error(ENOTCONN),
                    _ => error,
                })
            }
        }
    }

    /// The outer error says that the connection is of no more use, the inner one that the server refused.
    fn exchange<const N: usize>(
        &self,
        command: u16,
        body: &[u32],
        data: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<io::Result<[u8; N]>> {
        // The server returns it. The client counts from 0, so that this one stands out in a trace.
        const MESSAGE_ID: u16 = 0xffff;
        let size = HEADER + 4 * body.len() + data.len();
        let mut message = Vec::with_capacity(size);
        message.extend_from_slice(&MESSAGE_ID.to_ne_bytes());
        message.extend_from_slice(&command.to_ne_bytes());
        for word in [size as u32, 0, 0].iter().chain(body) {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(data);
        self.send(&message, fd)?;

        let mut header = [0; HEADER];
        (&self.socket).read_exact(&mut header)?;
        let word = |n: usize| u32::from_ne_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
        let (size, flags, errno) = (word(4), word(8), word(12));
        let is_reply = header[..4] == message[..4] && flags & FLAG_TYPE == FLAG_REPLY;
        if is_reply && flags & FLAG_ERROR != 0 && size as usize == HEADER {
            // vfio_user's server says 0 of every refusal of its backend.
            let errno = i32::try_from(errno).ok().filter(|&errno| errno > 0).unwrap_or(EIO);
            return Ok(Err(io::Error::from_raw_os_error(errno)));
        }
        if !is_reply || size as usize != HEADER + N {
            return Err(io::Error::from_raw_os_error(EPROTO));
        }
        let mut answer = [0; N];
        (&self.socket).read_exact(&mut answer)?;
        Ok(Ok(answer))
    }

    fn send(&self, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.as_slice();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::from_raw_os_error(EINVAL));
        }
        let sent = sendmsg(
            &self.socket,
            &[IoSlice::new(message)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        // The descriptor went with the first byte.
        (&self.socket).write_all(&message[sent..])
    }
}

/// The Unix sockets of this process, by the names that /proc gives them.
fn sockets() -> io::Result<BTreeSet<(i32, String)>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // It may have been closed meanwhile, this directory's own above all.
        let (Ok(target), Ok(number)) = (fs::read_link(entry.path()), entry.file_name().to_string_lossy().parse())
        else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        if target.starts_with("socket:") {
            found.insert((number, target));
        }
    }
    Ok(found)
}

/// A second descriptor for the one connected Unix socket that there was not before. When other threads connect meanwhile, the
/// one whose other end is `path`.
fn new_socket(before: &BTreeSet<(i32, String)>, path: &Path) -> io::Result<UnixStream> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let (mut to_path, mut others) = (Vec::new(), Vec::new());
    for (number, _) in sockets()?.difference(before) {
        // It may have been closed by another thread.
        let Ok(fd) = pidfd_getfd(&this, *number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        match peer(&fd) {
            Some(peer) if is_same(&peer, path) => to_path.push(fd),
            Some(_) => others.push(fd),
            None => {}
        }
    }
    // A server that was started in another directory may have a relative path, which says nothing here.
    let mut found = if to_path.is_empty() { others } else { to_path };
    match (found.pop(), found.is_empty()) {
        (Some(fd), true) => Ok(UnixStream::from(fd)),
        (Some(_), false) => Err(io::Error::from_raw_os_error(EBUSY)),
        (None, _) => Err(io::Error::from_raw_os_error(EPERM)),
    }
}

/// The path of the other end, if it is a Unix socket that has one.
fn peer(fd: &OwnedFd) -> Option<PathBuf> {
    let address = rustix::net::getpeername(fd.as_fd()).ok()??;
    let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(address.path()?.to_bytes())))
}

fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    a == b || identity(a).is_some_and(|a| Some(a) == identity(b))
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
