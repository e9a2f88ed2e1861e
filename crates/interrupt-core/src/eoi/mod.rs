// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The EOI notifier: who is told, of what, and how.

pub(crate) mod listeners;

pub use listeners::Listeners;
pub(crate) use listeners::{Entry, ListenerList, tell_all};

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::error::{Error, Result};
use crate::gsi::Gsi;
use crate::key::{EoiScope, SourceKey};

/// How a listener is told. The notification means "state your level now", see the [crate documentation](crate).
pub struct Listener(How);

enum How {
    // A `File` because std writes through nothing else; the descriptor is an eventfd.
    Fd(File),
    Callback(Box<dyn Fn(Gsi) + Send + Sync>),
}

impl Listener {
    /// A listener that is told by adding 1 to an eventfd.
    ///
    /// An eventfd that this process writes becomes non-blocking when the listener is subscribed, and stays so
    /// (O_NONBLOCK of the open file description, which all duplicates share): else a peer that fills the counter could
    /// stop the thread that processes the EOI. A read of such an eventfd that finds no count fails with EAGAIN, so that
    /// its reader waits with poll or epoll. A reader that has to wait in `read` gets an eventfd that a
    /// [`callback`](Self::callback) writes. A peer that holds a duplicate, clears O_NONBLOCK again and fills the counter
    /// stops the thread until its next signal: give duplicates to trusted peers only. An eventfd that the kernel signals
    /// ([`into_fd`](Self::into_fd)) stays as it is, and never blocks.
    pub fn fd(eventfd: impl Into<OwnedFd>) -> Self {
        Self(How::Fd(File::from(eventfd.into())))
    }

    /// A listener that is told by calling `f` with the line's GSI, on the thread that processes the EOI and without any
    /// lock held. `f` may assert and deassert sources of the line, and may drop its own guard and other guards. It must
    /// not wait for another EOI of the same line. When `f` panics the other listeners are told and the interrupt is
    /// ended all the same, and the panic goes on after that, in the thread that processes the EOI.
    pub fn callback(f: impl Fn(Gsi) + Send + Sync + 'static) -> Self {
        Self(How::Callback(Box::new(f)))
    }

    /// The eventfd, for a notifier that has the kernel signal the eventfd.
    ///
    /// # Errors
    /// The listener, when it is a callback.
    pub fn into_fd(self) -> std::result::Result<OwnedFd, Self> {
        match self.0 {
            How::Fd(file) => Ok(file.into()),
            How::Callback(_) => Err(self),
        }
    }

    fn is_callback(&self) -> bool {
        matches!(self.0, How::Callback(_))
    }

    /// Makes the eventfd non-blocking, so that no EOI waits for the reader.
    fn prepare(&self, gsi: Gsi) -> Result<()> {
        let How::Fd(file) = &self.0 else {
            return Ok(());
        };
        // std sets O_NONBLOCK (by FIONBIO, which every file takes) on sockets only, so a duplicate passes for a socket.
        let non_blocking = file.as_fd().try_clone_to_owned();
        let non_blocking = non_blocking.and_then(|fd| UnixStream::from(fd).set_nonblocking(true));
        non_blocking.map_err(|source| Error::Os {
            operation: "ioctl(listener's eventfd, FIONBIO)",
            gsi,
            source,
        })
    }

    /// Tells the listener. Returns whether it is an eventfd whose counter was full: it is signalled already.
    fn tell(&self, gsi: Gsi) -> io::Result<bool> {
        match &self.0 {
            How::Callback(f) => f(gsi),
            How::Fd(file) => match (&*file).write(&1u64.to_ne_bytes()) {
                // Interrupted: the write waited, so the counter was full. Not tried again, so that a kick frees the
                // vCPU that a peer holds.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return Ok(true);
                }
                other => drop(other?),
            },
        }
        Ok(false)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            How::Fd(file) => write!(f, "eventfd {}", file.as_raw_fd()),
            How::Callback(_) => f.write_str("callback"),
        }
    }
}

/// Tells its listeners that the guest has ended the interrupt of a line.
pub trait EoiNotifier: fmt::Debug + Send + Sync {
    /// Asks to be told of every EOI of `subject`, from now until the guard is dropped.
    ///
    /// # Errors
    /// * [`Error::Busy`], EBUSY: a source that has its listener already.
    /// * [`Error::NotFound`], ENOENT: a source or a line that is not here.
    /// * [`Error::Unsupported`]: a listener of this kind cannot be told by this notifier.
    /// * [`Error::Os`]: the system refused what the subscription takes.
    ///
    /// A refusal leaves nothing behind. The listener is dropped, without a lock of the notifier.
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard>;

    /// Makes `listener` the listener of a source, in place of the one that the source has: each EOI is told to one of the
    /// two, and an EOI that comes during the exchange perhaps to both. The guard of the one before then guards nothing, and
    /// its drop waits for that listener as it would have. For a line's listeners no exchange is needed: subscribe the new
    /// one, then drop the old one's guard.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe) but for [`Error::Busy`]; the source keeps its listener. [`Error::Unsupported`] by a
    /// notifier that has no exchange, which the default says.
    fn exchange(&self, key: SourceKey, listener: Listener) -> Result<EoiGuard> {
        drop(listener);
        Err(Error::Unsupported {
            operation: "exchange",
            gsi: key.gsi(),
            reason: "this notifier has no exchange; drop the listener's guard, then subscribe".to_owned(),
        })
    }
}

/// Keeps a subscription. Dropping the guard ends the subscription: when the drop returns, a callback is not running on
/// another thread and will not run again, and an eventfd is not signalled again.
///
/// A guard may be dropped inside a callback, also by the callback that it guards. Such a drop does not wait: calls that
/// other threads are in may end after it, and no new call begins.
///
/// The guard may outlive the notifier and the source. The guard then guards nothing.
#[must_use = "dropping the guard ends the subscription"]
pub struct EoiGuard {
    subject: EoiScope,
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl EoiGuard {
    /// A guard that runs `end` when it is dropped. `end` must not panic.
    pub fn new(subject: EoiScope, end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self {
            subject,
            end: Some(Box::new(end)),
        }
    }

    /// What the subscription is about.
    pub fn subject(&self) -> EoiScope {
        self.subject
    }
}

impl Drop for EoiGuard {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl fmt::Debug for EoiGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EoiGuard({})", self.subject)
    }
}
