// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM that has an IOAPIC of its own, as cloud-hypervisor does, and no KVM type in the IOAPIC. The VMM adds two
//! features: devices that are told of EOIs, and a registry that connects a device's interrupt and a line. The IOAPIC
//! keeps its redirection table, and uses a `Line` for each pin.
//!
//! All code of this file is the VMM's own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interrupt_core::forward::GuestLine;
use interrupt_core::forward::{self, EventfdId, Path, Registry};
use interrupt_core::testing::RecordingProducer;
use interrupt_core::{
    Delivery, EoiGuard, EoiNotifier, EoiScope, Error, Gsi, Level, LevelInterrupt, LevelSource, Line, Listener,
    LoweredBy, Pin, Result, WiredOr,
};

const PINS: u32 = 24;

/// A redirection-table entry, as far as this VMM's guests use it.
#[derive(Debug, Default)]
struct Entry {
    /// The state of the `Line`, under the entry's lock.
    or: WiredOr,
    vector: u8,
    remote_irr: bool,
}

/// One pin: the entry, and where messages go.
#[derive(Debug)]
struct OwnPin {
    entry: Mutex<Entry>,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Pin for OwnPin {
    type State = Entry;
    /// The vector to send.
    type Outcome = Option<u8>;

    fn lock(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wired_or<'a>(&self, entry: &'a mut Entry) -> &'a mut WiredOr {
        &mut entry.or
    }

    fn drive(&self, entry: &mut Entry, level: Level) -> Result<Option<u8>> {
        if level == Level::Low || entry.remote_irr {
            return Ok(None);
        }
        entry.remote_irr = true;
        Ok(Some(entry.vector))
    }

    fn deliver(&self, vector: Option<u8>) -> Result<Delivery> {
        let Some(vector) = vector else {
            return Ok(Delivery::Pending);
        };
        self.sent.lock().unwrap().push(vector);
        Ok(Delivery::Delivered(1))
    }
}

/// The VMM's IOAPIC.
#[derive(Debug)]
struct OwnIoapic {
    lines: Vec<Arc<Line<OwnPin>>>,
}

impl OwnIoapic {
    fn new(sent: &Arc<Mutex<Vec<u8>>>) -> Self {
        let pin = |gsi| {
            let (entry, sent) = (Mutex::default(), sent.clone());
            Line::new(Gsi(gsi), OwnPin { entry, sent })
        };
        Self {
            lines: (0..PINS).map(pin).collect(),
        }
    }

    fn source(&self, gsi: Gsi, label: &str) -> Arc<dyn LevelSource> {
        Arc::new(self.lines[gsi.0 as usize].source(label, LoweredBy::Eoi))
    }

    /// The guest's write to the redirection table.
    fn set_vector(&self, gsi: Gsi, vector: u8) {
        self.lines[gsi.0 as usize].pin().entry.lock().unwrap().vector = vector;
    }

    /// A LAPIC has ended `vector`.
    fn end_of_interrupt(&self, vector: u8) -> Result<()> {
        for line in &self.lines {
            let mut entry = line.pin().entry.lock().unwrap();
            if entry.vector == vector && entry.remote_irr {
                entry.remote_irr = false;
                drop(entry);
                line.eoi()?;
            }
        }
        Ok(())
    }
}

impl EoiNotifier for OwnIoapic {
    fn subscribe(&self, subject: EoiScope, listener: Listener) -> Result<EoiGuard> {
        match self.lines.get(subject.gsi().0 as usize) {
            Some(line) => line.subscribe(subject, listener),
            None => Err(Error::NotFound {
                operation: "subscribe",
                subject,
            }),
        }
    }
}

fn main() -> Result<()> {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let ioapic = OwnIoapic::new(&sent);
    ioapic.set_vector(Gsi(11), 0x31);

    // Two devices share pin 11; the disk has two requests, one cause each.
    let disk = LevelInterrupt::new(ioapic.source(Gsi(11), "disk"), &ioapic)?;
    let net = LevelInterrupt::new(ioapic.source(Gsi(11), "net"), &ioapic)?;
    disk.raise(0b11)?;
    net.set_level(true)?;
    let line = &ioapic.lines[11];
    assert_eq!(format!("{line:?}"), "gsi 11: disk high, net high");

    // The guest's handler serves the net and one request of the disk's.
    net.set_level(false)?;
    disk.clear(0b01)?;
    ioapic.end_of_interrupt(0x31)?;
    assert_eq!(
        *sent.lock().unwrap(),
        [0x31, 0x31],
        "the disk has stated its level: another interrupt"
    );
    assert_eq!(format!("{line:?}"), "gsi 11: disk high, net low");

    disk.clear(0b10)?;
    ioapic.end_of_interrupt(0x31)?;
    assert_eq!(sent.lock().unwrap().len(), 2, "no cause, no interrupt");
    assert_eq!(line.level(), Level::Low);

    // An EOI of a vector that no pin has changes nothing.
    ioapic.end_of_interrupt(0x99)?;
    disk.raise(0b01)?;
    drop(disk);
    ioapic.end_of_interrupt(0x31)?;
    assert_eq!(
        sent.lock().unwrap().len(),
        3,
        "the disk is gone, so nobody asserts again"
    );
    let error = ioapic
        .subscribe(Gsi(99).into(), Listener::callback(|_| {}))
        .unwrap_err();
    assert_eq!(error.errno(), Some(2), "{error}");
    println!("3 interrupts from an IOAPIC of the VMM's own, with its devices told of each EOI");
    bring_together(Arc::new(ioapic))
}

/// A device's interrupt and a line of this IOAPIC find each other by the eventfd that they share, in either order. This
/// IOAPIC is not in the kernel, so the interrupt is relayed, and the registry reports that.
fn bring_together(ioapic: Arc<OwnIoapic>) -> Result<()> {
    const EVENT: EventfdId = EventfdId(7);
    fn refused<T>(error: forward::Error) -> T {
        panic!("{error}")
    }
    let source = ioapic.source(Gsi(5), "passthrough");
    let line = GuestLine::relay(source, ioapic, "the VMM has its own IOAPIC");
    let device = Arc::new(RecordingProducer::new("passthrough"));
    let registry = Registry::default();

    let line_is_here = registry.add_consumer(EVENT, Arc::new(line)).unwrap_or_else(refused);
    let connection = registry.connection(EVENT).unwrap_or_else(refused);
    assert_eq!(connection.path(), None, "there is no device yet");
    let device_is_here = registry.add_producer(EVENT, device.clone()).unwrap_or_else(refused);
    assert_eq!(connection.path(), Some(Path::Relay));
    for explanation in registry.explain() {
        println!("{explanation}");
    }
    drop(line_is_here);
    assert_eq!(
        connection.path(),
        None,
        "and neither does one that has lost its line lead anywhere"
    );
    drop(device_is_here);
    Ok(())
}
