// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table as vCPU threads see it while another thread changes it.
//!
//! There are two copies of the table. Readers look things up in the active copy; the other is the writer's. To make a
//! change, the writer changes its own copy, swaps the two, waits until the last reader has left the copy that is now
//! the writer's, and makes the same change there. So a reader takes no lock and sees all of a change or none of it; the
//! cost of a change does not grow with the table; and once [`Published::change`] returns, no reader is left that saw
//! the table before the change. The last of these makes a removal final.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use crate::error::Error;
use crate::table::{Change, Table};

#[derive(Debug)]
pub(crate) struct Published {
    active: ArcSwap<Table>,
    /// The writer's copy. Between changes it equals the active copy, and nobody else holds it.
    own: Mutex<Arc<Table>>,
}

impl Published {
    pub(crate) fn new() -> Self {
        Self {
            active: ArcSwap::from_pointee(Table::new()),
            own: Mutex::new(Arc::new(Table::new())),
        }
    }

    /// The table of this moment. A writer waits for the guard to go: hold it for one lookup, and change nothing
    /// meanwhile.
    #[inline]
    pub(crate) fn read(&self) -> Guard<Arc<Table>> {
        self.active.load()
    }

    /// Makes all of `changes` visible at once, and returns when no reader can act on the table before them any more.
    /// `before` runs when the changes are known to be possible, and before a reader sees them.
    ///
    /// # Errors
    /// [`Error::Collision`], or the error of `before`. Then no reader ever saw a change.
    pub(crate) fn change(&self, changes: &[Change], before: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        // `make_mut` never copies: nobody else holds the writer's copy.
        let table = Arc::make_mut(&mut own);
        let mut made = 0;
        let possible = changes.iter().try_for_each(|change| {
            table.apply(change)?;
            made += 1;
            Ok(())
        });
        if let Err(error) = possible.and_then(|()| before()) {
            for change in changes[..made].iter().rev() {
                table.undo(change);
            }
            return Err(error);
        }
        let previous = self.active.swap(Arc::clone(&own));
        *own = previous;
        wait_until_alone(&mut own);
        let table = Arc::make_mut(&mut own);
        // The copies are equal, so what was possible there is possible here.
        changes.iter().try_for_each(|change| table.apply(change))
    }
}

/// `ArcSwap::swap` has turned every guard on the table it returned into a counted reference, and no new ones can come.
fn wait_until_alone(table: &mut Arc<Table>) {
    let mut turn = 0;
    while Arc::get_mut(table).is_none() {
        match turn {
            // A lookup takes some ns, the write to an eventfd some hundred.
            0..64 => std::hint::spin_loop(),
            64..128 => std::thread::yield_now(),
            // The reader was preempted, perhaps by this very thread at a real-time priority: get out of its way.
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
        turn += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::matching::{Length, Match, Space};
    use crate::table::Entry;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use vmm_sys_util::eventfd::EventFd;

    fn entry(at: Match) -> Entry {
        let event = Event::new(Arc::new(EventFd::new(0).unwrap())).unwrap();
        Entry { at, event }
    }

    #[test]
    fn a_change_returns_only_when_earlier_readers_have_left() {
        let published = Published::new();
        let port = entry(Match::pio(0x80, Length::Any));
        published.change(&[Change::Insert(port.clone())], || Ok(())).unwrap();

        let (reading, is_reading) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        let changed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (published, changed) = (&published, &changed);
            scope.spawn(move || {
                let table = published.read();
                reading.send(()).unwrap();
                may_leave.recv().unwrap();
                // Time for a writer that does not wait to give itself away.
                std::thread::sleep(Duration::from_millis(20));
                assert!(
                    !changed.load(Ordering::SeqCst),
                    "the writer did not wait for the reader"
                );
                assert!(
                    table.find(Space::Pio, 0x80, &[0]).is_some(),
                    "the reader's table changed under it"
                );
            });
            is_reading.recv().unwrap();
            scope.spawn(|| {
                published.change(&[Change::Remove(port)], || Ok(())).unwrap();
                changed.store(true, Ordering::SeqCst);
            });
            // The new table is visible before the old reader has left, and not only after.
            while published.read().find(Space::Pio, 0x80, &[0]).is_some() {
                std::thread::yield_now();
            }
            leave.send(()).unwrap();
        });
        assert!(changed.load(Ordering::SeqCst));
    }

    #[test]
    fn a_reader_sees_all_of_a_change_or_none() {
        let published = Published::new();
        let [here, there] = [0x1000, 0x2000].map(|address| entry(Match::mmio(address, Length::Any)));
        let insert = |entry: &Entry| Change::Insert(entry.clone());
        let move_on = |from: &Entry, to| [Change::Remove(from.clone()), insert(to)];
        published.change(&[insert(&here)], || Ok(())).unwrap();
        let done = AtomicBool::new(false);
        let (mut at_here, mut at_there) = (0u32, 0u32);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2000 {
                    published.change(&move_on(&here, &there), || Ok(())).unwrap();
                    published.change(&move_on(&there, &here), || Ok(())).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let table = published.read();
                let found = [&here, &there].map(|entry| table.find(Space::Mmio, entry.at.address, &[0]).is_some());
                match found {
                    [true, false] => at_here += 1,
                    [false, true] => at_there += 1,
                    _ => panic!("the table shows a change half done: {found:?}"),
                }
            }
        });
        assert!(
            at_here > 0 && at_there > 0,
            "the reader never ran beside the writer: {at_here}, {at_there}"
        );
    }
}
