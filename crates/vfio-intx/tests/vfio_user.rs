// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx behind vfio-user: the example server in another thread, the crate's own client, and a real socket between them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../examples/vfio-user-edu/edu.rs"]
mod edu;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use interrupt_core::forward::DeviceInterrupt;
use interrupt_core::forward::{Connection, GuestLine, Path};
use interrupt_core::{Gsi, Level, Line, LoweredBy, testing::RecordingPin};
use rustix::event::{EventfdFlags, eventfd};
use vfio_intx::irq_set::IrqSet;
use vfio_intx::{ClientIntx, Intx, ModelIntx, State, VfioUserIntx};
use vfio_user::{Client, Server};

const PATIENCE: Duration = Duration::from_secs(20);

fn socket_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vfio-intx-{}-{n}.sock", std::process::id()))
}

/// A server in another thread, and what it serves.
struct Served {
    intx: Option<VfioUserIntx>,
    model: Arc<ModelIntx>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(kind: edu::Intx) -> Self {
        let path = socket_path();
        let server = edu::server(&path, kind).unwrap();
        let mut device = edu::Edu::new(kind);
        let model = Arc::clone(device.model());
        let thread = thread::spawn(move || drop(server.run(&mut device)));
        let intx = VfioUserIntx::connect("edu", &path, PATIENCE).unwrap();
        Self {
            intx: Some(intx),
            model,
            thread: Some(thread),
        }
    }

    fn take(&mut self) -> VfioUserIntx {
        self.intx.take().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.intx.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[test]
fn a_server_says_what_its_interrupt_can_do() {
    let mut served = Served::new(edu::Intx::Level);
    let info = served.take().info().unwrap();
    assert!(
        info.level && info.maskable && info.automasked && info.unmask_fd,
        "{info:?}"
    );
    let mut served = Served::new(edu::Intx::Pulse);
    let info = served.take().info().unwrap();
    assert!(
        !info.level && !info.maskable && !info.automasked && !info.unmask_fd,
        "{info:?}"
    );
}

#[test]
fn a_refusal_is_an_error_and_the_connection_stays() {
    let mut served = Served::new(edu::Intx::Level);
    let intx = served.take();
    // INTx has no trigger yet.
    let error = intx.unmask().unwrap_err();
    assert_eq!(error.errno(), Some(5), "vfio_user's server sends no errno: {error}");
    assert!(
        error
            .to_string()
            .starts_with("VFIO_DEVICE_SET_IRQS(unmask) on device edu"),
        "{error}"
    );
    intx.info().unwrap();
    let trigger = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    intx.set_trigger(Some(trigger.as_fd())).unwrap();
    intx.unmask().unwrap();
    let mut id = [0; 4];
    intx.region_read(0, 0, &mut id).unwrap();
    assert_eq!(u32::from_le_bytes(id), 0x0100_00ed);
}

#[test]
fn a_device_without_interrupts_is_an_error() {
    let path = socket_path();
    let server = Server::new(&path, false, Vec::new(), Vec::new()).unwrap();
    let thread = thread::spawn(move || drop(server.run(&mut edu::Edu::new(edu::Intx::Level))));
    let intx = VfioUserIntx::connect("bare", &path, PATIENCE).unwrap();
    let error = intx.irq_info().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(22), "{error}");
    assert!(Intx::new(Arc::new(intx)).is_err());
    thread.join().unwrap();
}

#[test]
fn where_nobody_listens_there_is_no_connection() {
    let error = VfioUserIntx::connect("nobody", &socket_path(), PATIENCE).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    let path = socket_path();
    drop(UnixListener::bind(&path).unwrap());
    let error = VfioUserIntx::connect("nobody", &path, PATIENCE).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    fs::remove_file(path).unwrap();
}

/// A line of this process, to which INTx is relayed, and 100 interrupts of it.
fn round_trips(kind: edu::Intx, device: Arc<dyn DeviceInterrupt>, model: &ModelIntx) {
    const ROUNDS: u64 = 100;
    let (intx, mut relay) = Intx::new(device).unwrap();
    let intx = Arc::new(intx);
    let connection = Connection::new(Arc::<Intx>::clone(&intx));
    let line = Line::new(Gsi(11), RecordingPin::default());
    let source = Arc::new(line.source("edu", LoweredBy::Eoi));
    connection
        .set_consumer(Some(Arc::new(GuestLine::relay(source, line.clone(), "a test"))))
        .unwrap();
    assert_eq!(intx.enable().unwrap(), State::Carried(Path::Relay));
    relay.wait(None).unwrap();
    for round in 1..=ROUNDS {
        model.raise(1);
        let since = Instant::now();
        while line.level() == Level::Low {
            relay.wait(Some(PATIENCE)).unwrap();
            assert!(since.elapsed() < PATIENCE, "round {round}: the interrupt did not come");
        }
        assert_eq!(model.is_masked(), kind == edu::Intx::Level);
        model.acknowledge(1);
        assert_eq!(line.eoi().unwrap(), Level::Low, "round {round}");
        relay.wait(Some(PATIENCE)).unwrap();
        assert!(!model.is_masked(), "round {round}: the EOI unmasks it");
        assert_eq!(model.signals(), round);
    }
    assert_eq!((intx.status().swaps, intx.status().fallbacks), (1, 0));
    // With its cause still there, one that masks itself signals again at the EOI, and a pulse does not.
    model.raise(1);
    relay.wait(Some(PATIENCE)).unwrap();
    line.eoi().unwrap();
    relay.wait(Some(PATIENCE)).unwrap();
    let again = u64::from(kind == edu::Intx::Level);
    assert_eq!(model.signals(), ROUNDS + 1 + again);
    drop((connection, intx));
    // Disabled at the server, a cause signals nobody.
    model.raise(1);
    assert_eq!(model.signals(), ROUNDS + 1 + again);
}

#[test]
fn an_automasked_interrupt_goes_round_and_round() {
    let mut served = Served::new(edu::Intx::Level);
    let model = Arc::clone(&served.model);
    round_trips(edu::Intx::Level, Arc::new(served.take()), &model);
}

#[test]
fn a_pulse_goes_round_and_round() {
    let mut served = Served::new(edu::Intx::Pulse);
    let model = Arc::clone(&served.model);
    round_trips(edu::Intx::Pulse, Arc::new(served.take()), &model);
}

/// Over the client that a VMM has for the device's regions.
#[test]
fn the_vmms_own_client_goes_round_and_round() {
    for kind in [edu::Intx::Level, edu::Intx::Pulse] {
        let path = socket_path();
        let server = edu::server(&path, kind).unwrap();
        let mut device = edu::Edu::new(kind);
        let model = Arc::clone(device.model());
        let thread = thread::spawn(move || drop(server.run(&mut device)));
        let client = Arc::new(Mutex::new(Client::new(&path).unwrap()));
        let intx = Arc::new(ClientIntx::new("edu", client.clone()));
        round_trips(kind, intx, &model);
        let mut id = [0; 4];
        client.lock().unwrap().region_read(0, 0, &mut id).unwrap();
        assert_eq!(u32::from_le_bytes(id), 0x0100_00ed);
        client.lock().unwrap().shutdown().unwrap();
        thread.join().unwrap();
    }
}

/// The server has gone. What the VMM asks next says so, and INTx is disabled.
#[test]
fn on_a_gone_connection_mask_and_unmask_are_errors() {
    type Ask = fn(&Intx) -> vfio_intx::Result<State>;
    // Each with what is done while the server is there.
    let asked: [(Ask, Ask); 5] = [
        (Intx::mask, Intx::enable),
        (Intx::unmask, Intx::mask),
        (|intx| intx.set_disintx(true), Intx::enable),
        (|intx| intx.set_disintx(false), |intx| intx.set_disintx(true)),
        (Intx::enable, Intx::disable),
    ];
    for kind in [edu::Intx::Level, edu::Intx::Pulse] {
        for (n, (ask, before)) in asked.into_iter().enumerate() {
            let mut served = Served::new(kind);
            let device = served.take();
            let socket = device.as_fd().try_clone_to_owned().unwrap();
            let (intx, mut relay) = Intx::new(Arc::new(device)).unwrap();
            let intx = Arc::new(intx);
            let connection = Connection::new(Arc::<Intx>::clone(&intx));
            let line = Line::new(Gsi(11), RecordingPin::default());
            let source = Arc::new(line.source("edu", LoweredBy::Eoi));
            connection
                .set_consumer(Some(Arc::new(GuestLine::relay(source, line.clone(), "a test"))))
                .unwrap();
            intx.enable().unwrap();
            relay.wait(None).unwrap();
            before(&intx).unwrap();
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();

            let error = ask(&intx).unwrap_err();
            assert_eq!(error.errno(), Some(107), "{kind:?}, {n}: {error}");
            assert_eq!(
                intx.status().state,
                State::Disabled,
                "{kind:?}, {n}: {:?}",
                intx.status()
            );
            drop((connection, intx));
        }
    }
}

/// Each request of a device with a level, at the server.
fn masks_and_unmasks(intx: &dyn DeviceInterrupt, model: &ModelIntx) {
    let (trigger, unmask) = (
        eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
        eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
    );
    let signalled = || {
        let since = Instant::now();
        while rustix::io::read(&trigger, &mut [0; 8]).is_err() {
            assert!(since.elapsed() < PATIENCE, "not signalled");
            thread::yield_now();
        }
    };
    intx.set_trigger(Some(trigger.as_fd())).unwrap();
    intx.mask().unwrap();
    assert!(model.is_masked());
    model.raise(1);
    assert_eq!(model.signals(), 0);
    intx.unmask().unwrap();
    signalled();
    intx.set_unmask(Some(unmask.as_fd())).unwrap();
    for _ in 0..10 {
        assert!(model.is_masked());
        // Its cause lasts: it signals again, without a request.
        rustix::io::write(&unmask, &1u64.to_ne_bytes()).unwrap();
        signalled();
    }
    assert_eq!(model.signals(), 11);
    // Taken away without a descriptor, so that it can be set again.
    intx.set_unmask(None).unwrap();
    rustix::io::write(&unmask, &1u64.to_ne_bytes()).unwrap();
    intx.set_unmask(Some(unmask.as_fd())).unwrap();
    signalled();
    intx.set_trigger(None).unwrap();
    assert!(rustix::io::read(&trigger, &mut [0; 8]).is_err());
}

#[test]
fn an_unmask_eventfd_unmasks_at_the_server() {
    let mut served = Served::new(edu::Intx::Level);
    let intx = served.take();
    masks_and_unmasks(&intx, &served.model);
    let (trigger, unmask) = (
        eventfd(0, EventfdFlags::empty()).unwrap(),
        eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
    );
    intx.set_trigger(Some(trigger.as_fd())).unwrap();
    intx.set_unmask(Some(unmask.as_fd())).unwrap();
    // A second one is refused.
    intx.set_unmask(Some(unmask.as_fd())).unwrap_err();
    intx.set_irqs(&IrqSet::disable()).unwrap();
}

/// The client takes a refusal for a success, and a server that has gone for an error.
#[test]
fn the_vmms_own_client_makes_each_request() {
    let path = socket_path();
    let server = edu::server(&path, edu::Intx::Level).unwrap();
    let mut device = edu::Edu::new(edu::Intx::Level);
    let model = Arc::clone(device.model());
    let thread = thread::spawn(move || drop(server.run(&mut device)));
    let client = Arc::new(Mutex::new(Client::new(&path).unwrap()));
    let intx = ClientIntx::new("edu", client.clone());
    masks_and_unmasks(&intx, &model);
    client.lock().unwrap().shutdown().unwrap();
    thread.join().unwrap();
    for error in [
        intx.info().map(drop).unwrap_err(),
        intx.mask().unwrap_err(),
        intx.unmask().unwrap_err(),
        intx.set_trigger(None).unwrap_err(),
        intx.set_unmask(None).unwrap_err(),
    ] {
        assert!(error.to_string().contains("edu"), "{error}");
    }
}
