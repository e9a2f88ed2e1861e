// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The serial console: a 16550 on a level line. It prints to one file and reads from another.
//!
//! The chip model signals an interrupt as a pulse. This device derives a level: the line is high while the chip's
//! identification register names a cause. The register is read after each access.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use interrupt_core::LevelInterrupt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};

use crate::error::{Error, Result};
use crate::linux::devices::guest_counts::{GuestCount, GuestCounts};
use crate::vm::ending::{End, Ending};
use crate::vm::wake::Wake;

/// The bit of the identification register that is set while the chip has no cause for an interrupt.
const IIR_NONE: u8 = 1;

/// An unfinished line of output is printed after this time.
const PARTIAL_LINE: Duration = Duration::from_millis(20);

/// The buffered output is printed when it reaches this size.
const BUFFER_MAX: usize = 4096;

/// The serial port, shared by the guest's processors and the input thread.
pub struct Console {
    chip: Mutex<Serial<NoButton, Room, Output>>,
    interrupt: LevelInterrupt,
    wake: Arc<Wake>,
}

impl Console {
    /// A serial port that drives `interrupt` and prints to `out`. The run ends when the reader of `out` closes it.
    ///
    /// # Errors
    /// [`Error::System`] when the eventfd cannot be made.
    pub fn new(interrupt: LevelInterrupt, out: File, ending: Arc<Ending>) -> Result<Arc<Self>> {
        let wake = Arc::new(Wake::new()?);
        let output = Output {
            out,
            buffer: Vec::with_capacity(BUFFER_MAX),
            counts: GuestCounts::default(),
            wake: Arc::clone(&wake),
            ending,
        };
        Ok(Arc::new(Self {
            chip: Mutex::new(Serial::with_events(NoButton, Room(Arc::clone(&wake)), output)),
            interrupt,
            wake,
        }))
    }

    /// The port's interrupt.
    pub fn interrupt(&self) -> &LevelInterrupt {
        &self.interrupt
    }

    /// The counts that the guest last printed for the console's line and other lines.
    pub fn guest_count(&self, gsi: interrupt_core::Gsi) -> Option<GuestCount> {
        self.chip().writer().counts.of(gsi).cloned()
    }

    /// Starts passing `input` on to the guest.
    ///
    /// # Errors
    /// [`Error::System`] when the thread cannot be started.
    pub fn start(self: &Arc<Self>, input: File) -> Result<Input> {
        let stop = Arc::new(AtomicBool::new(false));
        let (console, stopped) = (Arc::clone(self), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || console.pass_on(input, &stopped))
            .map_err(|source| Error::System {
                step: "starting the console's thread",
                source,
            })?;
        Ok(Input {
            thread: Some(thread),
            console: Arc::clone(self),
            stop,
        })
    }

    fn chip(&self) -> MutexGuard<'_, Serial<NoButton, Room, Output>> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the interrupt to the chip's current level. The caller holds the chip's lock, which keeps levels in order.
    fn update_level(&self, chip: &Serial<NoButton, Room, Output>) {
        // `LevelInterrupt` counts a level that its source refuses, and retries at the next event.
        let _ = self
            .interrupt
            .set_level(chip.state().interrupt_identification & IIR_NONE == 0);
    }

    /// The input thread's loop.
    fn pass_on(&self, mut input: File, stop: &AtomicBool) {
        let mut buffer = [0; 64];
        // The part of the input that the chip has no room for yet.
        let mut waiting = 0..0;
        let (mut open, mut partial) = (true, false);
        while !stop.load(Ordering::Acquire) {
            let wants_input = open && waiting.is_empty();
            let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
            if wants_input {
                fds.push(PollFd::new(&input, PollFlags::IN));
            }
            let limit = Timespec {
                tv_sec: 0,
                tv_nsec: PARTIAL_LINE.subsec_nanos().into(),
            };
            let ready = match poll(&mut fds, partial.then_some(&limit)) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let has_input = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            let woken = !fds[0].revents().is_empty();
            drop(fds);
            if woken {
                self.wake.take();
                partial = true;
            }
            if ready == 0 {
                self.chip().writer_mut().pass_on();
                partial = false;
            }
            if has_input {
                match input.read(&mut buffer) {
                    Ok(0) => open = false,
                    Ok(count) => waiting = 0..count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => open = false,
                }
            }
            if !waiting.is_empty() {
                let mut chip = self.chip();
                // The chip's buffer is full. The guest's next read of it wakes this thread.
                waiting.start += chip.enqueue_raw_bytes(&buffer[waiting.clone()]).unwrap_or(0);
                self.update_level(&chip);
            }
        }
    }
}

/// Serves accesses of one byte. Other reads return ones, other writes are ignored.
impl DevicePio for Console {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            let mut chip = self.chip();
            *byte = chip.read(offset as u8);
            self.update_level(&chip);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let [byte] = data {
            let mut chip = self.chip();
            // Ignore the error: the output reports a closed file itself, and `NoButton` cannot fail.
            let _ = chip.write(offset as u8, *byte);
            self.update_level(&chip);
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serial console, {:?}", self.interrupt)
    }
}

/// The input thread. A drop ends the thread and prints the last buffered output.
#[derive(Debug)]
pub struct Input {
    thread: Option<JoinHandle<()>>,
    console: Arc<Console>,
    stop: Arc<AtomicBool>,
}

impl Drop for Input {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.console.wake.wake();
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic of the thread.
            let _ = thread.join();
        }
        self.console.chip().writer_mut().pass_on();
    }
}

/// The chip model's interrupt trigger. It does nothing, because the port reads the chip's level instead.
#[derive(Debug)]
struct NoButton;

impl Trigger for NoButton {
    type E = Infallible;

    fn trigger(&self) -> std::result::Result<(), Infallible> {
        Ok(())
    }
}

/// Wakes the input's thread when the chip has room again.
#[derive(Debug)]
struct Room(Arc<Wake>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.wake();
    }
}

/// The guest's output, gathered into lines, because the chip writes single bytes.
#[derive(Debug)]
struct Output {
    out: File,
    buffer: Vec<u8>,
    counts: GuestCounts,
    wake: Arc<Wake>,
    ending: Arc<Ending>,
}

impl Output {
    /// Prints the buffered output. A slow reader delays the guest, but not the end of the run.
    fn pass_on(&mut self) {
        let mut left = &self.buffer[..];
        while !left.is_empty() {
            match self.out.write(left) {
                Ok(written) if written > 0 => left = &left[written..],
                // The end of the run interrupts its processors.
                Err(error) if error.kind() == io::ErrorKind::Interrupted && self.ending.ended().is_none() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => break,
                Ok(_) | Err(_) => {
                    self.ending.end(End::ConsoleClosed);
                    break;
                }
            }
        }
        self.buffer.clear();
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.counts.take(byte);
            if self.buffer.is_empty() && byte != b'\n' {
                self.wake.wake();
            }
            self.buffer.push(byte);
            if byte == b'\n' || self.buffer.len() >= BUFFER_MAX {
                self.pass_on();
            }
        }
        Ok(bytes.len())
    }

    /// Does nothing: the chip calls it after each byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use interrupt_core::testing::RecordingPin;
    use interrupt_core::{Gsi, Level, Line, LoweredBy};

    use super::*;
    use crate::linux::boot::memory_map::COM1;

    const DATA: u16 = 0;
    const ENABLE: u16 = 1;
    const IDENTIFICATION: u16 = 2;
    const STATUS: u16 = 5;

    struct Rig {
        console: Arc<Console>,
        line: Arc<Line<RecordingPin>>,
        printed: File,
        ending: Arc<Ending>,
    }

    fn pipe() -> (File, File) {
        let (read, write): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
        (read.into(), write.into())
    }

    fn rig() -> Rig {
        let line = Line::new(Gsi(4), RecordingPin::default());
        let device = LevelInterrupt::new(Arc::new(line.source("serial", LoweredBy::Eoi)), &*line).unwrap();
        let ending = Ending::new().unwrap();
        let (printed, out) = pipe();
        let console = Console::new(device, out, Arc::clone(&ending)).unwrap();
        Rig {
            console,
            line,
            printed,
            ending,
        }
    }

    impl Rig {
        fn write(&self, register: u16, value: u8) {
            self.console.pio_write(PioAddress(COM1), register, &[value]);
        }

        fn read(&self, register: u16) -> u8 {
            let mut byte = [0];
            self.console.pio_read(PioAddress(COM1), register, &mut byte);
            byte[0]
        }
    }

    #[test]
    fn the_line_is_high_while_the_chip_names_a_cause() {
        let rig = rig();
        assert_eq!(rig.line.level(), Level::Low);
        rig.write(ENABLE, 2);
        assert_eq!(rig.line.level(), Level::High, "the transmitter is empty");
        assert_eq!(rig.read(IDENTIFICATION) & 0xf, 2);
        assert_eq!(rig.line.level(), Level::Low, "the guest has been told");
    }

    #[test]
    fn input_reaches_the_guest_and_more_than_the_chip_holds_waits() {
        let rig = rig();
        rig.write(ENABLE, 1);
        let (input, mut keyboard) = pipe();
        let thread = rig.console.start(input).unwrap();
        let typed: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
        keyboard.write_all(&typed).unwrap();
        let mut taken = Vec::new();
        while taken.len() < typed.len() {
            if rig.read(STATUS) & 1 == 1 {
                taken.push(rig.read(DATA));
            } else {
                thread::yield_now();
            }
        }
        assert_eq!(taken, typed);
        drop(thread);
    }

    #[test]
    fn output_shows_also_without_the_end_of_a_line() {
        let mut rig = rig();
        let (input, _keyboard) = pipe();
        let thread = rig.console.start(input).unwrap();
        b"login: ".iter().for_each(|byte| rig.write(DATA, *byte));
        let mut shown = [0; 7];
        rig.printed.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"login: ");
        drop(thread);
    }

    #[test]
    fn nobody_who_reads_is_the_end() {
        let rig = rig();
        drop(rig.printed);
        rig.console.pio_write(PioAddress(COM1), DATA, b"\n");
        assert_eq!(rig.ending.ended(), Some(End::ConsoleClosed));
    }

    #[test]
    fn an_access_that_is_no_byte_is_none() {
        let rig = rig();
        let mut wide = [0; 2];
        rig.console.pio_read(PioAddress(COM1), STATUS, &mut wide);
        assert_eq!(wide, [0xff; 2]);
        rig.console.pio_write(PioAddress(COM1), ENABLE, &[2, 0]);
        assert_eq!(rig.read(ENABLE), 0);
    }
}
