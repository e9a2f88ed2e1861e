// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection to a vfio-user server: one request at a time, each with its reply or an error within a time limit.
//!
//! The header of a message and the first exchange: the vfio-user specification (libvfio-user, docs/vfio-user.rst).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, shutdown, socket_with,
};
use vfio_bindings::bindings::vfio::VFIO_DEVICE_FLAGS_PCI;

const VERSION: u16 = 1;
const GET_INFO: u16 = 4;

/// The size of a message's header in bytes.
const HEADER: usize = 16;
const FLAG_TYPE: u32 = 0xf;
const FLAG_REPLY: u32 = 1;
const FLAG_ERROR: u32 = 1 << 5;

/// Version 0.1, the only major version there is, and the limits of this side: one descriptor a message, and the size of
/// a transfer that the specification assumes.
const OUR_VERSION: [u8; 4] = [0, 0, 1, 0];
const OUR_CAPABILITIES: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":1048576}}\0";
/// The most bytes that a server's capabilities may take.
const CAPABILITIES: usize = 1 << 16;

/// A connected socket. A request without a reply or with an invalid reply ends the connection: a late reply would be
/// taken for the reply to the next request.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    limit: Duration,
    /// The ID of the next request. Locked while a request is under way.
    next: Mutex<u16>,
}

impl Connection {
    /// Connects to the server that listens at `path`, agrees on a version, and asks whether the device is a PCI device.
    /// All of this together takes no longer than `limit`, and so does each later request.
    pub(super) fn new(path: &Path, limit: Duration) -> io::Result<Self> {
        let deadline = Deadline::after(limit);
        let connection = Self {
            socket: connected(path, &deadline)?,
            limit,
            next: Mutex::new(0),
        };
        let step = |name| move |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
        connection.negotiate(&deadline).map_err(step("VFIO_USER_VERSION"))?;
        connection
            .check_device(&deadline)
            .map_err(step("VFIO_USER_DEVICE_GET_INFO"))?;
        Ok(connection)
    }

    /// Makes one request, and fills `reply` with the data of its reply. `is_right` looks at the first part of the
    /// reply, before the second part is filled. The limit begins when the requests of other threads are done.
    ///
    /// # Errors
    /// * The server's errno, or EIO when the server refused without an errno. The connection stays. It also stays when
    ///   no byte of the request could be sent.
    /// * ETIMEDOUT, EPROTO for an invalid reply, or the error of the socket. The connection has ended then.
    /// * ENOTCONN: the connection has ended.
    pub(super) fn request(
        &self,
        request: &Request<'_>,
        [first, second]: [&mut [u8]; 2],
        is_right: impl FnOnce(&[u8]) -> bool,
    ) -> io::Result<()> {
        let size = first.len() + second.len();
        let next = self.lock();
        self.exchange(
            next,
            &Deadline::after(self.limit),
            request,
            size..=size,
            |_, deadline| {
                self.receive(first, deadline)?;
                if !is_right(first) {
                    return Err(Errno::PROTO.into());
                }
                self.receive(second, deadline)
            },
        )
    }

    fn lock(&self) -> MutexGuard<'_, u16> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn negotiate(&self, deadline: &Deadline) -> io::Result<()> {
        let request = Request::new(VERSION, [&OUR_VERSION, OUR_CAPABILITIES], None);
        self.exchange(
            self.lock(),
            deadline,
            &request,
            4..=4 + CAPABILITIES,
            |size, deadline| {
                let mut version = [0; 4];
                self.receive(&mut version, deadline)?;
                // The capabilities are limits of the server, far above the requests of this crate. They are read and
                // dropped.
                let (mut left, mut dropped) = (size - version.len(), [0; 256]);
                while left > 0 {
                    let some = left.min(dropped.len());
                    self.receive(&mut dropped[..some], deadline)?;
                    left -= some;
                }
                let major = u16::from_ne_bytes([version[0], version[1]]);
                if major == 0 { Ok(()) } else { Err(Errno::PROTO.into()) }
            },
        )
    }

    fn check_device(&self, deadline: &Deadline) -> io::Result<()> {
        // struct vfio_device_info: argsz, flags, num_regions, num_irqs.
        let mut info = [0; 16];
        let body: [u8; 16] = words([16, 0, 0, 0]);
        let request = Request::new(GET_INFO, [&body, &[]], None);
        self.exchange(self.lock(), deadline, &request, 16..=16, |_, deadline| {
            self.receive(&mut info, deadline)
        })?;
        if word(&info, 4) & VFIO_DEVICE_FLAGS_PCI == 0 {
            let text = "the server's device is no PCI device";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(())
    }

    /// Makes one request under the next ID. The size of the reply's data must be in `sizes`; `receive` reads the data.
    fn exchange(
        &self,
        mut next: MutexGuard<'_, u16>,
        deadline: &Deadline,
        request: &Request<'_>,
        sizes: RangeInclusive<usize>,
        receive: impl FnOnce(usize, &Deadline) -> io::Result<()>,
    ) -> io::Result<()> {
        let header = request.header(*next)?;
        *next = next.wrapping_add(1);
        // The outer error means that the connection is unusable, the inner error that the request failed.
        let outcome = (|| {
            if let Err(error) = self.send(&header, request, deadline)? {
                return Ok(Err(error));
            }
            match self.answer(&header, sizes, deadline)? {
                Ok(size) => receive(size, deadline).map(Ok),
                Err(refusal) => Ok(Err(refusal)),
            }
        })();
        outcome.unwrap_or_else(|error| {
            // ENOTCONN if the socket has been shut down already.
            let _ = shutdown(&self.socket, Shutdown::Both);
            Err(error)
        })
    }

    fn send(&self, header: &[u8], request: &Request<'_>, deadline: &Deadline) -> io::Result<io::Result<()>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = request.fd.as_slice();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Ok(Err(Errno::INVAL.into()));
        }
        let mut parts = [header, request.parts[0], request.parts[1]].map(IoSlice::new);
        let (mut left, mut begun) = (&mut parts[..], false);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while !left.is_empty() {
            match sendmsg(&self.socket, left, &mut control, flags) {
                Ok(sent) => {
                    // The descriptor went with the first byte.
                    control.clear();
                    IoSlice::advance_slices(&mut left, sent);
                    begun = true;
                }
                Err(Errno::AGAIN) => deadline.wait(&self.socket, PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Errno::NOTCONN.into()),
                // No byte of the request reached the server: no memory, or too many descriptors in flight.
                Err(errno) if !begun => return Ok(Err(errno.into())),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Ok(()))
    }

    /// The header of the reply: how many bytes of data follow, or the server's refusal.
    fn answer(&self, asked: &[u8], sizes: RangeInclusive<usize>, deadline: &Deadline) -> io::Result<io::Result<usize>> {
        let mut header = [0; HEADER];
        self.receive(&mut header, deadline)?;
        let (size, flags) = (word(&header, 4) as usize, word(&header, 8));
        let size = size.checked_sub(HEADER).ok_or(Errno::PROTO)?;
        // ID and command.
        if header[..4] != asked[..4] || flags & FLAG_TYPE != FLAG_REPLY {
            return Err(Errno::PROTO.into());
        }
        if flags & FLAG_ERROR != 0 && size == 0 {
            // vfio_user's server sends errno 0 for every refusal of its backend.
            let errno = i32::try_from(word(&header, 12)).ok().filter(|&errno| errno > 0);
            let errno = errno.unwrap_or_else(|| Errno::IO.raw_os_error());
            return Ok(Err(io::Error::from_raw_os_error(errno)));
        }
        if flags & FLAG_ERROR != 0 || !sizes.contains(&size) {
            return Err(Errno::PROTO.into());
        }
        Ok(Ok(size))
    }

    /// Fills `buffer`. Descriptors that a server sends along are closed by the kernel.
    fn receive(&self, mut buffer: &mut [u8], deadline: &Deadline) -> io::Result<()> {
        while !buffer.is_empty() {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Err(Errno::NOTCONN.into()),
                Ok((received, _)) => buffer = &mut buffer[received..],
                Err(Errno::AGAIN) => deadline.wait(&self.socket, PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A request to the server: a command, the data after the header, and an optional descriptor.
pub(super) struct Request<'a> {
    command: u16,
    parts: [&'a [u8]; 2],
    fd: Option<BorrowedFd<'a>>,
}

impl<'a> Request<'a> {
    pub(super) fn new(command: u16, parts: [&'a [u8]; 2], fd: Option<BorrowedFd<'a>>) -> Self {
        Self { command, parts, fd }
    }

    /// # Errors
    /// EMSGSIZE for 4 GiB and more.
    fn header(&self, id: u16) -> io::Result<[u8; HEADER]> {
        let size = HEADER + self.parts[0].len() + self.parts[1].len();
        let size = u32::try_from(size).map_err(|_| Errno::MSGSIZE)?;
        let mut header = words([0, size, 0, 0]);
        header[..2].copy_from_slice(&id.to_ne_bytes());
        header[2..4].copy_from_slice(&self.command.to_ne_bytes());
        Ok(header)
    }
}

/// The deadline of a wait. A signal to the thread does not extend the wait.
struct Deadline {
    start: Instant,
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        let start = Instant::now();
        Self { start, limit }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self
            .limit
            .checked_sub(self.start.elapsed())
            .filter(|left| !left.is_zero());
        left.ok_or_else(|| Errno::TIMEDOUT.into())
    }

    fn wait(&self, socket: &OwnedFd, what: PollFlags) -> io::Result<()> {
        // A limit beyond 2^63 s means no limit.
        let left = Timespec::try_from(self.left()?).ok();
        match poll(&mut [PollFd::new(socket, what)], left.as_ref()) {
            // The caller tries again, and waits again if the socket was not ready.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A connect blocks when the server listens but does not accept, and its queue is full.
fn connected(path: &Path, deadline: &Deadline) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        set_socket_timeout(&socket, Timeout::Send, Some(deadline.left()?))?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The bytes of `N` words of a message.
pub(super) fn words<const N: usize, const BYTES: usize>(words: [u32; N]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The word at byte `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}
