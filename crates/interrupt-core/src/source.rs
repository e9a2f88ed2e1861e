// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The level source: one device's contribution to one line.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::gsi::Gsi;
use crate::key::SourceKey;
use crate::level::Delivery;

/// One device's contribution to the wired-OR of one GSI.
///
/// There is one handle for each device and GSI. It is not `Clone`: a line is the OR of its sources, and two handles that
/// share one contribution would hide from each other. Dropping the last reference withdraws the contribution.
///
/// The source owns its level: a device saves its own idea of the level, and asserts again after a restore.
pub trait LevelSource: fmt::Debug + Send + Sync {
    /// The name under which one EOI listener can be bound to this source.
    fn key(&self) -> SourceKey;

    /// Who this is, for people: "serial", "vfio 0000:00:02.0".
    fn label(&self) -> &str;

    /// Asserts the line. Asserting an asserted source does nothing more, and is not an error.
    ///
    /// An interrupt that the pin's mask, an interrupt in service or a busy destination holds back is not lost: it is
    /// taken when that ends, as long as the source still asserts, or restates its level when its listener is told.
    ///
    /// # Errors
    /// [`Error::Os`](crate::Error::Os) when the system call behind it fails; the source is then not asserted.
    fn assert(&self) -> Result<Delivery>;

    /// Ends the contribution in the ordinary course: the device's cause is gone. A path that cannot lower its line from
    /// outside (a resample irqfd) loses the contribution at the next EOI; an interrupt that is under way then is still taken
    /// by the guest, as on hardware when the cause ends late.
    ///
    /// # Errors
    /// [`Error::Os`](crate::Error::Os) when the system call behind it fails; the contribution counts as ended, and the
    /// next operation on the line tries to drive the level that then holds.
    fn deassert(&self) -> Result<()>;

    /// Ends the contribution now, on every path and at any price: for a device reset or a hot unplug. Other sources of the
    /// line may be asked to restate their level through their EOI listeners.
    ///
    /// # Errors
    /// As for [`deassert`](Self::deassert).
    fn force_deassert(&self) -> Result<()>;

    /// The eventfd whose write asserts the line without this process taking part, where the path has one. It can be given
    /// to VFIO, to vhost or to another process; it stays the source's, and lives as long as the source.
    fn trigger(&self) -> Option<BorrowedFd<'_>>;

    /// The line's number.
    fn gsi(&self) -> Gsi {
        self.key().gsi()
    }
}
