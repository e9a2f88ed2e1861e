// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vm-superio's `Trigger`, for devices that were written for it.

use std::sync::Arc;

use interrupt_core::LevelSource;
use vm_superio::Trigger;

use crate::EdgeIrqfd;

/// Each call is a pulse.
impl Trigger for EdgeIrqfd {
    type E = crate::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.signal()
    }
}

/// A level source, of whichever controller, as a [`Trigger`]: each call asserts the line.
///
/// vm-superio's devices know when to ask for an interrupt and not when to take it back, so the source has to be one that the EOI
/// lowers, and whoever listens to its EOIs asserts again while the device has a cause. With that a guest that leaves its
/// handler with a byte unread gets another interrupt, as it does from a real UART; a pulse would have been its last.
///
/// ```no_run
/// use std::sync::{Arc, Mutex};
/// use interrupt_core::{EoiNotifier, Gsi, LevelSource, Listener};
/// use kvm_irqfd::{KvmInterrupts, LevelTrigger};
/// use vm_superio::Serial;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let interrupts: KvmInterrupts = todo!();
/// let line = Arc::new(interrupts.resample_source(Gsi(4), "serial")?);
/// let serial = Arc::new(Mutex::new(Serial::new(LevelTrigger::from(line.clone()), std::io::stdout())));
///
/// let device = serial.clone();
/// let again = line.clone();
/// let _guard = interrupts.subscribe(line.key().into(), Listener::callback(move |_| {
///     let state = device.lock().unwrap().state();
///     if !state.in_buffer.is_empty() && state.interrupt_enable & 1 != 0 {
///         again.assert().ok();
///     }
/// }))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LevelTrigger(Arc<dyn LevelSource>);

impl LevelTrigger {
    /// The source.
    pub fn source(&self) -> &Arc<dyn LevelSource> {
        &self.0
    }
}

impl From<Arc<dyn LevelSource>> for LevelTrigger {
    fn from(source: Arc<dyn LevelSource>) -> Self {
        Self(source)
    }
}

impl<S: LevelSource + 'static> From<Arc<S>> for LevelTrigger {
    fn from(source: Arc<S>) -> Self {
        Self(source)
    }
}

impl Trigger for LevelTrigger {
    type E = interrupt_core::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.assert().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use interrupt_core::testing::{RecordingPin, RecordingSource};
    use interrupt_core::{EoiNotifier, Gsi, Level, Line, Listener, LoweredBy};
    use vm_superio::Serial;

    use super::*;

    const RECEIVED_DATA: u8 = 1;
    const INTERRUPT_ENABLE: u8 = 1;
    const DATA: u8 = 0;

    /// A serial port on a line of this process, which states its level at an EOI.
    #[test]
    fn a_byte_that_the_handler_leaves_is_another_interrupt() {
        let line = Line::new(Gsi(4), RecordingPin::default());
        let source = Arc::new(line.source("serial", LoweredBy::Eoi));
        let serial = Arc::new(Mutex::new(Serial::new(LevelTrigger::from(source.clone()), Vec::new())));
        let (device, again) = (Arc::clone(&serial), Arc::clone(&source));
        let listener = Listener::callback(move |_| {
            if !device.lock().unwrap().state().in_buffer.is_empty() {
                again.assert().unwrap();
            }
        });
        let _guard = line.subscribe(source.key().into(), listener).unwrap();

        serial.lock().unwrap().write(INTERRUPT_ENABLE, RECEIVED_DATA).unwrap();
        serial.lock().unwrap().enqueue_raw_bytes(b"ab").unwrap();
        assert_eq!(line.level(), Level::High);
        assert_eq!(serial.lock().unwrap().read(DATA), b'a');
        assert_eq!(line.eoi().unwrap(), Level::High, "one byte is left");
        assert_eq!(serial.lock().unwrap().read(DATA), b'b');
        assert_eq!(line.eoi().unwrap(), Level::Low);
    }

    #[test]
    fn a_source_that_fails_is_the_devices_error() {
        let source = Arc::new(RecordingSource::new(Gsi(4)));
        source.refuse_next(1);
        let trigger = LevelTrigger::from(Arc::clone(&source));
        assert_eq!(trigger.trigger().unwrap_err().errno(), Some(5));
        assert_eq!(source.level(), Level::Low);
    }
}
