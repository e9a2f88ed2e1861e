// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The EOI notifier: who asks to be told, of what, and how.

mod listeners;
mod snapshot;

pub use listeners::Listeners;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::{Gsi, Result, SourceKey};

/// What a listener wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EoiScope {
    /// One level source. It has at most one listener, and the listener ends with the source. A source that shares its
    /// line is told of every EOI of that line.
    Source(SourceKey),
    /// A line, whoever drives it. Any number of listeners.
    Gsi(Gsi),
}

impl EoiScope {
    /// The line it is about.
    pub fn gsi(&self) -> Gsi {
        match self {
            Self::Source(key) => key.gsi(),
            Self::Gsi(gsi) => *gsi,
        }
    }
}

impl From<SourceKey> for EoiScope {
    fn from(key: SourceKey) -> Self {
        Self::Source(key)
    }
}

impl From<Gsi> for EoiScope {
    fn from(gsi: Gsi) -> Self {
        Self::Gsi(gsi)
    }
}

impl fmt::Display for EoiScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(key) => key.fmt(f),
            Self::Gsi(gsi) => gsi.fmt(f),
        }
    }
}

/// How a listener is told. Being told means "state your level now", see the [crate documentation](crate).
pub struct Listener(How);

enum How {
    // A `File` because std writes through nothing else; the descriptor is an eventfd.
    Fd(File),
    Callback(Box<dyn Fn(Gsi) + Send + Sync>),
}

impl Listener {
    /// A listener that is told by adding 1 to an eventfd.
    ///
    /// The eventfd should be non-blocking when another process holds it too: a counter that a peer has filled up would
    /// otherwise block whoever processes the EOI.
    pub fn fd(eventfd: impl Into<OwnedFd>) -> Self {
        Self(How::Fd(File::from(eventfd.into())))
    }

    /// A listener that is told by calling `f` with the line's GSI, on the thread that processes the EOI and without any
    /// lock held. It may assert and deassert sources of the line, and may drop its own guard. It must not wait for another
    /// EOI of the same line.
    pub fn callback(f: impl Fn(Gsi) + Send + Sync + 'static) -> Self {
        Self(How::Callback(Box::new(f)))
    }

    /// The eventfd, when the listener is one: a kernel that can signal it itself saves the way through this process.
    ///
    /// # Errors
    /// The listener, when it is a callback.
    pub fn into_fd(self) -> std::result::Result<OwnedFd, Self> {
        match self.0 {
            How::Fd(file) => Ok(file.into()),
            How::Callback(_) => Err(self),
        }
    }

    /// Tells the listener. Only notifiers call this, and hold no lock that the listener could want.
    ///
    /// # Errors
    /// That of the write, for an eventfd. A full counter is no error: that eventfd is signalled already.
    pub fn notify(&self, gsi: Gsi) -> io::Result<()> {
        match &self.0 {
            How::Callback(f) => f(gsi),
            How::Fd(file) => match (&*file).write(&1u64.to_ne_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => drop(other?),
            },
        }
        Ok(())
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

/// Tells whoever asked that a line was sampled.
pub trait EoiNotifier: fmt::Debug + Send + Sync {
    /// Asks to be told of every EOI of `subject`, from now until the guard is dropped.
    ///
    /// # Errors
    /// * [`Error::Busy`](crate::Error::Busy), EBUSY: a source that has its listener already.
    /// * [`Error::NotFound`](crate::Error::NotFound), ENOENT: a source or a line that is not here.
    /// * [`Error::Unsupported`](crate::Error::Unsupported): a listener of this kind cannot be told by this notifier.
    /// * [`Error::Os`](crate::Error::Os): the system refused what it takes.
    ///
    /// Nothing is left behind by a refusal; the listener is dropped.
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard>;
}

/// Keeps a subscription. Dropping it ends the subscription: when the drop returns, a callback is not running on another
/// thread and will not run again, and an eventfd is not signalled again. A callback may drop its own guard.
///
/// The guard may outlive the notifier and the source; it then guards nothing.
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
