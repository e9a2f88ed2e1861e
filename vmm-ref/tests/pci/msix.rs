// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vectors of a device with MSI-X, on real KVM: masks, pending bits, and the way back to INTx.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use interrupt_core::forward::{Connection, DeviceInterrupt, DeviceIrq, GuestLine};
use interrupt_core::testing::RecordingPin;
use interrupt_core::{Gsi, Line, LoweredBy};
use kvm_irqfd::{KvmInterrupts, Route, SPLIT_PINS, enable_split_irqchip};
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_intx::{Intx, ModelIntx, Relay};
use vmm_ref::composition::options::Source;
use vmm_ref::passthrough::path_changes::PathChanges;
use vmm_ref::pci::device::{Area, BAR0_REGION, PciDevice};
use vmm_ref::pci::msix::{Capability, Msix, WithMsix};
use vmm_ref::vm::ending::Ending;
use vmm_ref::vm::irqchip::Controllers;
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};
use vmm_sys_util::eventfd::EventFd;

pub fn tests(suite: Suite) -> Suite {
    let needs = [Need::SplitIrqchip];
    suite
        .test("a_masked_vector_keeps_its_pending_bit", &needs, pending)
        .test("msix_replaces_intx_until_it_is_disabled", &needs, replaces_intx)
        .test("a_device_with_all_vectors_is_served", &needs, all_vectors)
        .test("a_path_changes_while_msix_is_enabled", &needs, changes_path)
        .test("no_access_to_the_table_reaches_the_devices", &needs, any_width)
        .test("the_pages_of_the_table_are_no_memory_of_the_guest", &needs, traps)
}

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;
const VECTORS: u16 = 3;
const FIRST: Gsi = Gsi(SPLIT_PINS);
const TABLE: u64 = 0x1000;
const PENDING: u64 = 0x3000;

/// A device with one BAR of 16 KiB, mapped, that keeps the eventfds of its vectors.
#[derive(Debug)]
struct Model {
    triggers: Mutex<Vec<EventFd>>,
    intx: Arc<ModelIntx>,
    /// The offset and the size of each write.
    written: Mutex<Vec<(u64, usize)>>,
}

impl PciDevice for Model {
    fn label(&self) -> &str {
        "model"
    }
    fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        Arc::<ModelIntx>::clone(&self.intx)
    }
    fn irq(&self) -> Option<DeviceIrq> {
        None
    }
    fn bar_size(&self, _: u8) -> io::Result<u64> {
        Ok(0x4000)
    }
    fn areas(&self, _: u8) -> Vec<Area> {
        let (offset, size, address) = (0, 0x4000, 0x7000_0000);
        vec![Area { offset, size, address }]
    }
    fn read(&self, _: u32, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0xaa);
        Ok(())
    }
    fn write(&self, _: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.written.lock().unwrap().push((offset, data.len()));
        Ok(())
    }
    fn has_messages(&self) -> bool {
        true
    }
    fn set_messages(&self, triggers: &[EventFd]) -> io::Result<()> {
        let triggers = triggers.iter().map(EventFd::try_clone).collect::<io::Result<_>>()?;
        *self.triggers.lock().unwrap() = triggers;
        Ok(())
    }
    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
    fn is_gone(&self, _: &io::Error) -> bool {
        false
    }
}

struct Card {
    model: Arc<Model>,
    device: WithMsix,
    msix: Arc<Msix>,
    interrupts: KvmInterrupts,
    intx: Arc<Intx>,
    ending: Arc<Ending>,
    connection: Connection,
    /// It has nothing to carry here.
    _relay: Relay,
}

impl Card {
    /// A device whose INTx is enabled, on a split irqchip with one vCPU.
    fn new() -> Self {
        Self::with(VECTORS)
    }

    fn with(vectors: u16) -> Self {
        let kvm = open_kvm(Path::new(DEV_KVM)).unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        enable_split_irqchip(&vm, SPLIT_PINS).unwrap();
        let interrupts = KvmInterrupts::new(vm).unwrap();
        let model = Arc::new(Model {
            triggers: Mutex::default(),
            intx: Arc::new(ModelIntx::new("model")),
            written: Mutex::default(),
        });
        let (intx, relay) = Intx::new(model.interrupt()).unwrap();
        let intx = Arc::new(intx);
        let line = Line::new(Gsi(20), RecordingPin::default());
        let source = Arc::new(line.source("model", LoweredBy::Eoi));
        let connection = Connection::new(Arc::<Intx>::clone(&intx));
        let guest = GuestLine::relay(source, line, "the line is in this process");
        connection.set_consumer(Some(Arc::new(guest))).unwrap();
        intx.enable().unwrap();
        let capability = Capability {
            control: 0x82,
            vectors,
            table: (0, TABLE),
            pending: (0, if vectors == VECTORS { PENDING } else { 0xa000 }),
        };
        let ending = Ending::new().unwrap();
        let (device, ends) = (Arc::<Model>::clone(&model), Arc::clone(&ending));
        let msix = Msix::new(
            capability,
            device,
            Arc::downgrade(&intx),
            interrupts.clone(),
            FIRST,
            ends,
        );
        let (device, msix) = (Arc::<Model>::clone(&model), Arc::new(msix));
        Self {
            device: WithMsix::new(device, Arc::clone(&msix)),
            model,
            msix,
            interrupts,
            intx,
            ending,
            connection,
            _relay: relay,
        }
    }

    fn load(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(BAR0_REGION, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn store(&self, offset: u64, words: &[u32]) {
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (at, bytes) in (offset..).step_by(8).zip(data.chunks(8)) {
            self.device.write(BAR0_REGION, at, bytes).unwrap();
        }
    }

    fn signal(&self, vector: usize) {
        self.model.triggers.lock().unwrap()[vector].write(1).unwrap();
    }

    fn pending(&self) -> u32 {
        self.load(PENDING)
    }
}

fn pending() {
    let card = Card::new();
    card.msix.set_control(ENABLE);
    assert_eq!(card.msix.control(), ENABLE | (VECTORS - 1));
    assert_eq!(card.load(TABLE + 16 + 12), 1, "masked after a reset");
    card.signal(1);
    assert_eq!(card.pending(), 0b010);
    card.store(TABLE + 16, &[0xfee0_0000, 0, 0x41, 0]);
    assert_eq!(card.pending(), 0, "KVM has taken it");
    let message = Route::Msi {
        address: 0xfee0_0000,
        data: 0x41,
        device: None,
    };
    assert_eq!(card.interrupts.routes().get(Gsi(FIRST.0 + 1)), [message]);
    card.signal(1);
    assert_eq!(card.pending(), 0);
    // The function's mask is that of all vectors.
    card.msix.set_control(ENABLE | MASK_ALL);
    card.signal(1);
    card.signal(2);
    assert_eq!(card.pending(), 0b110);
    card.msix.set_control(ENABLE);
    assert_eq!(card.pending(), 0b100, "vector 2 has a mask of its own");
    // The pending bits cannot be written, and there is nothing behind the table.
    card.store(PENDING, &[0, 0]);
    assert_eq!(card.pending(), 0b100);
    assert_eq!(card.load(TABLE + u64::from(VECTORS) * 16), 0xaaaa_aaaa, "the device's");
    assert_eq!(card.ending.ended(), None);
}

fn replaces_intx() {
    let card = Card::new();
    assert!(card.model.intx.is_enabled());
    for times in 1..=3 {
        card.msix.set_control(ENABLE);
        assert!(!card.model.intx.is_enabled() && card.intx.save().msi);
        assert_eq!(card.model.triggers.lock().unwrap().len(), usize::from(VECTORS));
        card.msix.set_control(0);
        assert!(card.model.intx.is_enabled() && !card.intx.save().msi);
        assert!(card.model.triggers.lock().unwrap().is_empty());
        assert!(card.interrupts.routes().get(FIRST).is_empty());
        assert_eq!(card.msix.enabled(), times);
    }
    card.store(TABLE, &[1, 2, 3, 0]);
    card.msix.set_control(ENABLE);
    card.msix.reset();
    assert_eq!(
        (card.msix.control(), card.load(TABLE), card.load(TABLE + 12)),
        (VECTORS - 1, 0, 1)
    );
    assert!(card.model.intx.is_enabled());
    assert_eq!(card.ending.ended(), None);
}

/// Every vector has three descriptors while it is enabled, and many processes may have 1024.
fn all_vectors() {
    let card = Card::with(256);
    card.msix.set_control(ENABLE);
    let failure = card.ending.take_failure().map(|error| error.to_string());
    assert_eq!(failure, None);
    assert_eq!(card.interrupts.routes().get(Gsi(FIRST.0 + 255)).len(), 1);
    for vector in 0..256 {
        card.store(TABLE + vector * 16, &[0xfee0_0000, 0, 0x41, 0]);
    }
    card.msix.set_control(0);
    assert!(card.interrupts.routes().get(Gsi(FIRST.0 + 255)).is_empty());
    assert_eq!(card.ending.ended(), None);
}

/// A card that shares its line with another one in INTx gets its changes of path while it uses MSI-X.
fn changes_path() {
    let card = Card::new();
    let controllers = Controllers::split(card.interrupts.clone()).unwrap();
    let source = controllers.source(Source::Irqfd, Gsi(20), "model".to_owned()).unwrap();
    card.connection
        .set_consumer(Some(controllers.line(Source::Irqfd, source, None)))
        .unwrap();
    let mut changes = PathChanges::new(&card.connection, 1).unwrap();
    for count in 1..=20 {
        card.msix.set_control(if count % 3 == 0 { 0 } else { ENABLE });
        changes.change(&card.connection, count).unwrap();
        assert_eq!(card.model.intx.is_enabled(), count % 3 == 0, "at {count}");
        card.intx.set_disintx(count % 2 == 0).unwrap();
        card.intx.reset(|| ()).unwrap();
        assert_eq!(card.model.intx.is_enabled(), count % 3 == 0, "after a reset at {count}");
    }
    assert_eq!(card.ending.ended(), None);
}

/// An access of another size than the table has, and one that begins in front of the table.
fn any_width() {
    let card = Card::new();
    let read = |offset, size| {
        let mut data = vec![0; size];
        card.device.read(BAR0_REGION, offset, &mut data).unwrap();
        data
    };
    let write = |offset, size| card.device.write(BAR0_REGION, offset, &vec![7; size]).unwrap();
    assert_eq!(read(TABLE - 4, 8), [0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 0]);
    write(TABLE - 4, 8);
    assert_eq!(*card.model.written.lock().unwrap(), [(TABLE - 4, 4)]);
    assert_eq!(card.load(TABLE), 0x0707_0707);
    for (offset, size) in [
        (TABLE + 12, 1),
        (TABLE + 14, 2),
        (TABLE + 2, 4),
        (TABLE - 2, 4),
        (PENDING, 1),
    ] {
        assert_eq!(read(offset, size), vec![0xff; size], "{size} at {offset:#x}");
        write(offset, size);
    }
    assert_eq!(card.model.written.lock().unwrap().len(), 1);
}

fn traps() {
    let card = Card::new();
    let areas: Vec<_> = card
        .device
        .areas(0)
        .iter()
        .map(|area| (area.offset, area.size, area.address))
        .collect();
    assert_eq!(areas, [(0, 0x1000, 0x7000_0000), (0x2000, 0x1000, 0x7000_2000)]);
}
