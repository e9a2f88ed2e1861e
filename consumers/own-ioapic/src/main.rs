// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM that has an IOAPIC of its own, as firecracker and cloud-hypervisor do, and no KVM type in it. It wants what that lacks:
//! a device that can ask to be told of an EOI, and somebody who brings a device's interrupt and a line together. It keeps its
//! redirection table, and takes `Line` for each pin and the registry.
//!
//! Everything here but `Line` and the trait is the VMM's own code.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use interrupt_core::forward::GuestLine;
use interrupt_core::forward::{self, EventfdId, Path, Registry};
use interrupt_core::testing::RecordingProducer;
use interrupt_core::{
    Delivery, EoiGuard, EoiNotifier, EoiScope, Error, Gsi, Level, LevelSource, Line, LineSource, Listener, LoweredBy,
    Pin, Result,
};

const PINS: u32 = 24;

/// A redirection-table entry, as far as this VMM's guests use it.
#[derive(Debug, Default)]
struct Entry {
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
    /// The vector to send.
    type Outcome = Option<u8>;

    fn drive(&self, level: Level) -> Result<Option<u8>> {
        let mut entry = self.entry.lock().unwrap();
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

    fn source(&self, gsi: Gsi, label: &str) -> LineSource<OwnPin> {
        self.lines[gsi.0 as usize].source(label, LoweredBy::Eoi)
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

    // Two devices share pin 11; one of them has work for two interrupts.
    let (disk, net) = (Arc::new(ioapic.source(Gsi(11), "disk")), ioapic.source(Gsi(11), "net"));
    let requests = Arc::new(AtomicU32::new(2));
    let (again, left) = (disk.clone(), requests.clone());
    let guard = ioapic.subscribe(
        disk.key().into(),
        Listener::callback(move |_| {
            if left.load(Ordering::Relaxed) > 0 {
                again.assert().unwrap();
            }
        }),
    )?;
    disk.assert()?;
    assert_eq!(net.assert()?, Delivery::Coalesced, "the line is high already");
    assert_eq!(format!("{:?}", disk.line()), "gsi 11: disk high, net high");

    requests.fetch_sub(1, Ordering::Relaxed); // the guest's handler serves both, one request of the disk's
    ioapic.end_of_interrupt(0x31)?;
    assert_eq!(
        *sent.lock().unwrap(),
        [0x31, 0x31],
        "the disk has stated its level: another interrupt"
    );
    assert_eq!(net.level(), Level::Low, "the net's assertion was lowered with the line");

    requests.fetch_sub(1, Ordering::Relaxed);
    ioapic.end_of_interrupt(0x31)?;
    assert_eq!(sent.lock().unwrap().len(), 2, "no cause, no interrupt");
    assert_eq!(disk.line().level(), Level::Low);

    // An EOI of a vector that no pin has is nobody's; without its guard the listener is not told.
    ioapic.end_of_interrupt(0x99)?;
    drop(guard);
    requests.store(1, Ordering::Relaxed);
    disk.assert()?;
    ioapic.end_of_interrupt(0x31)?;
    assert_eq!(sent.lock().unwrap().len(), 3, "nobody listened, nobody asserted again");
    let error = ioapic
        .subscribe(Gsi(99).into(), Listener::callback(|_| {}))
        .unwrap_err();
    assert_eq!(error.errno(), Some(2), "{error}");
    println!("3 interrupts from an IOAPIC of the VMM's own, with its devices told of each EOI");
    bring_together(Arc::new(ioapic))
}

/// A device's interrupt and a line of this IOAPIC find each other by the eventfd that they share, in either order. This IOAPIC is
/// in no kernel, so that the interrupt is relayed, and the registry says so.
fn bring_together(ioapic: Arc<OwnIoapic>) -> Result<()> {
    const EVENT: EventfdId = EventfdId(7);
    fn refused<T>(error: forward::Error) -> T {
        panic!("{error}")
    }
    let source = Arc::new(ioapic.source(Gsi(5), "passthrough"));
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
