// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rows of a vGIC.

use std::sync::Arc;
use std::time::Duration;

use interrupt_core::{EoiNotifier, EoiScope, Gsi, LevelSource, Listener, Msi, MsiOutput};
use kvm_bindings::{KVM_MSI_VALID_DEVID, kvm_msi};
use kvm_irqfd::{GicV3, KvmInterrupts, Reason, Route, enable_split_irqchip};
use testkit::gic::ITS;
use testkit::gic_its::{FIRST_LPI, TRANSLATER};
use testkit::gic_machine::GicMachine;
use testkit::harness::{Suite, differs};
use testkit::need::Need;
use testkit::rig::{LEVEL, MASKED};

use crate::common::{GIC, eventfd, gic_machine, taken, to_pin};

const PIN: u32 = 18;
const GSI: Gsi = Gsi(PIN);
const VECTOR: u8 = 0x51;
const SPI: u32 = LEVEL as u32 | VECTOR as u32;
const EDGE_SPI: u32 = VECTOR as u32;

/// An irqfd drives a pin from a work queue, in about 10 us.
const SOON: Duration = Duration::from_secs(5);
/// Time enough for what must not come.
const LOOK: Duration = Duration::from_millis(5);

pub fn suite() -> Suite {
    let needs = GicMachine::NEEDS;
    Suite::new("kvm-irqfd::gic")
        .test("row_170_the_vgic_is_made_in_one_order", needs, row_170)
        .test("row_171_an_unmask_injects_and_asks_nobody", needs, row_171)
        .test("row_172_a_level_in_service_is_not_delivered_again", needs, row_172)
        .test("row_173_eoi_mode_1_notifies_at_the_deactivation", needs, row_173)
        .test("row_174_an_edge_spi_is_delivered_and_never_told", needs, row_174)
        .test("row_175_an_assertion_before_the_set_up_is_delivered", needs, row_175)
        .test("row_176_irq_line_drives_an_spi", needs, row_176)
        .test("row_177_what_a_gic_cannot_do_is_refused", needs, row_177)
        .test("row_178_taken_and_ended_without_an_exit", needs, row_178)
        .test("row_179_a_routed_message_is_an_lpi", needs, row_179)
        .test("row_180_a_sent_message_is_an_lpi", needs, row_180)
}

/// A level source, and the eventfd that is told of its EOIs.
struct Line {
    source: Arc<dyn LevelSource>,
    eoi: std::os::fd::OwnedFd,
    _guard: interrupt_core::EoiGuard,
}

impl Line {
    fn new(interrupts: &KvmInterrupts) -> Self {
        let (source, eoi) = (interrupts.resample_source(GSI, "device").unwrap(), eventfd());
        let listener = Listener::fd(eoi.try_clone().unwrap());
        let _guard = interrupts.subscribe(source.key().into(), listener).unwrap();
        Self { source, eoi, _guard }
    }

    fn n(&self) -> u64 {
        taken(&self.eoi)
    }
}

fn set_up() -> (GicMachine, KvmInterrupts) {
    let machine = gic_machine();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    (machine, interrupts)
}

/// Waits until the line is high at the GIC, whether or not the CPU is to take it.
fn arrives(machine: &mut GicMachine) {
    let patience = testkit::patience::Patience::new(SOON);
    while !machine.irr(PIN) {
        assert!(!patience.is_over(), "the assertion does not reach the GIC");
    }
}

/// No vGIC, or one that is not initialised: EAGAIN, and the text says what to do. After the initialisation KVM makes no
/// vCPU.
fn row_170() {
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    let vm = Arc::new(kvm.create_vm().unwrap());
    let error = KvmInterrupts::new(vm).unwrap_err();
    assert!(matches!(error.reason, Reason::NotInitialised), "{error}");
    assert_eq!(error.errno(), Some(libc::EAGAIN));
    assert!(error.to_string().contains("KVM_DEV_ARM_VGIC_CTRL_INIT"), "{error}");

    let (machine, interrupts) = set_up();
    assert_eq!(interrupts.irqchip(), interrupt_core::Irqchip::Kernel);
    let error = machine.vm().create_vcpu(1).map(drop).unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    let error = GIC.create(machine.vm()).map(drop).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
}

/// A level that waits behind a disabled SPI is delivered when the guest enables the SPI. No source is asked for its
/// level then, as an IOAPIC does (row 32).
fn row_171() {
    let (mut machine, interrupts) = set_up();
    let line = Line::new(&interrupts);
    machine.write_rte_low(PIN, SPI | MASKED as u32);
    line.source.assert().unwrap();
    arrives(&mut machine);
    assert_eq!(machine.accept_within(LOOK), None);
    machine.write_rte_low(PIN, SPI);
    assert_eq!(line.n(), 0, "asked at the unmask");
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    machine.eoi();
    assert_eq!(line.n(), 1);
    assert!(!machine.irr(PIN) && !machine.is_active(PIN));
}

/// A level that is high while its interrupt is active is no second interrupt: KVM offers no active and pending level to
/// the CPU. The EOI lowers the line and tells its source; a source that asserts again then gives one more.
fn row_172() {
    let (mut machine, interrupts) = set_up();
    let line = Line::new(&interrupts);
    machine.write_rte_low(PIN, SPI);
    line.source.assert().unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    line.source.assert().unwrap();
    assert_eq!(machine.accept_within(LOOK), None, "active and pending");
    assert!(machine.is_active(PIN));
    assert_eq!(line.n(), 0);
    machine.eoi();
    assert_eq!(line.n(), 1);
    assert_eq!(
        machine.accept_within(LOOK),
        None,
        "the assertion in service ended with it"
    );
    line.source.assert().unwrap();
    assert_eq!(machine.accept_within(SOON), Some(VECTOR));
    machine.eoi();
    assert_eq!(line.n(), 1);
}

/// In EOImode 1 a write of ICC_EOIR1_EL1 drops the priority and tells nobody. The write of ICC_DIR_EL1 ends the
/// interrupt, and tells.
fn row_173() {
    let (mut machine, interrupts) = set_up();
    let line = Line::new(&interrupts);
    machine.set_eoi_mode_1();
    machine.write_rte_low(PIN, SPI);
    for round in 0..3 {
        line.source.assert().unwrap();
        assert_eq!(machine.accept_within(SOON), Some(VECTOR), "round {round}");
        machine.eoi();
        assert_eq!(line.n(), 0, "round {round}: told at the priority drop");
        assert!(machine.is_active(PIN), "round {round}");
        machine.deactivate(PIN);
        assert_eq!(line.n(), 1, "round {round}");
        assert!(!machine.is_active(PIN), "round {round}");
    }
    assert_eq!(machine.accept_within(LOOK), None);
}

/// An SPI that the guest has made edge-triggered: each signal is an interrupt, and KVM reports no EOI.
fn row_174() {
    let (mut machine, interrupts) = set_up();
    let line = Line::new(&interrupts);
    machine.write_rte_low(PIN, EDGE_SPI);
    for round in 0..3 {
        line.source.assert().unwrap();
        assert_eq!(machine.accept_within(SOON), Some(VECTOR), "round {round}");
        machine.eoi();
        assert_eq!(line.n(), 0, "round {round}");
    }
}

/// An assertion that comes before the guest has touched the SPI, whose reset state is edge-triggered and disabled. When
/// the guest has set the SPI up, the interrupt comes once and is told once, and the line goes round as any other.
fn row_175() {
    let (mut machine, interrupts) = set_up();
    let line = Line::new(&interrupts);
    line.source.assert().unwrap();
    arrives(&mut machine);
    machine.write_rte_low(PIN, SPI);
    for round in 0..3 {
        assert_eq!(machine.accept_within(SOON), Some(VECTOR), "round {round}");
        machine.eoi();
        assert_eq!(line.n(), 1, "round {round}");
        assert_eq!(machine.accept_within(LOOK), None, "round {round}");
        line.source.assert().unwrap();
    }
}

/// KVM_IRQ_LINE drives the SPI of its GSI and no other, the level stays until the device lowers it, and a listener of
/// the GSI is told of each EOI.
fn row_176() {
    let (mut machine, interrupts) = set_up();
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    let eoi = eventfd();
    let listener = Listener::fd(eoi.try_clone().unwrap());
    let _guard = interrupts.subscribe(EoiScope::Gsi(GSI), listener).unwrap();
    machine.write_rte_low(PIN, SPI);
    assert!(!machine.irr(PIN));
    source.assert().unwrap();
    assert!(machine.irr(PIN), "KVM_IRQ_LINE is synchronous");
    assert!(!machine.irr(PIN - 1) && !machine.irr(PIN + 1));
    for round in 0..3 {
        assert_eq!(machine.acknowledge(), Some(32 + PIN), "round {round}");
        machine.eoi();
        assert_eq!(taken(&eoi), 1, "round {round}");
        // KVM has lowered the line for the listener, and `dispatch` drives it again.
        assert_eq!(interrupts.dispatch(Some(Duration::ZERO)).unwrap(), 1);
        assert!(machine.irr(PIN), "round {round}: the level is lost");
    }
    source.deassert().unwrap();
    assert!(!machine.irr(PIN));
    assert_eq!(machine.acknowledge(), None);
}

/// Refused with a reason: a split GIC, a listener beside an edge irqfd in either order, a message without a device id, an
/// SPI that the GIC does not have, and KVM_IRQ_LINE on a GSI that leads to an SPI of another number, in either order:
/// KVM_IRQ_LINE follows no route.
fn row_177() {
    let (machine, interrupts) = set_up();
    let error = enable_split_irqchip(machine.vm(), 24).unwrap_err();
    assert!(matches!(error.reason, Reason::GicIsWhole), "{error}");
    let error = interrupts.split_source(GSI, "device").unwrap_err();
    assert!(matches!(error.reason, Reason::NotSplit), "{error}");

    let listen = || interrupts.subscribe(EoiScope::Gsi(GSI), Listener::fd(eventfd()));
    let edge = interrupts.edge_irqfd(GSI).unwrap();
    let error = listen().unwrap_err().to_string();
    assert!(error.contains("edge-triggered SPI"), "{error}");
    drop(edge);
    let guard = listen().unwrap();
    let error = interrupts.edge_irqfd(GSI).unwrap_err();
    assert!(matches!(error.reason, Reason::EdgeSpi), "{error}");
    drop(guard);
    drop(interrupts.edge_irqfd(GSI).unwrap());

    let message = |device| Route::Msi {
        address: TRANSLATER,
        data: 0,
        device,
    };
    let mut routing = interrupts.routing();
    let error = routing.set(Gsi(300), &[message(None)]).unwrap_err();
    assert!(matches!(error.reason, Reason::Route(_)), "{error}");
    routing.set(Gsi(300), &[message(Some(8))]).unwrap();
    routing.commit().unwrap();
    drop(interrupts.edge_irqfd(Gsi(300)).unwrap());
    let error = interrupts.resample_source(Gsi(GIC.spis), "device").unwrap_err();
    assert!(matches!(error.reason, Reason::UnknownGsi), "{error}");

    let other = [to_pin(PIN + 1)];
    let lead_elsewhere = || {
        let mut routing = interrupts.routing();
        routing.set(Gsi(PIN + 1), &[]).unwrap();
        routing.set(GSI, &other).unwrap();
        routing.commit()
    };
    let line = interrupts.irq_line_source(GSI, "device").unwrap();
    let error = lead_elsewhere().unwrap_err();
    assert!(matches!(error.reason, Reason::Route(_)), "{error}");
    drop(line);
    lead_elsewhere().unwrap();
    let error = interrupts.irq_line_source(GSI, "device").map(drop).unwrap_err();
    assert!(matches!(error.reason, Reason::Route(_)), "{error}");
    drop(interrupts.resample_source(GSI, "device").unwrap());
}

/// The guest takes the SPI and ends it, and no exit comes in between. Since 1c3b3cadcd69 ("GICv3: Add SPI tracking to
/// handle asymmetric deactivation") KVM tells the EOI only of an SPI that was active at an exit: it does not see this
/// one, the line stays high, and the SPI is delivered again.
fn row_178() {
    let (mut machine, interrupts) = set_up();
    let line = Line::new(&interrupts);
    machine.write_rte_low(PIN, SPI);
    let mut untold = 0;
    for round in 0..3 {
        line.source.assert().unwrap();
        arrives(&mut machine);
        assert_eq!(machine.take_and_end(), Some(32 + PIN), "round {round}");
        if line.n() == 0 {
            untold += 1;
            assert_eq!(
                machine.accept(),
                Some(VECTOR),
                "round {round}: neither told nor delivered again"
            );
            machine.eoi();
            assert_eq!(line.n(), 1, "round {round}: an exit came in between");
        }
        assert!(!machine.irr(PIN) && !machine.is_active(PIN), "round {round}");
    }
    if untold > 0 {
        assert_eq!(Need::KernelAtLeast(6, 19).probe(), Ok(()), "told {untold} of 3 times");
        differs("not told: the line stays high, and the handler runs again until an exit interrupts it");
    }
}

const DEVICE: u32 = 8;
const MESSAGES: Gsi = Gsi(300);

/// A machine with an ITS, where event 0 of [`DEVICE`] is an LPI and event 1 is not mapped.
fn set_up_its() -> (GicMachine, KvmInterrupts) {
    let (mut machine, interrupts) = set_up();
    drop(GicV3::its(machine.vm(), ITS).unwrap());
    machine.map_lpi(DEVICE);
    (machine, interrupts)
}

fn route(interrupts: &KvmInterrupts, data: u32) {
    let device = Some(DEVICE);
    let address = TRANSLATER;
    let mut routing = interrupts.routing();
    routing.set(MESSAGES, &[Route::Msi { address, data, device }]).unwrap();
    routing.commit().unwrap();
}

fn acknowledge_within(machine: &mut GicMachine, limit: Duration) -> Option<u32> {
    let patience = testkit::patience::Patience::new(limit);
    loop {
        let taken = machine.acknowledge();
        if taken.is_some() || patience.is_over() {
            return taken;
        }
    }
}

/// An irqfd on a message with a device id raises the LPI to which the ITS maps the message. The mask keeps what is
/// signalled meanwhile, and an event that the guest has not mapped is dropped.
fn row_179() {
    let (mut machine, interrupts) = set_up_its();
    route(&interrupts, 0);
    let irqfd = interrupts.edge_irqfd(MESSAGES).unwrap();
    for round in 0..3 {
        irqfd.signal().unwrap();
        assert_eq!(acknowledge_within(&mut machine, SOON), Some(FIRST_LPI), "round {round}");
        machine.eoi();
    }
    irqfd.mask();
    irqfd.signal().unwrap();
    irqfd.signal().unwrap();
    assert_eq!(acknowledge_within(&mut machine, LOOK), None, "masked");
    irqfd.unmask().unwrap();
    assert_eq!(acknowledge_within(&mut machine, SOON), Some(FIRST_LPI), "unmasked");
    machine.eoi();

    route(&interrupts, 1);
    irqfd.signal().unwrap();
    assert_eq!(acknowledge_within(&mut machine, LOOK), None, "event 1 is not mapped");
    route(&interrupts, 0);
    irqfd.signal().unwrap();
    assert_eq!(acknowledge_within(&mut machine, SOON), Some(FIRST_LPI));
    machine.eoi();
    assert_eq!(acknowledge_within(&mut machine, LOOK), None);
}

/// KVM_SIGNAL_MSI raises the LPI before it returns, and answers 0 for an event that is not mapped. Without a device id
/// it is refused: by KVM with EINVAL, and here by name.
fn row_180() {
    let (mut machine, interrupts) = set_up_its();
    let message = |device: Option<u32>, data| kvm_msi {
        address_lo: TRANSLATER as u32,
        data,
        flags: device.map_or(0, |_| KVM_MSI_VALID_DEVID),
        devid: device.unwrap_or(0),
        ..Default::default()
    };
    for round in 0..3 {
        let sent = machine.vm().signal_msi(message(Some(DEVICE), 0)).unwrap();
        assert_eq!(sent, 1, "round {round}");
        assert_eq!(machine.acknowledge(), Some(FIRST_LPI), "round {round}");
        machine.eoi();
    }
    assert_eq!(machine.vm().signal_msi(message(Some(DEVICE), 1)).unwrap(), 0);
    let refused = machine.vm().signal_msi(message(None, 0)).unwrap_err();
    assert_eq!(refused.errno(), libc::EINVAL);
    let (address, data) = (TRANSLATER, 0);
    let refused = interrupts.send_msi(MESSAGES, Msi { address, data }).unwrap_err();
    assert_eq!(refused.errno(), Some(libc::EINVAL));
    assert!(refused.to_string().contains("device id"), "{refused}");
    assert_eq!(machine.acknowledge(), None);
}
