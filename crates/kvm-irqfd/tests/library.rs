// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this crate does where KVM is silent, wrong or dangerous, on real KVM: its refusals, its notifiers, its sharing,
//! its routing and its teardown. Rows are those of the conformance list.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use interrupt_core::forward::GuestLine;
use interrupt_core::forward::{DeviceIrq, EventfdId, ForwardIrq, Path, Registry};
use interrupt_core::testing::RecordingProducer;
#[cfg(target_arch = "x86_64")]
use interrupt_core::{Delivery, Irqchip};
use interrupt_core::{EoiGuard, EoiNotifier, EoiScope, Gsi, LevelSource, Listener, SourceKey};
use kvm_irqfd::{BindingKind, Committed, Error, HostForwarded, KvmInterrupts, KvmVfio, MAX_ROUTES, Reason, Route};
use rustix::event::{EventfdFlags, eventfd as new_eventfd};
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::process::fds;
use testkit::rig::{LEVEL, MASKED};

mod common;
use common::{ACCEPT, FREE, MESSAGE, Machine, PINS, eventfd, full, is_high, taken, to_pin, vmm_eventfd};

const FULL: &[Need] = &[Need::FullIrqchip];
#[cfg(target_arch = "x86_64")]
const ACCEPT_6_3: &[Need] = &[Need::AcceptMode, Need::KernelAtLeast(6, 3)];

/// A pin that no 8259 shares, and another one.
const PIN: u32 = 18;
const OTHER: u32 = 19;
const GSI: Gsi = Gsi(PIN);
const NEXT: Gsi = Gsi(FREE.0 + 1);
const VECTOR: u8 = 0x51;
const ENTRY: u64 = LEVEL | VECTOR as u64;

fn main() -> ExitCode {
    // Serial, because fds are counted.
    let suite = Suite::new("kvm-irqfd::library")
        .serial()
        .test(
            "the_kernel_does_not_forward",
            &[Need::FullIrqchip],
            the_kernel_does_not_forward,
        )
        .test(
            "a_registry_goes_on_to_the_next_path_and_says_why",
            &[Need::FullIrqchip],
            no_host_forward_in_a_registry,
        )
        .test("row_5_and_6_not_an_eventfd", FULL, row_5_and_6_not_an_eventfd)
        .test("row_7_trigger_is_bound_once", FULL, row_7_trigger_is_bound_once)
        .test(
            "row_8_trigger_is_bound_once_in_all_vms",
            FULL,
            row_8_trigger_is_bound_once_in_all_vms,
        )
        .test("row_13_unknown_gsi", FULL, row_13_unknown_gsi)
        .test("row_16_vm_gone", FULL, row_16_vm_gone)
        .test("row_19_nobody_listens", ACCEPT, row_19_nobody_listens)
        .test(
            "row_20_pending_count_is_no_interrupt",
            ACCEPT,
            row_20_pending_count_is_no_interrupt,
        )
        .test(
            "row_24_a_count_of_five_is_one_interrupt",
            ACCEPT,
            row_24_a_count_of_five_is_one_interrupt,
        )
        .test("row_25_resamplefd_is_a_trigger", FULL, row_25_resamplefd_is_a_trigger)
        .test("semaphore_is_refused", FULL, semaphore_is_refused)
        .test("a_listeners_count_stays", FULL, a_listeners_count_stays)
        .test("a_refusal_leaves_no_fd", FULL, a_refusal_leaves_no_fd)
        .test("a_line_has_two_fds", FULL, a_line_has_two_fds)
        .test(
            "row_46_notifier_added_while_in_service",
            ACCEPT,
            row_46_notifier_added_while_in_service,
        )
        .test("row_65_mixed_uses_are_refused", FULL, row_65_mixed_uses_are_refused)
        .test("row_67_rerouted_while_asserted", ACCEPT, row_67_rerouted_while_asserted)
        .test(
            "row_69_and_70_lines_without_an_eoi",
            FULL,
            row_69_and_70_lines_without_an_eoi,
        )
        .test("row_71_full_table_in_one_commit", FULL, row_71_full_table_in_one_commit)
        .test("a_refused_table_changes_nothing", FULL, a_refused_table_changes_nothing)
        .test("row_75_one_listener_by_key", ACCEPT, row_75_one_listener_by_key)
        .test("row_76_line_is_low_when_told", ACCEPT, row_76_line_is_low_when_told)
        .test(
            "row_78_notify_only_beside_irq_line",
            ACCEPT,
            row_78_notify_only_beside_irq_line,
        )
        .test("row_80_notify_only_and_oneshot", ACCEPT, row_80_notify_only_and_oneshot)
        .test("notify_only_comes_in_any_order", ACCEPT, notify_only_comes_in_any_order)
        .test("a_callback_drops_its_own_guard", ACCEPT, a_callback_drops_its_own_guard)
        .test(
            "binding_a_listener_keeps_the_level",
            ACCEPT,
            binding_a_listener_keeps_the_level,
        )
        .test("sharing_by_1_2_and_8", ACCEPT, sharing)
        .test("withdrawing_lowers_one_of_two", ACCEPT, withdrawing_lowers_one_of_two)
        .test("teardown_in_both_orders_at_each_state", ACCEPT, teardown)
        .test("what_happens_is_counted_and_told", FULL, counted_and_told);
    // What a GIC does in the place of these is in tests/gic.rs, or it has no such flaw.
    #[cfg(target_arch = "x86_64")]
    let suite = suite
        .test(
            "irqchip_is_found_by_trying",
            &[Need::FullIrqchip, Need::SplitIrqchip],
            irqchip_is_found_by_trying,
        )
        .test("row_2_no_irqchip", &[Need::Kvm], row_2_no_irqchip)
        .test(
            "row_3_split_irqchip_takes_edges_on_msi_only",
            &[Need::SplitIrqchip],
            row_3_split_irqchip,
        )
        .test("row_50_delivery_of_an_irq_line", ACCEPT, row_50_delivery_of_an_irq_line)
        .test(
            "row_63_a_level_on_irq_line_survives_unmask",
            ACCEPT_6_3,
            row_63_a_level_survives_unmask,
        )
        .test("row_64_no_phantom_after_an_unmask", ACCEPT_6_3, row_64_no_phantom)
        .test(
            "row_67_irq_line_rerouted_while_asserted",
            ACCEPT,
            row_67_irq_line_rerouted,
        )
        .test("edge_irqfd_on_an_msi", ACCEPT, edge_irqfd_on_an_msi);
    #[cfg(feature = "event-manager")]
    let suite = suite.test("an_event_manager_dispatches", ACCEPT, an_event_manager_dispatches);
    suite.run()
}

/// The real KVM-VFIO device, of which there is one for each VM. If a kernel comes to have the attribute this fails, and
/// is good news.
fn the_kernel_does_not_forward() {
    const EBUSY: i32 = 16;
    const ENXIO: i32 = 6;
    let (_machine, interrupts) = full();
    let before = fds();
    let vfio = KvmVfio::new(interrupts.vm()).unwrap();
    assert_eq!(KvmVfio::new(interrupts.vm()).unwrap_err().errno(), Some(EBUSY));
    assert_eq!(vfio.can_forward().unwrap_err().errno(), Some(ENXIO));
    let gsi = [GSI];
    let request = ForwardIrq::new(0, 0, 0, &gsi);
    assert_eq!(vfio.forward(&request).unwrap_err().errno(), Some(ENXIO));
    assert_eq!(vfio.unforward(&request).unwrap_err().errno(), Some(ENXIO));
    // A file that VFIO has nothing to do with.
    let refused = vfio.add_file(std::fs::File::open("/dev/null").unwrap()).unwrap_err();
    assert!(refused.errno().is_some(), "{refused}");
    drop(vfio);
    assert_eq!(fds(), before);
    // Standard input has not been closed on the way, as the TEST flag would have it.
    rustix::io::fcntl_getfd(std::io::stdin()).unwrap();
}

fn no_host_forward_in_a_registry() {
    const ID: EventfdId = EventfdId(1);
    let (_machine, interrupts) = full();
    let source = interrupts.resample_source(GSI, "device").unwrap();
    let line = GuestLine::kernel(source, Arc::new(interrupts.clone()));
    let vfio = Arc::new(KvmVfio::new(interrupts.vm()).unwrap());
    let registry = Registry::default();
    let producer = Arc::new(RecordingProducer::new("device"));
    producer.set_info(|info| {
        info.irq = Some(DeviceIrq {
            device: 0,
            index: 0,
            sub: 0,
        });
    });
    let _line = registry
        .add_consumer(ID, Arc::new(HostForwarded::new(line, vfio)))
        .unwrap();
    let _device = registry.add_producer(ID, producer).unwrap();
    assert_eq!(registry.connection(ID).unwrap().path(), Some(Path::KernelLoop));
    let said = registry.explain()[0].to_string();
    assert!(
        said.contains("not host forward: this kernel has no KVM_DEV_VFIO_DEVICE_FORWARD_IRQ (ENXIO)"),
        "{said}"
    );
}

/// A level source and the eventfd that hears of its EOIs.
struct Device {
    // The guard goes first, or the source, as a test likes.
    guard: Option<EoiGuard>,
    source: Option<Arc<dyn LevelSource>>,
    eoi: OwnedFd,
}

impl Device {
    fn new(interrupts: &KvmInterrupts, gsi: Gsi) -> Self {
        let source = interrupts.resample_source(gsi, "device").unwrap();
        let eoi = eventfd();
        let guard = listen(interrupts, source.key().into(), &eoi).unwrap();
        Self {
            guard: Some(guard),
            source: Some(source),
            eoi,
        }
    }

    fn assert(&self) {
        self.source.as_ref().unwrap().assert().unwrap();
    }

    fn n(&self) -> u64 {
        taken(&self.eoi)
    }
}

fn listen(interrupts: &KvmInterrupts, subject: EoiScope, eoi: &OwnedFd) -> interrupt_core::Result<EoiGuard> {
    interrupts.subscribe(subject, Listener::fd(eoi.try_clone().unwrap()))
}

/// Serves what there is to serve, without waiting.
fn dispatch(interrupts: &KvmInterrupts) -> usize {
    interrupts.dispatch(Some(Duration::ZERO)).unwrap()
}

/// The vector that comes within a second.
fn accept(machine: &mut Machine) -> Option<u8> {
    machine.accept_within(Duration::from_secs(1))
}

/// That no vector comes, for as long as one could be on its way through the kernel's work queue on a busy host.
fn assert_quiet(machine: &mut Machine) {
    assert_eq!(machine.accept_within(Duration::from_millis(20)), None);
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// The backend's own error behind one of interrupt-core's.
fn backend(error: interrupt_core::Error) -> Error {
    match error {
        interrupt_core::Error::Backend { source, .. } => *source.downcast().unwrap(),
        other => panic!("{other}"),
    }
}

#[cfg(target_arch = "x86_64")]
fn irqchip_is_found_by_trying() {
    for found in [Irqchip::User, Irqchip::Split, Irqchip::Kernel] {
        let machine = Machine::builder().irqchip(found).build().unwrap();
        let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
        assert_eq!(interrupts.irqchip(), found);
        assert_eq!(interrupts.routes().len(), if found == Irqchip::Kernel { 40 } else { 0 });
    }
}

#[cfg(target_arch = "x86_64")]
fn row_2_no_irqchip() {
    let machine = Machine::builder().irqchip(Irqchip::User).build().unwrap();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    assert!(matches!(
        interrupts.resample_source(GSI, "device"),
        Err(Error {
            reason: Reason::NoIrqchip,
            ..
        })
    ));
    assert!(matches!(
        interrupts.irq_line_source(GSI, "device"),
        Err(Error {
            reason: Reason::NoIrqchip,
            ..
        })
    ));
    let error = interrupts.edge_irqfd(GSI).unwrap_err();
    assert!(matches!(error.reason, Reason::NoIrqchip));
    assert_eq!(error.errno(), Some(22));
}

#[cfg(target_arch = "x86_64")]
fn row_3_split_irqchip() {
    let machine = Machine::builder().irqchip(Irqchip::Split).build().unwrap();
    let interrupts = KvmInterrupts::new(machine.vm().clone()).unwrap();
    let mut routing = interrupts.routing();
    routing.set(GSI, &[MESSAGE]).unwrap();
    routing.commit().unwrap();
    assert!(matches!(
        interrupts.resample_source(GSI, "device"),
        Err(Error {
            reason: Reason::SplitIrqchip,
            ..
        })
    ));
    assert!(matches!(
        interrupts.irq_line_source(GSI, "device"),
        Err(Error {
            reason: Reason::SplitIrqchip,
            ..
        })
    ));
    let error = backend(interrupts.subscribe(GSI.into(), Listener::fd(eventfd())).unwrap_err());
    assert!(matches!(error.reason, Reason::SplitIrqchip));
    interrupts.edge_irqfd(GSI).unwrap();
}

fn row_5_and_6_not_an_eventfd() {
    let (_machine, interrupts) = full();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let pipe = vmm_eventfd(reader.try_clone().unwrap());
    assert!(matches!(
        interrupts.resample_source_with(GSI, "device", pipe),
        Err(Error {
            reason: Reason::NotEventfd,
            ..
        })
    ));
    let pipe = vmm_eventfd(reader.try_clone().unwrap());
    assert!(matches!(
        interrupts.edge_irqfd_with(GSI, pipe),
        Err(Error {
            reason: Reason::NotEventfd,
            ..
        })
    ));
    // As a resamplefd, and the source is as it was.
    let device = Device::new(&interrupts, GSI);
    let other = interrupts.resample_source(GSI, "other").unwrap();
    let refused = interrupts
        .subscribe(other.key().into(), Listener::fd(reader))
        .unwrap_err();
    assert!(matches!(backend(refused).reason, Reason::NotEventfd));
    let _guard = listen(&interrupts, other.key().into(), &device.eoi).unwrap();
}

fn row_7_trigger_is_bound_once() {
    let (_machine, interrupts) = full();
    let trigger = eventfd();
    let again = || vmm_eventfd(trigger.try_clone().unwrap());
    let bound = interrupts.resample_source_with(GSI, "device", again()).unwrap();
    for gsi in [GSI, Gsi(OTHER)] {
        let error = interrupts.resample_source_with(gsi, "device", again()).unwrap_err();
        assert!(matches!(error.reason, Reason::AlreadyBound { bound: GSI }), "{error}");
        assert_eq!(error.errno(), Some(16));
        assert!(matches!(
            interrupts.edge_irqfd_with(gsi, again()),
            Err(Error {
                reason: Reason::AlreadyBound { .. },
                ..
            })
        ));
    }
    drop(bound);
    interrupts.edge_irqfd_with(Gsi(OTHER), again()).unwrap();
}

fn row_8_trigger_is_bound_once_in_all_vms() {
    let ((_first, here), (_second, there)) = (full(), full());
    let trigger = eventfd();
    let again = || vmm_eventfd(trigger.try_clone().unwrap());
    let bound = here.resample_source_with(GSI, "device", again()).unwrap();
    let error = there.resample_source_with(GSI, "device", again()).unwrap_err();
    assert!(matches!(error.reason, Reason::AlreadyBound { .. }), "{error}");
    drop(bound);
    there.resample_source_with(GSI, "device", again()).unwrap();
}

fn row_13_unknown_gsi() {
    let (_machine, interrupts) = full();
    for gsi in [PINS, 5000, u32::MAX].map(Gsi) {
        assert!(matches!(
            interrupts.resample_source(gsi, "device"),
            Err(Error {
                reason: Reason::UnknownGsi,
                ..
            })
        ));
        assert!(matches!(
            interrupts.irq_line_source(gsi, "device"),
            Err(Error {
                reason: Reason::UnknownGsi,
                ..
            })
        ));
        let error = interrupts.edge_irqfd(gsi).unwrap_err();
        assert!(matches!(error.reason, Reason::UnknownGsi));
        assert_eq!(error.errno(), Some(22));
        let error = backend(interrupts.subscribe(gsi.into(), Listener::fd(eventfd())).unwrap_err());
        assert!(matches!(error.reason, Reason::UnknownGsi));
    }
}

fn row_16_vm_gone() {
    let trigger = eventfd();
    let again = || vmm_eventfd(trigger.try_clone().unwrap());
    let (machine, interrupts) = full();
    let source = interrupts.resample_source_with(GSI, "device", again()).unwrap();
    let guard = listen(&interrupts, source.key().into(), &eventfd()).unwrap();
    drop((machine, interrupts));
    // The source is what keeps the VM; its guard may outlive both.
    drop(source);
    let (_machine, interrupts) = full();
    interrupts.resample_source_with(GSI, "device", again()).unwrap();
    drop(guard);
}

fn row_19_nobody_listens() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let source = interrupts.resample_source(GSI, "device").unwrap();
    for _ in 0..2 {
        source.assert().unwrap();
        assert_eq!(accept(&mut machine), Some(VECTOR));
        machine.eoi();
        assert!(!is_high(&mut machine, PIN), "the EOI lowers the line all the same");
    }
    assert_quiet(&mut machine);
}

fn row_20_pending_count_is_no_interrupt() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let trigger = eventfd();
    rustix::io::write(&trigger, &3u64.to_ne_bytes()).unwrap();
    let again = || vmm_eventfd(trigger.try_clone().unwrap());
    let source = interrupts.resample_source_with(GSI, "device", again()).unwrap();
    assert_quiet(&mut machine);
    assert_eq!(taken(&trigger), 0);
    // What is signalled while bound and then unbound is not injected when bound again.
    drop(source);
    rustix::io::write(&trigger, &1u64.to_ne_bytes()).unwrap();
    let source = interrupts.resample_source_with(GSI, "device", again()).unwrap();
    assert_quiet(&mut machine);
    source.assert().unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
}

fn row_24_a_count_of_five_is_one_interrupt() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let device = Device::new(&interrupts, GSI);
    let trigger = device.source.as_ref().unwrap().trigger().unwrap();
    rustix::io::write(trigger, &5u64.to_ne_bytes()).unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    assert_eq!(device.n(), 1);
    assert_quiet(&mut machine);
}

fn row_25_resamplefd_is_a_trigger() {
    let (_machine, interrupts) = full();
    let trigger = eventfd();
    let source = interrupts
        .resample_source_with(GSI, "device", vmm_eventfd(trigger.try_clone().unwrap()))
        .unwrap();
    for subject in [source.key().into(), GSI.into(), Gsi(OTHER).into()] {
        let error = backend(listen(&interrupts, subject, &trigger).unwrap_err());
        assert!(matches!(error.reason, Reason::TriggerIsResample), "{error}");
        assert_eq!(error.errno(), Some(22));
    }
    let _guard = listen(&interrupts, source.key().into(), &eventfd()).unwrap();
}

fn semaphore_is_refused() {
    let (_machine, interrupts) = full();
    let semaphore = || vmm_eventfd(new_eventfd(0, EventfdFlags::SEMAPHORE).unwrap());
    let error = interrupts.resample_source_with(GSI, "device", semaphore()).unwrap_err();
    assert!(matches!(error.reason, Reason::Semaphore), "{error}");
    assert!(matches!(
        interrupts.edge_irqfd_with(GSI, semaphore()),
        Err(Error {
            reason: Reason::Semaphore,
            ..
        })
    ));
}

/// EOIs that the listener has not read yet are not lost when it listens to another line, or again. Before Linux 6.5 it
/// takes a read to tell a semaphore, which is for triggers only.
fn a_listeners_count_stays() {
    let (_machine, interrupts) = full();
    let (source, eoi) = (interrupts.resample_source(GSI, "device").unwrap(), eventfd());
    rustix::io::write(&eoi, &5u64.to_ne_bytes()).unwrap();
    for subject in [source.key().into(), GSI.into()] {
        drop(listen(&interrupts, subject, &eoi).unwrap());
    }
    assert_eq!(taken(&eoi), 5);
}

fn a_refusal_leaves_no_fd() {
    let (_machine, interrupts) = full();
    let _edge = interrupts.edge_irqfd(Gsi(OTHER)).unwrap();
    let device = Device::new(&interrupts, GSI);
    let source = device.source.as_ref().unwrap();
    let before = (fds(), interrupts.routes());
    for _ in 0..10 {
        interrupts.resample_source(Gsi(OTHER), "device").unwrap_err();
        interrupts.resample_source(Gsi(FREE.0 + 37), "device").unwrap_err();
        interrupts.irq_line_source(Gsi(OTHER), "device").unwrap_err();
        interrupts.edge_irqfd(GSI).unwrap_err();
        interrupts
            .subscribe(source.key().into(), Listener::callback(|_| {}))
            .unwrap_err();
        interrupts
            .subscribe(Gsi(FREE.0 + 37).into(), Listener::callback(|_| {}))
            .unwrap_err();
        interrupts
            .subscribe(SourceKey::new(GSI).into(), Listener::fd(eventfd()))
            .unwrap_err();
        let mut routing = interrupts.routing();
        routing.set(GSI, &[MESSAGE]).unwrap();
        routing.commit().unwrap_err();
    }
    assert_eq!((fds(), interrupts.routes()), before);
}

fn a_line_has_two_fds() {
    let (_machine, interrupts) = full();
    let before = fds();
    let source = interrupts.resample_source(GSI, "device").unwrap();
    assert_eq!(fds() - before, 1, "the trigger");
    // The device's own eventfd becomes KVM's resamplefd.
    let guard = interrupts
        .subscribe(source.key().into(), Listener::fd(eventfd()))
        .unwrap();
    assert_eq!(fds() - before, 2);
    drop((guard, source));
    assert_eq!(fds(), before);
}

fn row_46_notifier_added_while_in_service() {
    let (mut machine, interrupts) = full();
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    // An edge of a GIC is not told.
    let entries: &[u64] = if cfg!(target_arch = "aarch64") {
        &[ENTRY]
    } else {
        &[ENTRY, VECTOR as u64]
    };
    for entry in entries {
        machine.set_rte(PIN, *entry);
        source.assert().unwrap();
        assert_eq!(accept(&mut machine), Some(VECTOR));
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        let listener = Listener::callback(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let guard = interrupts.subscribe(GSI.into(), listener).unwrap();
        source.deassert().unwrap();
        dispatch(&interrupts);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        machine.eoi();
        assert_eq!(dispatch(&interrupts), 1);
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_quiet(&mut machine);
        drop(guard);
    }
}

#[cfg(target_arch = "x86_64")]
fn row_50_delivery_of_an_irq_line() {
    let (mut machine, interrupts) = full();
    let (a, b) = (
        interrupts.irq_line_source(GSI, "a").unwrap(),
        interrupts.irq_line_source(GSI, "b").unwrap(),
    );
    machine.set_rte(PIN, ENTRY | MASKED);
    assert_eq!(a.assert().unwrap(), Delivery::Pending, "masked");
    a.deassert().unwrap();
    machine.set_rte(PIN, ENTRY);
    assert_eq!(a.assert().unwrap(), Delivery::Delivered(1));
    assert_eq!(b.assert().unwrap(), Delivery::Coalesced, "the line is high already");
    assert_eq!(accept(&mut machine), Some(VECTOR));
    a.deassert().unwrap();
    assert!(is_high(&mut machine, PIN), "b still asserts");
    b.deassert().unwrap();
    assert!(!is_high(&mut machine, PIN));
    assert_eq!(b.assert().unwrap(), Delivery::Pending, "in service");
    drop(b);
    assert!(!is_high(&mut machine, PIN), "a source that goes withdraws its level");
}

#[cfg(target_arch = "x86_64")]
/// The kernel forgets a level that KVM_IRQ_LINE holds when a pin with a resampler is unmasked; `dispatch` states it
/// again.
fn row_63_a_level_survives_unmask() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    let _guard = interrupts.subscribe(GSI.into(), Listener::callback(|_| {})).unwrap();
    source.assert().unwrap();
    machine.set_rte(PIN, ENTRY);
    assert_eq!(
        machine.accept(),
        None,
        "without the cure this is where it ends; else this test shows nothing"
    );
    assert_eq!(dispatch(&interrupts), 1);
    assert_eq!(accept(&mut machine), Some(VECTOR));
    source.deassert().unwrap();
    machine.eoi();
    dispatch(&interrupts);
    assert_quiet(&mut machine);
}

#[cfg(target_arch = "x86_64")]
/// KVM keeps the assertion of a resample irqfd after an unmask that dropped it, and a KVM_IRQ_LINE(0) brings it back.
/// The assertion goes with the source that made it, also while a listener keeps a resampler on the GSI.
fn row_64_no_phantom() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    let _guard = interrupts.subscribe(GSI.into(), Listener::callback(|_| {})).unwrap();
    let device = interrupts.resample_source(GSI, "device").unwrap();
    device.assert().unwrap();
    eventually("the line rises", || is_high(&mut machine, PIN));
    machine.set_rte(PIN, ENTRY);
    assert!(
        !is_high(&mut machine, PIN),
        "the unmask drops what is pending; else this test shows nothing"
    );
    dispatch(&interrupts);
    // Nobody restates the level, and KVM still has the assertion.
    drop(device);
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    // The library states no level that is so already, so that this is the test's own.
    machine.vm().set_irq_line(PIN, false).unwrap();
    assert_quiet(&mut machine);
    source.assert().unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    source.deassert().unwrap();
    machine.eoi();
    dispatch(&interrupts);
    source.deassert().unwrap();
    assert_quiet(&mut machine);
    assert!(!is_high(&mut machine, PIN));
}

fn row_65_mixed_uses_are_refused() {
    let (_machine, interrupts) = full();
    let mixed = |error: Error, has: BindingKind, wants: BindingKind| match error.reason {
        Reason::MixedUse { has: h, wants: w } => assert_eq!((error.gsi, h, w), (Some(GSI), has, wants)),
        other => panic!("{other}"),
    };
    let level = interrupts.resample_source(GSI, "device").unwrap();
    mixed(
        interrupts.irq_line_source(GSI, "device").unwrap_err(),
        BindingKind::Resample,
        BindingKind::IrqLine,
    );
    mixed(
        interrupts.edge_irqfd(GSI).unwrap_err(),
        BindingKind::Resample,
        BindingKind::Edge,
    );
    drop(level);
    let line = interrupts.irq_line_source(GSI, "device").unwrap();
    mixed(
        interrupts.resample_source(GSI, "device").unwrap_err(),
        BindingKind::IrqLine,
        BindingKind::Resample,
    );
    mixed(
        interrupts.edge_irqfd(GSI).unwrap_err(),
        BindingKind::IrqLine,
        BindingKind::Edge,
    );
    drop(line);
    let _edge = interrupts.edge_irqfd(GSI).unwrap();
    let _second = interrupts.edge_irqfd(GSI).unwrap();
    mixed(
        interrupts.irq_line_source(GSI, "device").unwrap_err(),
        BindingKind::Edge,
        BindingKind::IrqLine,
    );
    let listener = interrupts.subscribe(GSI.into(), Listener::fd(eventfd()));
    assert_eq!(listener.is_err(), cfg!(target_arch = "aarch64"), "{listener:?}");
}

fn row_67_rerouted_while_asserted() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    machine.set_rte(OTHER, LEVEL | 0x52);
    let device = Device::new(&interrupts, GSI);
    device.assert();
    eventually("the line rises", || is_high(&mut machine, PIN));
    let mut routing = interrupts.routing();
    routing.set(GSI, &[to_pin(OTHER)]).unwrap();
    routing.set(Gsi(OTHER), &[]).unwrap();
    assert_eq!(routing.commit().unwrap(), Committed::Changed);
    assert!(!is_high(&mut machine, PIN), "the old pin is low");
    assert_eq!(device.n(), 1, "the device is asked to state its level");
    device.assert();
    assert_eq!(accept(&mut machine), Some(0x52));
    machine.eoi();
    assert_eq!(device.n(), 1);
    machine.set_rte(PIN, ENTRY);
    assert_quiet(&mut machine);
}

#[cfg(target_arch = "x86_64")]
fn row_67_irq_line_rerouted() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    machine.set_rte(OTHER, LEVEL | 0x52);
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    source.assert().unwrap();
    assert!(is_high(&mut machine, PIN));
    let mut routing = interrupts.routing();
    routing.set(GSI, &[to_pin(OTHER)]).unwrap();
    routing.commit().unwrap();
    assert!(!is_high(&mut machine, PIN), "the old pin is low");
    assert_eq!(
        accept(&mut machine),
        Some(0x52),
        "the level is the source's and goes with it"
    );
    source.deassert().unwrap();
    machine.eoi();
    machine.set_rte(PIN, ENTRY);
    assert_quiet(&mut machine);
}

fn row_69_and_70_lines_without_an_eoi() {
    let (_machine, interrupts) = full();
    let mut routing = interrupts.routing();
    routing.set(FREE, &[to_pin(PIN)]).unwrap();
    routing.set(NEXT, &[MESSAGE]).unwrap();
    routing.commit().unwrap();
    let error = interrupts.resample_source(GSI, "device").unwrap_err();
    let Route::Pin { chip, pin } = to_pin(PIN) else {
        panic!("a pin");
    };
    let by_another = Reason::ShadowedPin { chip, pin, by: FREE };
    assert_eq!(error.to_string(), format!("KVM_IRQFD on {GSI}: {by_another}"));
    assert!(matches!(
        interrupts.resample_source(NEXT, "device"),
        Err(Error {
            reason: Reason::MsiRoute,
            ..
        })
    ));
    assert!(matches!(
        interrupts.irq_line_source(NEXT, "device"),
        Err(Error {
            reason: Reason::MsiRoute,
            ..
        })
    ));
    let _last = interrupts.resample_source(FREE, "device").unwrap();
    // The other way about: a change that would shadow, or cut off, a line that is in use.
    for (gsi, routes) in [
        (Gsi(FREE.0 + 10), vec![to_pin(PIN)]),
        (FREE, vec![MESSAGE]),
        (FREE, vec![]),
    ] {
        let mut routing = interrupts.routing();
        routing.set(gsi, &routes).unwrap();
        let error = routing.commit().unwrap_err();
        assert_eq!(error.errno(), Some(22), "{error}");
    }
    assert_eq!(interrupts.routes().get(FREE), [to_pin(PIN)]);
}

fn row_71_full_table_in_one_commit() {
    let (_machine, interrupts) = full();
    let _source = interrupts.resample_source(GSI, "device").unwrap();
    let first = interrupts.routes().len() - PINS as usize;
    let fill = |end: usize| {
        let mut routing = interrupts.routing();
        for gsi in PINS..end as u32 {
            routing.set(Gsi(gsi), &[MESSAGE]).unwrap();
        }
        routing.commit()
    };
    // On a GIC each GSI has one route, so that the GSIs end before the table is full.
    #[cfg(target_arch = "x86_64")]
    {
        let one_more = fill(MAX_ROUTES - first + 1).unwrap_err();
        assert_eq!(one_more.errno(), Some(28), "{one_more}");
    }
    assert_eq!(fill(MAX_ROUTES - first).unwrap(), Committed::Changed);
    assert_eq!(interrupts.routes().len(), MAX_ROUTES);
    // The same again is no change.
    let mut routing = interrupts.routing();
    routing.set(FREE, &[MESSAGE]).unwrap();
    assert_eq!(routing.commit().unwrap(), Committed::Unchanged);
}

/// A table that KVM refuses leaves the old one, with its lines on.
fn a_refused_table_changes_nothing() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let device = Device::new(&interrupts, GSI);
    let before = interrupts.routes();
    let mut routing = interrupts.routing();
    routing.set(GSI, &[to_pin(OTHER)]).unwrap();
    routing.set(Gsi(OTHER), &[to_pin(OTHER)]).unwrap();
    // GSI 19 is listed after GSI 18 for the same pin.
    assert!(matches!(
        routing.commit(),
        Err(Error {
            reason: Reason::ShadowedPin { .. },
            ..
        })
    ));
    assert_eq!(interrupts.routes(), before);
    device.assert();
    eventually("the line still works", || is_high(&mut machine, PIN));
}

fn row_75_one_listener_by_key() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let device = Device::new(&interrupts, GSI);
    let key = device.source.as_ref().unwrap().key();
    let second = listen(&interrupts, key.into(), &eventfd()).unwrap_err();
    assert_eq!(second.errno(), Some(16), "{second}");
    let elsewhere = Device::new(&interrupts, Gsi(OTHER));
    for wrong in [SourceKey::new(GSI), SourceKey::new(Gsi(3))] {
        let wrong = listen(&interrupts, wrong.into(), &eventfd()).unwrap_err();
        assert_eq!(wrong.errno(), Some(2), "{wrong}");
    }
    let gone = elsewhere.source.as_ref().unwrap().key();
    drop(elsewhere);
    assert_eq!(
        listen(&interrupts, gone.into(), &eventfd()).unwrap_err().errno(),
        Some(2)
    );
    // The first one still hears.
    device.assert();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    assert_eq!(device.n(), 1);
    // Once it is gone, another one can take its place.
    let Device { guard, source, eoi } = device;
    drop(guard);
    let other = eventfd();
    let guard = listen(&interrupts, key.into(), &other).unwrap();
    source.as_ref().unwrap().assert().unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    assert_eq!((taken(&eoi), taken(&other)), (0, 1));
    // It may also take its place at once, while the interrupt is in service: the EOI is told to the new one.
    source.as_ref().unwrap().assert().unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    let third = eventfd();
    let listener = Listener::fd(third.try_clone().unwrap());
    let third_guard = interrupts.exchange(key, listener).unwrap();
    drop(guard);
    machine.eoi();
    assert_eq!((taken(&other), taken(&third)), (0, 1));
    drop(third_guard);
    let _guard = listen(&interrupts, key.into(), &other).unwrap();
    let gone = interrupts
        .exchange(SourceKey::new(GSI), Listener::fd(eventfd()))
        .unwrap_err();
    assert_eq!(gone.errno(), Some(2), "{gone}");
}

fn row_76_line_is_low_when_told() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let source = interrupts.resample_source(GSI, "device").unwrap();
    let device = Arc::clone(&source);
    let rounds = Arc::new(AtomicU32::new(0));
    let round = Arc::clone(&rounds);
    // Asserting from the listener makes a new interrupt, which it could not if the line were high.
    let listener = Listener::callback(move |gsi| {
        assert_eq!(gsi, GSI);
        if round.fetch_add(1, Ordering::Relaxed) < 9 {
            device.assert().unwrap();
        }
    });
    let guard = interrupts.subscribe(source.key().into(), listener).unwrap();
    source.assert().unwrap();
    for _ in 0..10 {
        assert_eq!(accept(&mut machine), Some(VECTOR));
        machine.eoi();
        assert!(!is_high(&mut machine, PIN), "low, and nobody has been told yet");
        assert_eq!(dispatch(&interrupts), 1);
    }
    assert_eq!(rounds.load(Ordering::Relaxed), 10);
    assert_quiet(&mut machine);
    drop(guard);
}

fn row_78_notify_only_beside_irq_line() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    let (by_gsi, by_key) = (eventfd(), eventfd());
    let _gsi = listen(&interrupts, GSI.into(), &by_gsi).unwrap();
    let _key = listen(&interrupts, source.key().into(), &by_key).unwrap();
    for _ in 0..100 {
        source.assert().unwrap();
        assert_eq!(accept(&mut machine), Some(VECTOR));
        source.deassert().unwrap();
        machine.eoi();
        assert_eq!(dispatch(&interrupts), 1);
        assert_eq!((taken(&by_gsi), taken(&by_key)), (1, 1));
    }
    assert_quiet(&mut machine);
}

/// A oneshot handler masks, ends, and unmasks later, while the device's cause persists until the third handler run.
fn row_80_notify_only_and_oneshot() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    let told = eventfd();
    let _guard = listen(&interrupts, GSI.into(), &told).unwrap();
    source.assert().unwrap();
    for run in 1..=3 {
        assert_eq!(accept(&mut machine), Some(VECTOR), "run {run}");
        machine.set_rte(PIN, ENTRY | MASKED);
        machine.eoi();
        dispatch(&interrupts);
        assert_eq!(taken(&told), 1, "run {run}");
        if run == 3 {
            source.deassert().unwrap();
        }
        machine.set_rte(PIN, ENTRY);
        // Since Linux 6.3 the unmask of a pin that is high asks too.
        dispatch(&interrupts);
        taken(&told);
    }
    assert_quiet(&mut machine);
}

/// A listener by GSI may come before the source of any kind, and outlive it.
fn notify_only_comes_in_any_order() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let told = eventfd();
    let guard = listen(&interrupts, GSI.into(), &told).unwrap();
    let device = Device::new(&interrupts, GSI);
    device.assert();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    assert_eq!((device.n(), taken(&told)), (1, 1));
    drop(device);
    assert_eq!(
        taken(&told),
        1,
        "a source that goes takes the line down, so everyone is asked"
    );
    let source = interrupts.irq_line_source(GSI, "device").unwrap();
    source.assert().unwrap();
    assert_eq!(accept(&mut machine), Some(VECTOR));
    source.deassert().unwrap();
    machine.eoi();
    dispatch(&interrupts);
    assert_eq!(taken(&told), 1);
    // The level is stated again at an unmask, though nobody subscribed through the line.
    machine.set_rte(PIN, ENTRY | MASKED);
    source.assert().unwrap();
    machine.set_rte(PIN, ENTRY);
    dispatch(&interrupts);
    assert_eq!(accept(&mut machine), Some(VECTOR));
    drop(guard);
    source.deassert().unwrap();
    machine.eoi();
    assert_quiet(&mut machine);
}

fn a_callback_drops_its_own_guard() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let source = interrupts.resample_source(GSI, "device").unwrap();
    let slot: Arc<std::sync::Mutex<Option<EoiGuard>>> = Arc::default();
    let (own, calls) = (Arc::clone(&slot), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&calls);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        drop(own.lock().unwrap().take());
    });
    *slot.lock().unwrap() = Some(interrupts.subscribe(source.key().into(), listener).unwrap());
    for _ in 0..2 {
        source.assert().unwrap();
        assert_eq!(accept(&mut machine), Some(VECTOR));
        machine.eoi();
        dispatch(&interrupts);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert!(slot.lock().unwrap().is_none());
}

/// Exchanging who hears of the EOIs neither lowers the line nor makes an interrupt.
fn binding_a_listener_keeps_the_level() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    let source = interrupts.resample_source(GSI, "device").unwrap();
    source.assert().unwrap();
    eventually("the line rises", || is_high(&mut machine, PIN));
    for _ in 0..10 {
        let told = eventfd();
        let guard = listen(&interrupts, source.key().into(), &told).unwrap();
        assert!(is_high(&mut machine, PIN), "still high");
        assert_eq!(taken(&told), 0, "nothing has happened to tell of");
        drop(guard);
        assert!(is_high(&mut machine, PIN), "still high");
    }
    let told = eventfd();
    let _guard = listen(&interrupts, source.key().into(), &told).unwrap();
    machine.set_rte(PIN, ENTRY);
    if taken(&told) == 1 {
        // Since Linux 6.3 an unmask asks for the level.
        source.assert().unwrap();
    }
    assert_eq!(accept(&mut machine), Some(VECTOR));
    machine.eoi();
    assert_eq!(taken(&told), 1);
    assert_quiet(&mut machine);
}

/// Each device asserts in turn, all at once, and none: whoever is told restates, nobody is lost.
fn sharing() {
    for sharers in [1, 2, 8] {
        let (mut machine, interrupts) = full();
        machine.set_rte(PIN, ENTRY);
        let devices: Vec<_> = (0..sharers).map(|_| Device::new(&interrupts, GSI)).collect();
        for device in &devices {
            device.assert();
            assert_eq!(accept(&mut machine), Some(VECTOR));
            machine.eoi();
            assert!(
                devices.iter().all(|device| device.n() == 1),
                "every sharer is told once"
            );
        }
        // All assert; the guest's handler serves one device a run, and the others restate when they are told.
        let mut waiting = sharers;
        devices.iter().for_each(Device::assert);
        while waiting > 0 {
            assert_eq!(
                accept(&mut machine),
                Some(VECTOR),
                "{waiting} of {sharers} still assert"
            );
            waiting -= 1;
            machine.eoi();
            for (n, device) in devices.iter().enumerate() {
                assert_eq!(device.n(), 1);
                if n < waiting {
                    device.assert();
                }
            }
        }
        assert_quiet(&mut machine);
    }
}

fn withdrawing_lowers_one_of_two() {
    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY | MASKED);
    let (a, b) = (Device::new(&interrupts, GSI), Device::new(&interrupts, GSI));
    a.assert();
    eventually("the line rises", || is_high(&mut machine, PIN));
    a.source.as_ref().unwrap().force_deassert().unwrap();
    assert!(!is_high(&mut machine, PIN), "low at once");
    assert_eq!(b.n(), 1, "KVM keeps one assertion for both, so b is asked");
    a.n();
    a.assert();
    eventually("the line rises", || is_high(&mut machine, PIN));
    drop(a);
    assert!(!is_high(&mut machine, PIN), "a source that goes withdraws its level");
    assert_eq!(b.n(), 1);
    machine.set_rte(PIN, ENTRY);
    assert_quiet(&mut machine);
}

/// Source first or guard first; idle, pending, in service, or told; alone or with a sharer.
fn teardown() {
    for state in 0..4 {
        for source_first in [true, false] {
            for shared in [true, false] {
                let case = format!("state {state}, source first {source_first}, shared {shared}");
                let (mut machine, interrupts) = full();
                let before = fds();
                machine.set_rte(PIN, if state == 1 { ENTRY | MASKED } else { ENTRY });
                let sharer = shared.then(|| Device::new(&interrupts, GSI));
                let mut device = Device::new(&interrupts, GSI);
                if state > 0 {
                    device.assert();
                    eventually("the line rises", || is_high(&mut machine, PIN));
                }
                if state > 1 {
                    assert_eq!(accept(&mut machine), Some(VECTOR), "{case}");
                }
                if state > 2 {
                    machine.eoi();
                }
                if source_first {
                    device.source = None;
                    device.guard = None;
                } else {
                    device.guard = None;
                    device.source = None;
                }
                assert!(!is_high(&mut machine, PIN), "{case}: the line is low");
                if state == 2 {
                    machine.eoi();
                }
                if state == 1 {
                    machine.set_rte(PIN, ENTRY);
                }
                assert_quiet(&mut machine);
                device.n();
                if let Some(sharer) = &sharer {
                    sharer.n();
                    sharer.assert();
                    assert_eq!(accept(&mut machine), Some(VECTOR), "{case}: the sharer goes on");
                    machine.eoi();
                    assert_eq!((sharer.n(), device.n()), (1, 0), "{case}");
                }
                drop((sharer, device));
                assert_eq!(fds(), before, "{case}: no fd is left");
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn edge_irqfd_on_an_msi() {
    let (mut machine, interrupts) = full();
    let mut routing = interrupts.routing();
    routing.set(FREE, &[MESSAGE]).unwrap();
    routing.commit().unwrap();
    let msi = interrupts.edge_irqfd(FREE).unwrap();
    msi.signal().unwrap();
    assert_eq!(accept(&mut machine), Some(0x61));
    machine.eoi();
    // The guest moves it to another vector: the irqfd stays where it is, and follows.
    let mut routing = interrupts.routing();
    let moved = Route::Msi {
        address: 0xFEE0_0000,
        data: 0x62,
        device: None,
    };
    routing.set(FREE, &[moved]).unwrap();
    assert_eq!(routing.commit().unwrap(), Committed::Changed);
    msi.signal().unwrap();
    assert_eq!(accept(&mut machine), Some(0x62));
    machine.eoi();
    assert_quiet(&mut machine);
}

fn counted_and_told() {
    let machine = Machine::full();
    let interrupts = KvmInterrupts::new(Arc::clone(machine.vm())).unwrap();
    assert_eq!(format!("{interrupts:?}"), "kernel irqchip");
    assert_eq!(interrupts.counts(GSI), None);

    let disk = interrupts.resample_source(GSI, "disk").unwrap();
    let net = interrupts.resample_source(GSI, "net").unwrap();
    let timer = interrupts.irq_line_source(Gsi(OTHER), "timer").unwrap();
    timer.assert().unwrap();
    for _ in 0..3 {
        disk.assert().unwrap();
    }
    net.assert().unwrap();
    let told = format!("kernel irqchip; gsi {PIN}: 2 of a resample irqfd; gsi {OTHER}: timer high");
    assert_eq!(format!("{interrupts:?}"), told);
    let counts = interrupts.counts(GSI).unwrap();
    assert_eq!((counts.asserted, counts.reassigned), (4, 0));
    assert_eq!(interrupts.counts(Gsi(OTHER)).unwrap().asserted, 1);

    // KVM lowers a line that is shared only with its last resampler, so that the others are taken off with this one.
    drop(net);
    let counts = interrupts.counts(GSI).unwrap();
    assert_eq!((counts.asserted, counts.reassigned), (4, 1));
}

/// As a VMM has it that runs an event-manager anyway, and nothing of ours beside.
#[cfg(feature = "event-manager")]
fn an_event_manager_dispatches() {
    use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

    let (mut machine, interrupts) = full();
    machine.set_rte(PIN, ENTRY);
    let source = interrupts.resample_source(GSI, "device").unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&calls);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let _guard = interrupts.subscribe(source.key().into(), listener).unwrap();
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
    manager.add_subscriber(Box::new(interrupts.clone()));

    assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "nothing to serve yet");
    for round in 1..=3 {
        source.assert().unwrap();
        assert_eq!(accept(&mut machine), Some(VECTOR));
        assert_eq!(
            manager.run_with_timeout(0).unwrap(),
            0,
            "round {round}: it is in service"
        );
        machine.eoi();
        assert_eq!(manager.run_with_timeout(5_000).unwrap(), 1);
        assert_eq!(calls.load(Ordering::Relaxed), round);
    }
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "and nothing is served twice");
}
