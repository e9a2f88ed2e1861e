// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GSIs that lead to pins of both chips, or to an MSI: the cases G and the rows of routing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use interrupt_core::{
    Delivery, EoiNotifier, Gsi, Level, LevelSource, Listener, LoweredBy, Msi, MsiOutput, PinMask, Result,
};
use user_irqchip::testing::LocalApics;
use user_irqchip::{Ioapic, Pic, Route, RouteError, Router, StateError};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

/// A PC with one processor.
struct Pc {
    router: Router,
    ioapic: Arc<Ioapic>,
    pic: Arc<Pic>,
    apics: Arc<LocalApics>,
    messages: Arc<Messages>,
}

/// Where the MSIs of GSIs go.
#[derive(Debug, Default)]
struct Messages {
    sent: Mutex<Vec<(u32, u32)>>,
    routes: Mutex<Vec<(u32, Option<u32>)>>,
}

impl MsiOutput for Messages {
    fn send_msi(&self, gsi: Gsi, message: Msi) -> Result<Delivery> {
        self.sent.lock().unwrap().push((gsi.0, message.data));
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, gsi: Gsi, message: Option<Msi>, mask: PinMask) -> Result<()> {
        assert_eq!(mask.is_masked(), message.is_none());
        let data = message.map(|message| message.data);
        self.routes.lock().unwrap().push((gsi.0, data));
        Ok(())
    }
}

impl Pc {
    /// With the routes of a PC, or with none.
    fn new(routed: bool) -> Self {
        let apics = LocalApics::new(1);
        let ioapic = Arc::new(Ioapic::builder().build(apics.clone()).unwrap());
        let pic = Arc::new(Pic::new(|| {}));
        let messages = Arc::new(Messages::default());
        let (to_ioapic, to_pic) = (Some(ioapic.clone()), Some(pic.clone()));
        let router = if routed {
            Router::pc(to_ioapic, to_pic, messages.clone()).unwrap()
        } else {
            Router::new(to_ioapic, to_pic, messages.clone())
        };
        Self {
            router,
            ioapic,
            pic,
            apics,
            messages,
        }
    }

    fn outb(&self, port: u16, value: u8) {
        self.pic.pio_write(PioAddress(port), 0, &[value]);
    }

    /// The 8259s' requests: bit n is IRQ n.
    fn pic_irr(&self) -> u16 {
        let read = |port| {
            self.outb(port, 0x0a);
            let mut data = [0];
            self.pic.pio_read(PioAddress(port), 0, &mut data);
            u16::from(data[0])
        };
        read(0x20) | read(0xa0) << 8
    }

    fn set_low(&self, pin: u32, entry: u32) {
        let write = |offset, value: u32| self.ioapic.mmio_write(MmioAddress(0), offset, &value.to_le_bytes());
        write(0x00, 0x10 + 2 * pin);
        write(0x10, entry);
    }

    fn entry(&self, pin: u32) -> u64 {
        self.ioapic.entry(Gsi(pin)).unwrap().bits()
    }

    fn source(&self, gsi: u32, lowered_by: LoweredBy) -> Arc<dyn LevelSource> {
        self.router.source(Gsi(gsi), "device", lowered_by).unwrap()
    }

    fn add(&self, gsi: u32, route: Route) {
        self.router.add(Gsi(gsi), route).unwrap();
    }
}

fn msi(data: u32) -> Route {
    Route::Msi(Msi {
        address: 0xfee0_0000,
        data,
    })
}

fn count(notifier: &impl EoiNotifier, gsi: u32) -> (Arc<AtomicU32>, interrupt_core::EoiGuard) {
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    let listener = Listener::callback(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (told, notifier.subscribe(Gsi(gsi).into(), listener).unwrap())
}

/// Cases G1 and G6. The cascade has no line.
#[test]
fn a_pcs_gsis_lead_to_both_chips() {
    let pc = Pc::new(true);
    assert_eq!(pc.router.routes(Gsi(0)), [Route::Pic(Gsi(0)), Route::Ioapic(Gsi(0))]);
    assert_eq!(pc.router.routes(Gsi(2)), [Route::Ioapic(Gsi(2))]);
    assert_eq!(pc.router.routes(Gsi(15)), [Route::Pic(Gsi(15)), Route::Ioapic(Gsi(15))]);
    assert_eq!(pc.router.routes(Gsi(23)), [Route::Ioapic(Gsi(23))]);
    for gsi in [24, 500, u32::MAX] {
        assert_eq!(pc.router.routes(Gsi(gsi)), []);
    }
}

/// Cases G2 to G5 and G10.
#[test]
fn a_gsi_has_a_route_to_each_chip_or_an_msi() {
    let pc = Pc::new(true);
    pc.add(23, Route::Ioapic(Gsi(3)));
    assert_eq!(pc.router.routes(Gsi(23)), [Route::Ioapic(Gsi(3))], "replaced");
    pc.add(23, Route::Pic(Gsi(3)));
    let both = [Route::Pic(Gsi(3)), Route::Ioapic(Gsi(3))];
    assert_eq!(pc.router.routes(Gsi(23)), both);
    let refused = pc.router.add(Gsi(23), msi(0x41)).unwrap_err();
    assert!(matches!(refused, RouteError::Mixed { gsi: Gsi(23) }), "{refused}");
    assert_eq!(pc.router.routes(Gsi(23)), both);

    pc.add(24, msi(0x41));
    let refused = pc.router.add(Gsi(24), Route::Ioapic(Gsi(3))).unwrap_err();
    assert!(matches!(refused, RouteError::Mixed { gsi: Gsi(24) }), "{refused}");
    pc.add(24, msi(0x8021));
    assert_eq!(pc.router.routes(Gsi(24)), [msi(0x8021)], "replaced");
    pc.router.clear(Gsi(24)).unwrap();
    assert_eq!(pc.router.routes(Gsi(24)), []);
    let told = [(24, Some(0x41)), (24, Some(0x8021)), (24, None)];
    assert_eq!(*pc.messages.routes.lock().unwrap(), told);
}

#[test]
fn a_pin_that_does_not_exist_is_an_error() {
    let pc = Pc::new(false);
    for route in [Route::Ioapic(Gsi(24)), Route::Pic(Gsi(16)), Route::Pic(Gsi(2))] {
        let refused = pc.router.add(Gsi(1), route).unwrap_err();
        assert!(matches!(refused, RouteError::NoPin { gsi: Gsi(1), .. }), "{refused}");
    }
    let without = Router::pc(None, None, LocalApics::new(1)).unwrap();
    assert_eq!(without.routes(Gsi(0)), []);
    without.add(Gsi(0), Route::Ioapic(Gsi(0))).unwrap_err();
    without.add(Gsi(0), Route::Pic(Gsi(0))).unwrap_err();
}

/// Case G7: a GSI that leads nowhere. Its level is driven when it leads somewhere.
#[test]
fn a_level_waits_for_a_route() {
    let pc = Pc::new(false);
    let source = pc.source(1, LoweredBy::Device);
    assert_eq!(source.assert().unwrap(), Delivery::Coalesced);
    assert_eq!((pc.pic_irr(), pc.ioapic.levels()), (0, 0));
    pc.add(1, Route::Pic(Gsi(5)));
    assert_eq!((pc.pic_irr(), pc.ioapic.levels()), (1 << 5, 0));
}

/// Cases G8 and G9.
#[test]
fn levels_go_where_the_routes_lead() {
    let pc = Pc::new(false);
    pc.add(1, Route::Ioapic(Gsi(3)));
    let one = pc.source(1, LoweredBy::Device);
    one.assert().unwrap();
    assert_eq!((pc.pic_irr(), pc.ioapic.levels()), (0, 1 << 3));
    one.deassert().unwrap();
    assert_eq!((pc.pic_irr(), pc.ioapic.levels()), (0, 0));
    one.assert().unwrap();
    pc.add(2, Route::Pic(Gsi(6)));
    pc.source(2, LoweredBy::Device).assert().unwrap();
    assert_eq!((pc.pic_irr(), pc.ioapic.levels()), (1 << 6, 1 << 3));
}

/// Conformance row 56: a GSI that is live on both chips. The EOI on the 8259 lowers both, and tells once; the IOAPIC stays in
/// service until the local APIC's EOI.
#[test]
fn the_first_eoi_lowers_both_chips() {
    let pc = Pc::new(true);
    pc.outb(0x4d0, 1 << 5);
    pc.set_low(5, 0x8031);
    let source = pc.source(5, LoweredBy::Eoi);
    let (told, _guard) = count(&pc.router, 5);
    assert_eq!(source.assert().unwrap(), Delivery::Delivered(2));
    assert_eq!(pc.pic.acknowledge(), 5);
    assert_eq!((pc.pic_irr(), pc.ioapic.levels()), (1 << 5, 1 << 5));
    assert_eq!(told.load(Ordering::Relaxed), 0);
    pc.outb(0x20, 0x20);
    assert_eq!((pc.pic_irr(), pc.ioapic.levels()), (0, 0));
    assert_eq!((told.load(Ordering::Relaxed), pc.entry(5)), (1, 0xc031));
    assert_eq!(pc.apics.accept(0), Some(0x31));
    pc.apics.eoi(0, &pc.ioapic);
    assert_eq!((told.load(Ordering::Relaxed), pc.entry(5)), (2, 0x8031));
}

/// A device that asserts from its listener makes a new interrupt on both.
#[test]
fn a_device_may_assert_from_its_listener() {
    let pc = Pc::new(true);
    pc.set_low(5, 0x8031);
    pc.outb(0x21, 0xff);
    let source = Arc::new(pc.source(5, LoweredBy::Eoi));
    let inner = Arc::clone(&source);
    let restate = Listener::callback(move |_| {
        inner.assert().unwrap();
    });
    let guard = pc.router.subscribe(source.key().into(), restate).unwrap();
    source.assert().unwrap();
    for _ in 0..3 {
        assert_eq!(pc.apics.accept(0), Some(0x31));
        pc.apics.eoi(0, &pc.ioapic);
        assert_eq!(pc.entry(5), 0xc031);
    }
    drop(guard);
    assert_eq!(pc.apics.accept(0), Some(0x31));
    pc.apics.eoi(0, &pc.ioapic);
    assert_eq!(
        (pc.entry(5), pc.pic_irr() & 1 << 5),
        (0x8031, 1 << 5),
        "the edge is latched in the masked 8259"
    );
    assert_eq!(pc.apics.accept(0), None);
}

/// Conformance rows 67 and 99: another route while the line is high. KVM leaves the old pin high for ever; here it falls, and
/// the new pin delivers.
#[test]
fn rerouting_takes_the_level_along() {
    let pc = Pc::new(false);
    pc.add(5, Route::Ioapic(Gsi(5)));
    pc.set_low(5, 0x8031);
    pc.set_low(6, 0x8041);
    let source = pc.source(5, LoweredBy::Eoi);
    let (told, _guard) = count(&pc.router, 5);
    source.assert().unwrap();
    assert_eq!(pc.apics.accept(0), Some(0x31));
    pc.add(5, Route::Ioapic(Gsi(6)));
    assert_eq!((pc.ioapic.levels(), pc.entry(6)), (1 << 6, 0xc041));
    assert_eq!(pc.apics.accept(0), Some(0x41));
    pc.apics.eoi(0, &pc.ioapic);
    assert_eq!(
        (told.load(Ordering::Relaxed), pc.ioapic.levels(), pc.entry(6)),
        (1, 0, 0x8041)
    );
    // The old pin ends what it had in service, and is nobody's.
    pc.apics.eoi(0, &pc.ioapic);
    assert_eq!(
        (told.load(Ordering::Relaxed), pc.entry(5), pc.apics.accept(0)),
        (1, 0x8031, None)
    );
}

/// Conformance row 69: two GSIs on one pin. KVM tells one of them; here the pin is the OR of both, and both are told.
#[test]
fn two_gsis_may_share_a_pin() {
    let pc = Pc::new(false);
    for gsi in [5, 30] {
        pc.add(gsi, Route::Ioapic(Gsi(5)));
    }
    pc.set_low(5, 0x8031);
    let sources = [5, 30].map(|gsi| pc.source(gsi, LoweredBy::Eoi));
    let told = [5, 30].map(|gsi| count(&pc.router, gsi));
    for source in &sources {
        source.assert().unwrap();
    }
    sources[0].deassert().unwrap();
    assert_eq!(pc.ioapic.levels(), 1 << 5);
    assert_eq!(pc.apics.accept(0), Some(0x31));
    pc.apics.eoi(0, &pc.ioapic);
    assert_eq!((pc.ioapic.levels(), pc.entry(5)), (0, 0x8031));
    assert_eq!(told.map(|(told, _guard)| told.load(Ordering::Relaxed)), [1, 1]);
}

/// Conformance row 70: what waits for an EOI has no place on an MSI.
#[test]
fn an_msi_takes_no_one_who_waits_for_an_eoi() {
    let pc = Pc::new(false);
    pc.add(5, msi(0x41));
    let refused = pc.router.source(Gsi(5), "device", LoweredBy::Eoi).unwrap_err();
    assert_eq!(refused.errno(), Some(95), "{refused}");
    let refused = pc
        .router
        .subscribe(Gsi(5).into(), Listener::callback(|_| {}))
        .unwrap_err();
    assert_eq!(refused.errno(), Some(95), "{refused}");
    // And the other way round.
    let source = pc.source(6, LoweredBy::Eoi);
    let refused = pc.router.add(Gsi(6), msi(0x41)).unwrap_err();
    assert!(matches!(refused, RouteError::InUse { gsi: Gsi(6) }), "{refused}");
    drop(source);
    pc.add(6, msi(0x41));
}

/// A rising line sends the message, once; a new route sends by itself what holds.
#[test]
fn a_rise_sends_the_msi() {
    let pc = Pc::new(false);
    pc.add(5, msi(0x41));
    let sources = [0, 1].map(|_| pc.source(5, LoweredBy::Device));
    assert_eq!(sources[0].assert().unwrap(), Delivery::Delivered(1));
    assert_eq!(sources[1].assert().unwrap(), Delivery::Coalesced);
    for source in &sources {
        source.deassert().unwrap();
    }
    sources[1].assert().unwrap();
    assert_eq!(*pc.messages.sent.lock().unwrap(), [(5, 0x41), (5, 0x41)]);
}

/// A listener that another thread is inside of, and that wants the line, does not keep a new route waiting for ever.
#[test]
fn rerouting_goes_on_under_eois() {
    let pc = Pc::new(false);
    pc.set_low(5, 0x8031);
    pc.set_low(6, 0x8031);
    pc.add(5, Route::Ioapic(Gsi(5)));
    let source = Arc::new(pc.source(5, LoweredBy::Eoi));
    let inner = Arc::clone(&source);
    let restate = Listener::callback(move |_| {
        inner.assert().unwrap();
    });
    let _guard = pc.router.subscribe(source.key().into(), restate).unwrap();
    source.assert().unwrap();
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            for _ in 0..20_000 {
                pc.ioapic.eoi(0x31);
            }
        });
        let mut pins = [6, 5].into_iter().cycle();
        while !guest.is_finished() {
            let pin = pins.next().unwrap();
            pc.add(5, Route::Ioapic(Gsi(pin)));
            assert_eq!(pc.router.routes(Gsi(5)), [Route::Ioapic(Gsi(pin))]);
        }
    });
    let [Route::Ioapic(pin)] = pc.router.routes(Gsi(5))[..] else {
        panic!("one route")
    };
    assert_eq!(
        pc.ioapic.levels(),
        1 << pin.0,
        "the level is where the route leads, and nowhere else"
    );
}

/// Row 140, behind a router: what the first statement of the source says replaces what was saved, at both chips.
#[test]
fn row_140_the_first_statement_replaces_a_restored_level() {
    let saved = Pc::new(true);
    saved.set_low(5, 0x31);
    let asserts = saved.source(5, LoweredBy::Device);
    asserts.assert().unwrap();
    let (ioapic, pic) = (saved.ioapic.save(), saved.pic.save());
    let pc = Pc::new(true);
    pc.router.restore(Some(&ioapic), Some(&pic)).unwrap();
    let levels = || (pc.ioapic.level(Gsi(5)).unwrap(), pc.pic.level(Gsi(5)).unwrap());
    let [device, other] = [(); 2].map(|()| pc.source(5, LoweredBy::Device));
    assert_eq!(levels(), (Level::High, Level::High), "until the sources say otherwise");
    device.deassert().unwrap();
    assert_eq!(levels(), (Level::High, Level::High), "the other one may assert");
    other.deassert().unwrap();
    assert_eq!(levels(), (Level::Low, Level::Low), "both are low");
    assert_eq!(device.assert().unwrap(), Delivery::Delivered(1), "the next edge");
}

/// A level that is held while an older state is restored is driven again, and ends with its source.
#[test]
fn a_live_level_outlives_a_restore() {
    let pc = Pc::new(true);
    let (ioapic, pic) = (pc.ioapic.save(), pc.pic.save());
    let [device, _quiet] = [(); 2].map(|()| pc.source(5, LoweredBy::Device));
    device.assert().unwrap();
    pc.router.restore(Some(&ioapic), Some(&pic)).unwrap();
    assert_eq!(
        (pc.ioapic.levels(), pc.pic.level(Gsi(5)).unwrap()),
        (1 << 5, Level::High)
    );
    device.deassert().unwrap();
    assert_eq!((pc.ioapic.levels(), pc.pic.level(Gsi(5)).unwrap()), (0, Level::Low));
}

#[test]
fn a_state_of_a_chip_that_is_not_here_is_refused() {
    let pc = Pc::new(true);
    let router = Router::new(None, Some(pc.pic.clone()), pc.messages.clone());
    let error = router.restore(Some(&pc.ioapic.save()), None).unwrap_err();
    assert!(matches!(error, StateError::OtherChip { .. }), "{error}");
}

/// A pin and an MSI that are added at one moment: one of the two is refused.
#[test]
fn routes_that_are_added_at_once_do_not_mix() {
    for _ in 0..2_000 {
        let pc = Pc::new(false);
        let barrier = std::sync::Barrier::new(2);
        let add = |route| {
            barrier.wait();
            pc.router.add(Gsi(5), route).is_ok()
        };
        let added = std::thread::scope(|scope| {
            let pin = scope.spawn(|| add(Route::Ioapic(Gsi(5))));
            [add(msi(0x41)), pin.join().unwrap()]
        });
        assert_eq!(pc.router.routes(Gsi(5)).len(), 1);
        assert_eq!(added.into_iter().filter(|added| *added).count(), 1);
    }
}

/// What acts while a GSI without a route is given an MSI: the output, which is told before the route is there.
#[derive(Default)]
struct Meanwhile {
    act: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pins: Mutex<Vec<bool>>,
}

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("meanwhile")
    }
}

impl MsiOutput for Meanwhile {
    fn send_msi(&self, _: Gsi, _: Msi) -> Result<Delivery> {
        Ok(Delivery::Delivered(1))
    }

    fn set_pin(&self, _: Gsi, message: Option<Msi>, _: PinMask) -> Result<()> {
        self.pins.lock().unwrap().push(message.is_some());
        let act = self.act.lock().unwrap().take();
        act.into_iter().for_each(|act| act());
        Ok(())
    }
}

const MESSAGE: Msi = Msi {
    address: 0xfee0_0000,
    data: 0x41,
};

/// A source or a listener that waits for EOIs comes while its GSI is given an MSI: one of the two is refused.
#[test]
fn an_msi_beside_what_waits_for_eois_is_refused() {
    type Waiter = Box<dyn std::any::Any + Send>;
    let waiters: [fn(&Router) -> Waiter; 2] = [
        |router| Box::new(router.source(Gsi(30), "device", LoweredBy::Eoi).unwrap()),
        |router| Box::new(router.subscribe(Gsi(30).into(), Listener::callback(|_| {})).unwrap()),
    ];
    for waiter in waiters {
        let output = Arc::new(Meanwhile::default());
        let router = Arc::new(Router::new(None, None, output.clone()));
        let (other, kept) = (Arc::clone(&router), Arc::new(Mutex::new(None)));
        let keeps = Arc::clone(&kept);
        *output.act.lock().unwrap() = Some(Box::new(move || *keeps.lock().unwrap() = Some(waiter(&other))));
        let refused = router.add(Gsi(30), Route::Msi(MESSAGE)).unwrap_err();
        assert!(matches!(refused, RouteError::InUse { .. }), "{refused}");
        assert_eq!(router.routes(Gsi(30)), []);
        assert_eq!(
            *output.pins.lock().unwrap(),
            [true, false],
            "the output is told to forget it"
        );
        drop(kept.lock().unwrap().take());
        router.add(Gsi(30), Route::Msi(MESSAGE)).unwrap();
    }
}

/// A name that adds an MSI when it is asked for: after the first look at the routes.
struct Late<'a>(&'a Router);

impl From<Late<'_>> for String {
    fn from(Late(router): Late<'_>) -> Self {
        router.add(Gsi(30), Route::Msi(MESSAGE)).unwrap();
        "device".to_owned()
    }
}

#[test]
fn a_source_that_comes_after_the_msi_is_refused() {
    let router = Router::new(None, None, Arc::new(Messages::default()));
    let refused = router.source(Gsi(30), Late(&router), LoweredBy::Eoi).unwrap_err();
    assert_eq!(refused.errno(), Some(95), "{refused}");
    router.source(Gsi(30), "device", LoweredBy::Device).unwrap();
}

/// The levels of both controllers are restored: a pin of the IOAPIC alone, and an IRQ of the slave.
#[test]
fn a_router_restores_the_levels_of_each_controller() {
    let before = Pc::new(true);
    let levels = [20, 11].map(|gsi| before.router.source(Gsi(gsi), "device", LoweredBy::Device).unwrap());
    levels.iter().for_each(|source| assert!(source.assert().is_ok()));
    let (ioapic, pic) = (before.ioapic.save(), before.pic.save());
    let after = Pc::new(true);
    let sources = [20, 11].map(|gsi| after.router.source(Gsi(gsi), "device", LoweredBy::Device).unwrap());
    after.router.restore(Some(&ioapic), Some(&pic)).unwrap();
    assert_eq!(after.ioapic.levels(), 1 << 20 | 1 << 11);
    assert_eq!(after.pic.level(Gsi(11)).unwrap(), Level::High);
    sources.iter().for_each(|source| source.deassert().unwrap());
    assert_eq!(
        (after.ioapic.levels(), after.pic.level(Gsi(11)).unwrap()),
        (0, Level::Low)
    );
    // By the 8259 pair alone.
    let pic_only = Pc::new(true);
    pic_only.router.restore(None, Some(&pic)).unwrap();
    assert_eq!(pic_only.pic.level(Gsi(11)).unwrap(), Level::High);
    // A state that cannot be changes neither.
    let mut wrong = pic.clone();
    wrong.slave.highest = 8;
    let untouched = Pc::new(true);
    untouched.router.restore(Some(&ioapic), Some(&wrong)).unwrap_err();
    assert_eq!(untouched.ioapic.levels(), 0);
}

/// Row 139: behind a router, too, each assertion on an edge pin is an edge.
#[test]
fn row_139_a_source_that_an_eoi_lowers_pulses_an_edge_pin() {
    let pc = Pc::new(false);
    pc.router.add(Gsi(20), Route::Ioapic(Gsi(20))).unwrap();
    let source = pc.router.source(Gsi(20), "device", LoweredBy::Eoi).unwrap();
    // Masked and by level at first, and high when the guest makes it an edge pin.
    source.assert().unwrap();
    for (register, value) in [(0x11u32 + 2 * 20, 0u32), (0x10 + 2 * 20, 0x31)] {
        let base = MmioAddress(Ioapic::BASE);
        pc.ioapic.mmio_write(base, 0x00, &register.to_le_bytes());
        pc.ioapic.mmio_write(base, 0x10, &value.to_le_bytes());
    }
    for _ in 0..3 {
        assert_eq!(source.assert().unwrap(), Delivery::Delivered(1));
        assert_eq!(pc.ioapic.levels(), 0, "the line has fallen by itself");
        assert_eq!(pc.apics.accept(0), Some(0x31));
        pc.apics.eoi(0, &pc.ioapic);
    }
    let broken = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let _guard = pc.router.subscribe(Gsi(20).into(), Listener::fd(broken)).unwrap();
    pc.ioapic.eoi(0x31);
    assert_eq!(pc.router.listener_errors(), 1);
}
