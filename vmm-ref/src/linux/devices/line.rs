// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's side of its line: the causes it has for an interrupt, the level that follows from them, and the EOIs it is told of.
//!
//! The law of a level (design law 1 and 12): the device owns it. The line is to be high while there is a cause, and whoever is told of
//! an EOI answers with the level that holds then. One function of [`DeviceLine`] decides all of it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, LevelSource, Listener};
use serde::Serialize;

use crate::error::Result;

/// What became of a device's line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// How often the line went from no cause to one.
    pub raised: u64,
    /// How often the device was told of an EOI: of its own interrupts, of those of devices that share the line, and of unmasks.
    pub eois: u64,
    /// How often it had a cause then, and stated its level again.
    pub restated: u64,
    /// How often a level could not be driven.
    pub errors: u64,
}

/// See the [module](self).
pub struct DeviceLine {
    source: Arc<dyn LevelSource>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    causes: u32,
    counts: Counts,
}

/// What happens to a line.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The device has these causes besides.
    Raise(u32),
    /// The guest has taken note of these, or they have gone.
    Clear(u32),
    /// The line was sampled.
    Eoi,
}

impl DeviceLine {
    /// The side of the device that `source` belongs to, without a cause.
    pub fn new(source: Arc<dyn LevelSource>) -> Arc<Self> {
        Arc::new(Self {
            source,
            state: Mutex::default(),
        })
    }

    /// Tells this line of the EOIs of its source, or of its GSI where `by_gsi`, until the guard is dropped.
    ///
    /// # Errors
    /// Those of the notifier.
    pub fn listen(self: &Arc<Self>, notifier: &dyn EoiNotifier, by_gsi: bool) -> Result<EoiGuard> {
        let subject: EoiScope = if by_gsi {
            self.gsi().into()
        } else {
            self.source.key().into()
        };
        let line = Arc::clone(self);
        Ok(notifier.subscribe(subject, Listener::callback(move |_| line.on(Event::Eoi)))?)
    }

    /// The device has these causes for an interrupt, besides those that it has already.
    pub fn raise(&self, causes: u32) {
        self.on(Event::Raise(causes));
    }

    /// These causes are gone.
    pub fn clear(&self, causes: u32) {
        self.on(Event::Clear(causes));
    }

    /// The causes that there are.
    pub fn causes(&self) -> u32 {
        self.state().causes
    }

    /// The line's number.
    pub fn gsi(&self) -> Gsi {
        self.source.gsi()
    }

    /// What has become of it so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The source is driven under the lock: else a level could be driven after a later one. No listener is called by that, and the one
    /// of this line is called without any lock of the controller.
    fn on(&self, event: Event) {
        let state = &mut *self.state();
        let was_high = state.causes != 0;
        match event {
            Event::Raise(causes) => state.causes |= causes,
            Event::Clear(causes) => state.causes &= !causes,
            Event::Eoi => state.counts.eois += 1,
        }
        let driven = match (event, was_high, state.causes != 0) {
            (Event::Eoi, _, true) => {
                state.counts.restated += 1;
                self.source.assert().map(drop)
            }
            (_, false, true) => {
                state.counts.raised += 1;
                self.source.assert().map(drop)
            }
            (_, true, false) => self.source.deassert().map(drop),
            (_, true, true) | (_, false, false) => Ok(()),
        };
        if driven.is_err() {
            state.counts.errors += 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole at every point where a panic could come from.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DeviceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}", self.source, self.state())
    }
}

#[cfg(test)]
mod tests {
    use interrupt_core::testing::RecordingPin;
    use interrupt_core::{Level, Line, LoweredBy};

    use super::*;

    const GSI: Gsi = Gsi(16);

    fn rig(lowered_by: LoweredBy) -> (Arc<Line<RecordingPin>>, Arc<DeviceLine>) {
        let line = Line::new(GSI, RecordingPin::default());
        let source = Arc::new(line.source("device", lowered_by));
        (line, DeviceLine::new(source))
    }

    #[test]
    fn the_level_follows_from_the_causes() {
        for lowered_by in [LoweredBy::Device, LoweredBy::Eoi] {
            let (line, device) = rig(lowered_by);
            device.raise(1);
            device.raise(2);
            device.clear(1);
            assert_eq!(line.level(), Level::High, "a cause is left");
            device.clear(2);
            assert_eq!(line.level(), Level::Low);
            assert_eq!(device.counts().raised, 1);
        }
    }

    #[test]
    fn an_eoi_is_answered_with_the_level_that_holds() {
        for lowered_by in [LoweredBy::Device, LoweredBy::Eoi] {
            let (line, device) = rig(lowered_by);
            let _guard = device.listen(&*line, false).unwrap();
            device.raise(1);
            assert_eq!(line.eoi().unwrap(), Level::High, "the cause is there yet");
            device.clear(1);
            assert_eq!(line.eoi().unwrap(), Level::Low);
            let counts = device.counts();
            assert_eq!((counts.raised, counts.eois, counts.restated), (1, 2, 1));
        }
    }

    #[test]
    fn sharers_of_a_line_each_state_their_own_level() {
        let line = Line::new(GSI, RecordingPin::default());
        let [one, other] = ["one", "other"].map(|label| DeviceLine::new(Arc::new(line.source(label, LoweredBy::Eoi))));
        let _guards = [&one, &other].map(|device| device.listen(&*line, false).unwrap());
        one.raise(1);
        other.raise(1);
        one.clear(1);
        assert_eq!(line.eoi().unwrap(), Level::High, "the other one's");
        assert_eq!([one.counts().restated, other.counts().restated], [0, 1]);
    }
}
