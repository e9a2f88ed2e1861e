// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What takes a matching store before it becomes an exit.

use std::fmt::Debug;

use rustix::io::Errno as Code;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::error::errno;
use crate::matching::Match;

/// Something that can signal an eventfd for a guest store without an exit to the VMM.
///
/// The implementations are `Kvm` (feature `kvm`) and [`NoBackend`]. Devices do not use this trait: they register on an
/// [`IoeventBus`](crate::IoeventBus), which keeps its table in step with the backend. A registration that is made past
/// the bus is not in the table, and collides with the bus's own.
///
/// The bus calls these methods one at a time, under its lock, and only with registrations that it has checked. A method
/// that calls the bus back may look up and dispatch; it waits for itself if it registers, relocates or removes.
pub trait Backend: Debug + Send + Sync {
    /// Starts to signal `event` for each store that `at` matches.
    ///
    /// # Errors
    /// The reason why not. The store then exits, as it did before, and the bus serves the registration from there.
    fn assign(&self, at: &Match, event: &EventFd) -> Result<(), Refusal>;

    /// Ends what `assign` with the same arguments started. After it returns, the backend signals `event` for no store
    /// that `at` matches.
    ///
    /// # Errors
    /// `ENOENT` when nothing of the kind is assigned.
    fn deassign(&self, at: &Match, event: &EventFd) -> Result<(), Errno>;
}

/// Why a backend does not serve a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no backend: the bus was made with [`IoeventBus::userspace`](crate::IoeventBus::userspace).
    #[error("there is no kernel backend")]
    NoBackend,
    /// The kernel refused. Among others: `EEXIST` when a colliding ioeventfd was registered past the bus, `ENOSPC` when
    /// the kernel's I/O bus is full, `EMFILE` and `ENOMEM` when a limit of the process is reached, `EPERM` or `ENOSYS`
    /// from a seccomp filter.
    ///
    /// After `EEXIST` the stores that the foreign registration matches do not exit: they signal *its* eventfd and are
    /// lost to this registration. The rest exits and is served.
    #[error("the kernel refused: {0}")]
    Kernel(Errno),
}

/// No backend: every registration is served from the exit path.
///
/// For hosts without KVM, for hypervisors without ioeventfds, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBackend;

impl Backend for NoBackend {
    fn assign(&self, _at: &Match, _event: &EventFd) -> Result<(), Refusal> {
        Err(Refusal::NoBackend)
    }

    fn deassign(&self, _at: &Match, _event: &EventFd) -> Result<(), Errno> {
        Err(errno(Code::NOENT))
    }
}
