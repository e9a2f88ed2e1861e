// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device with a level interrupt. Its cause persists until the guest has served all of its requests.
//!
//! The device is written against `interrupt-core` alone. The VMM chooses the source, the notifier and the thread that
//! tells of EOIs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::{EoiNotifier, LevelInterrupt, LevelSource, Result};

use super::guest::status::Registers;

/// See the [module](self).
#[derive(Debug)]
pub struct Device {
    interrupt: LevelInterrupt,
    registers: Registers,
    /// Held from reading the registers until the level is set from them.
    looking: Mutex<()>,
}

impl Device {
    /// Makes a device without a request, and subscribes it to the EOIs of its line at `notifier`.
    ///
    /// # Errors
    /// The notifier's.
    pub fn new(source: Arc<dyn LevelSource>, notifier: &dyn EoiNotifier, registers: Registers) -> Result<Self> {
        let line = source.gsi().into();
        Ok(Self {
            interrupt: LevelInterrupt::with_scope(source, notifier, line)?,
            registers,
            looking: Mutex::new(()),
        })
    }

    /// Adds a request and raises the interrupt.
    ///
    /// # Errors
    /// The source's. The request stays, and the level is tried again at the next EOI.
    pub fn request(&self) -> Result<()> {
        let _looking = self.look();
        self.registers.raised.fetch_add(1, Ordering::Release);
        self.interrupt.set_level(true)
    }

    /// Lowers the interrupt if all requests are served, and returns whether they are. Called at the guest's
    /// acknowledgement, and at an EOI before the listeners are notified.
    ///
    /// # Errors
    /// The source's.
    pub fn update(&self) -> Result<bool> {
        let _looking = self.look();
        let is_served = self.is_served();
        if is_served {
            self.interrupt.set_level(false)?;
        }
        Ok(is_served)
    }

    /// Whether the guest has served every request.
    pub fn is_served(&self) -> bool {
        self.registers.is_served()
    }

    /// How many requests the device has raised.
    pub fn raised(&self) -> u64 {
        self.registers.raised.load(Ordering::Relaxed).into()
    }

    /// How many of these requests the guest reports as served.
    pub fn serviced(&self) -> u64 {
        self.registers.serviced.load(Ordering::Acquire).into()
    }

    /// How often the device has asserted its source: once for each request, and once for each EOI that found an
    /// unserved request.
    pub fn asserted(&self) -> u64 {
        let counts = self.interrupt.counts();
        counts.raised + counts.reasserted
    }

    fn look(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use interrupt_core::testing::{ManualNotifier, RecordingSource};
    use interrupt_core::{Gsi, Level};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::roundtrip::guest::layout::MEMORY_SIZE;
    use crate::roundtrip::guest::status::Status;

    const GSI: Gsi = Gsi(5);

    struct Rig {
        device: Device,
        source: Arc<RecordingSource>,
        notifier: ManualNotifier,
        guest: Registers,
    }

    fn rig() -> Rig {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap());
        let status = Status::new(&memory).unwrap();
        let (source, notifier) = (Arc::new(RecordingSource::new(GSI)), ManualNotifier::default());
        let line: Arc<RecordingSource> = Arc::clone(&source);
        Rig {
            device: Device::new(line, &notifier, status.device(0).unwrap()).unwrap(),
            source,
            notifier,
            guest: status.device(0).unwrap(),
        }
    }

    impl Rig {
        fn serve(&self) {
            let raised = self.guest.raised.load(Ordering::Acquire);
            self.guest.serviced.store(raised, Ordering::Release);
        }
    }

    #[test]
    fn an_eoi_asserts_again_until_the_request_is_served() {
        let rig = rig();
        rig.device.request().unwrap();
        assert_eq!((rig.source.level(), rig.device.asserted()), (Level::High, 1));
        assert!(!rig.device.update().unwrap());
        rig.notifier.eoi(GSI).unwrap();
        assert_eq!((rig.source.asserts(), rig.device.asserted()), (2, 2));
        rig.serve();
        assert!(rig.device.update().unwrap());
        rig.notifier.eoi(GSI).unwrap();
        assert_eq!((rig.source.level(), rig.device.asserted()), (Level::Low, 2));
    }

    #[test]
    fn an_idle_device_does_not_answer_an_eoi() {
        let rig = rig();
        assert!(rig.device.update().unwrap());
        rig.notifier.eoi(GSI).unwrap();
        assert_eq!(rig.source.asserts(), 0);
    }

    #[test]
    fn a_request_that_the_source_refuses_is_asserted_at_the_next_eoi() {
        let rig = rig();
        rig.source.refuse_next(1);
        rig.device.request().unwrap_err();
        assert_eq!((rig.device.raised(), rig.source.level()), (1, Level::Low));
        rig.notifier.eoi(GSI).unwrap();
        assert_eq!(rig.source.level(), Level::High);
    }
}
