// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The level source: one device's contribution to one line.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::gsi::Gsi;
use crate::key::SourceKey;
use crate::level::Delivery;

/// One device's contribution to the wired-OR of one GSI. A device uses its source through a
/// [`LevelInterrupt`](crate::LevelInterrupt).
///
/// There is one source for each device and GSI. Dropping the last reference ends the contribution.
///
/// The source owns its level (law 12): a device saves the level, and states it again after a restore.
pub trait LevelSource: fmt::Debug + Send + Sync {
    /// The key under which one EOI listener can be bound to this source.
    fn key(&self) -> SourceKey;

    /// The device's name, for people: "serial", "vfio 0000:00:02.0".
    fn label(&self) -> &str;

    /// Asserts the line. Asserting an asserted source has no effect, and is no error.
    ///
    /// An interrupt that a mask, an interrupt in service or a busy destination holds back is not lost: the guest takes it
    /// when the obstacle ends, if the source still asserts then, or asserts again when its listener is told.
    ///
    /// # Errors
    /// [`Error::Os`](crate::Error::Os) when the system call fails, and the errors of the pin. The source is then not
    /// asserted.
    fn assert(&self) -> Result<Delivery>;

    /// Ends the contribution: the device's cause is gone. A resample irqfd cannot be lowered from outside, so its
    /// contribution ends at the next EOI, and the guest still takes an interrupt that is under way, as on hardware when
    /// the cause ends late.
    ///
    /// # Errors
    /// [`Error::Os`](crate::Error::Os) when the system call fails, and the errors of the pin. The contribution has ended
    /// all the same, and the next operation on the line drives the level that holds then.
    fn deassert(&self) -> Result<()>;

    /// Ends the contribution at once, on every path: for a device reset or a hot unplug. The EOI listeners of other sources
    /// of the line may be told, to state their level.
    ///
    /// # Errors
    /// As for [`deassert`](Self::deassert).
    fn force_deassert(&self) -> Result<()>;

    /// The eventfd whose write asserts the line without this process, if the path has one. VFIO, vhost or another process
    /// can write a duplicate. The eventfd belongs to the source, and lives as long as the source.
    fn trigger(&self) -> Option<BorrowedFd<'_>>;

    /// The line's number.
    fn gsi(&self) -> Gsi {
        self.key().gsi()
    }
}
