// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ends that use the connection from within their own methods, or own what does when they are dropped (law 14).

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use interrupt_core::Gsi;
use interrupt_core::forward::{
    Connection, Consumer, ConsumerInfo, Error, EventfdId, GuestLine, Path, Producer, ProducerInfo, ProducerState,
    Registration, Registry,
};
use interrupt_core::testing::{RecordingConsumer, RecordingProducer};

use super::ID;

type Act = Box<dyn FnMut() + Send>;

/// A producer that does something within one of its methods, and again when it is dropped.
pub struct Acting {
    pub inner: RecordingProducer,
    at: &'static str,
    act: Mutex<Option<Act>>,
    on_drop: Mutex<Option<Act>>,
}

impl Acting {
    pub fn new(at: &'static str) -> Arc<Self> {
        Arc::new(Self {
            inner: RecordingProducer::new("acting"),
            at,
            act: Mutex::new(None),
            on_drop: Mutex::new(None),
        })
    }

    pub fn acts(&self, act: impl FnMut() + Send + 'static) {
        *self.act.lock().unwrap() = Some(Box::new(act));
    }

    fn on_drop(&self, act: impl FnMut() + Send + 'static) {
        *self.on_drop.lock().unwrap() = Some(Box::new(act));
    }

    fn at(&self, at: &str) {
        let act = (at == self.at).then(|| self.act.lock().unwrap().take()).flatten();
        if let Some(mut act) = act {
            act();
        }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Some(mut act) = self.on_drop.lock().unwrap().take() {
            act();
        }
    }
}

impl fmt::Debug for Acting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("acting")
    }
}

impl Producer for Acting {
    fn label(&self) -> &str {
        self.inner.label()
    }
    fn info(&self) -> ProducerInfo {
        self.inner.info()
    }
    fn state(&self) -> ProducerState {
        self.inner.state()
    }
    fn stop(&self) -> interrupt_core::Result<()> {
        self.at("stop");
        self.inner.stop()
    }
    fn connect(&self, path: Path, consumer: &dyn Consumer) -> interrupt_core::Result<()> {
        self.at("connect");
        self.inner.connect(path, consumer)
    }
    fn disconnect(&self) {
        self.at("disconnect");
        self.inner.disconnect();
    }
    fn start(&self) -> interrupt_core::Result<()> {
        self.at("start");
        self.inner.start()
    }
}

/// A drop under a lock, or a lock taken twice, would wait for ever.
fn ends(what: &str, act: impl FnOnce() + Send + 'static) {
    let (done, end) = channel();
    let thread = thread::spawn(move || {
        act();
        done.send(()).unwrap();
    });
    if end.recv_timeout(Duration::from_secs(30)).is_err() && !thread.is_finished() {
        panic!("{what} waits for ever");
    }
    thread.join().unwrap();
}

/// The registration is dropped within a method: the end leaves when the operation is over, and is called no more.
#[test]
fn a_registration_is_dropped_within_each_method() {
    for at in ["stop", "connect", "start", "disconnect"] {
        for producers in [true, false] {
            ends(at, move || {
                let registry = Registry::default();
                let device = Acting::new(at);
                let line = Arc::new(RecordingConsumer::new(11));
                let held: Arc<Mutex<Option<Registration>>> = Arc::default();
                let first = registry.add_producer(ID, device.clone()).unwrap();
                let second = registry.add_consumer(ID, line.clone()).unwrap();
                let (leaves, stays) = if producers { (first, second) } else { (second, first) };
                *held.lock().unwrap() = Some(leaves);
                let theirs = Arc::clone(&held);
                device.acts(move || drop(theirs.lock().unwrap().take()));
                let connection = registry.connection(ID).unwrap();
                // The other end leaves, or the path changes.
                let stays = match at {
                    "disconnect" => {
                        drop(stays);
                        None
                    }
                    _ => {
                        let _ = connection.restrict(Some(Path::Relay));
                        Some(stays)
                    }
                };
                assert_eq!(connection.path(), None, "{at}");
                assert!(!device.inner.is_stopped() && !line.is_stopped(), "{at}");
                let left = if producers {
                    Arc::strong_count(&device)
                } else {
                    Arc::strong_count(&line)
                };
                assert_eq!(left, 1, "{at}");
                drop((stays, connection));
                assert!(registry.explain().is_empty());
            });
        }
    }
}

#[test]
fn a_method_that_uses_its_own_connection_is_refused() {
    ends("a change within a change", || {
        let device = Acting::new("start");
        let connection = Arc::new(Connection::new(device.clone()));
        let (inner, refused) = (Arc::downgrade(&connection), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&refused);
        device.acts(move || {
            let connection = inner.upgrade().unwrap();
            assert!(matches!(connection.changed(), Err(Error::Reentrant)));
            assert!(matches!(connection.restrict(None), Err(Error::Reentrant)));
            assert!(matches!(connection.set_consumer(None), Err(Error::Reentrant)));
            assert_eq!((connection.path(), connection.possible()), (None, Vec::new()));
            assert_eq!(Error::Reentrant.errno(), Some(35));
            assert!(format!("{connection:?}").contains("nobody") || !connection.explain().to_string().is_empty());
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let line = Arc::new(RecordingConsumer::new(11));
        assert_eq!(connection.set_consumer(Some(line)).unwrap(), Some(Path::KernelLoop));
        assert_eq!(refused.load(Ordering::Relaxed), 1);
        assert_eq!(connection.changed().unwrap(), Some(Path::KernelLoop));
    });
}

/// The last `Arc` of an end goes with its registration, or with a refusal: what it owns uses the registry and the same
/// identity.
#[test]
fn an_end_that_owns_the_registry_is_dropped_without_a_lock() {
    ends("the drop of an end", || {
        let registry = Registry::default();
        let dropped = Arc::new(AtomicUsize::new(0));
        let owner = |id: EventfdId| {
            let device = Acting::new("never");
            let (registry, dropped) = (registry.clone(), Arc::clone(&dropped));
            device.on_drop(move || {
                if let Ok(connection) = registry.connection(id) {
                    assert!(!matches!(connection.changed(), Err(Error::Reentrant)), "under its lock");
                }
                drop(registry.add_producer(EventfdId(100), Arc::new(RecordingProducer::new("another"))));
                assert!(registry.explain().len() <= 2);
                dropped.fetch_add(1, Ordering::Relaxed);
            });
            device
        };
        // With the registration.
        let line = registry.add_consumer(ID, Arc::new(RecordingConsumer::new(11))).unwrap();
        let device = registry.add_producer(ID, owner(ID)).unwrap();
        drop(device);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        // With the refusal of a second, and of one that no path can be had for.
        let device = registry.add_producer(ID, owner(ID)).unwrap();
        registry.add_producer(ID, owner(ID)).unwrap_err();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        drop(device);
        let refused = owner(ID);
        refused.inner.refuse(0, usize::MAX);
        registry.add_producer(ID, refused).unwrap_err();
        assert_eq!(dropped.load(Ordering::Relaxed), 4);
        drop(line);
    });
}

/// A consumer whose connect fails drops the error and itself without a lock, and a consumer that is replaced too.
#[test]
fn a_line_that_is_replaced_is_dropped_without_a_lock() {
    #[derive(Debug)]
    struct Owner(RecordingConsumer, Weak<Connection>, Arc<AtomicUsize>);
    impl Drop for Owner {
        fn drop(&mut self) {
            if let Some(connection) = self.1.upgrade() {
                connection.changed().unwrap();
                self.2.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    impl Consumer for Owner {
        fn line(&self) -> &GuestLine {
            self.0.line()
        }
        fn info(&self) -> ConsumerInfo {
            self.0.info()
        }
        fn stop(&self) -> interrupt_core::Result<()> {
            self.0.stop()
        }
        fn connect(&self, path: Path, producer: &dyn Producer) -> interrupt_core::Result<()> {
            self.0.connect(path, producer)
        }
        fn disconnect(&self, path: Path) {
            self.0.disconnect(path);
        }
        fn start(&self) -> interrupt_core::Result<()> {
            self.0.start()
        }
    }
    ends("the drop of a line", || {
        let device = Arc::new(RecordingProducer::new("device"));
        let connection = Arc::new(Connection::new(device.clone()));
        let dropped = Arc::new(AtomicUsize::new(0));
        let line = |fails: bool| {
            let inner = RecordingConsumer::new(11);
            if fails {
                inner.refuse(0, usize::MAX);
            }
            Some(Arc::new(Owner(inner, Arc::downgrade(&connection), Arc::clone(&dropped))) as Arc<dyn Consumer>)
        };
        // Refused, and there is no old line.
        connection.set_consumer(line(true)).unwrap_err();
        assert_eq!(dropped.swap(0, Ordering::Relaxed), 1);
        connection.set_consumer(line(false)).unwrap();
        // The old line has lost its path.
        device.set_info(|info| (info.relay, info.interrupt.unmask_fd) = (false, false));
        connection.changed().unwrap_err();
        assert_eq!(connection.path(), None);
        device.set_info(|info| (info.relay, info.interrupt.unmask_fd) = (true, true));
        connection.set_consumer(line(false)).unwrap();
        assert_eq!(dropped.swap(0, Ordering::Relaxed), 1);
        connection.set_consumer(line(false)).unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        // The new line refuses: the old one is taken up again.
        connection.set_consumer(line(true)).unwrap_err();
        assert_eq!(
            (dropped.load(Ordering::Relaxed), connection.path()),
            (2, Some(Path::KernelLoop))
        );
        connection.set_consumer(None).unwrap();
        assert_eq!((dropped.load(Ordering::Relaxed), connection.path()), (3, None));
    });
}

/// What an end's error carries, which uses the connection when it is dropped.
#[derive(Debug)]
struct Carried(Weak<Connection>, Arc<AtomicUsize>);

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end's error")
    }
}

impl std::error::Error for Carried {}

impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(connection) = self.0.upgrade() {
            assert!(connection.explain().producer.is_some(), "under its lock");
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A line that fails once, in one of its methods, with an error that carries something.
#[derive(Debug)]
struct Failing(RecordingConsumer, &'static str, Mutex<Option<Carried>>);

impl Failing {
    fn fail(&self, at: &str) -> interrupt_core::Result<()> {
        let carried = (at == self.1).then(|| self.2.lock().unwrap().take()).flatten();
        carried.map_or(Ok(()), |carried| {
            Err(interrupt_core::Error::Os {
                operation: "test",
                gsi: Gsi(11),
                source: io::Error::other(carried),
            })
        })
    }
}

impl Consumer for Failing {
    fn line(&self) -> &GuestLine {
        self.0.line()
    }
    fn info(&self) -> ConsumerInfo {
        self.0.info()
    }
    fn stop(&self) -> interrupt_core::Result<()> {
        self.fail("stop").and_then(|()| self.0.stop())
    }
    fn connect(&self, path: Path, producer: &dyn Producer) -> interrupt_core::Result<()> {
        self.fail("connect").and_then(|()| self.0.connect(path, producer))
    }
    fn disconnect(&self, path: Path) {
        self.0.disconnect(path);
    }
    fn start(&self) -> interrupt_core::Result<()> {
        self.0.start()
    }
}

/// The explanation keeps an error until the next decision, which lets go of it without a lock.
#[test]
fn the_error_of_an_end_is_dropped_without_a_lock() {
    for at in ["stop", "connect"] {
        let device = Arc::new(RecordingProducer::new("device"));
        let connection = Arc::new(Connection::new(device.clone()));
        let dropped = Arc::new(AtomicUsize::new(0));
        let line = Arc::new(Failing(RecordingConsumer::new(11), at, Mutex::default()));
        connection.set_consumer(Some(line.clone())).unwrap();
        *line.2.lock().unwrap() = Some(Carried(Arc::downgrade(&connection), Arc::clone(&dropped)));
        if at == "stop" {
            // The device does not go on either.
            device.refuse(1, 1);
            drop(
                connection
                    .set_consumer(Some(Arc::new(RecordingConsumer::new(12))))
                    .unwrap_err(),
            );
        } else {
            device.set_info(|info| info.interrupt.unmask_fd = false);
            drop(connection.changed());
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 0, "{at}");
        device.set_info(|info| info.interrupt.unmask_fd = true);
        connection.changed().unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), 1, "{at}");
    }
}

/// Row 148: a method of an end panics. Neither end stays stopped, and the next decision connects them.
#[test]
fn an_end_that_panics_leaves_neither_end_stopped() {
    for at in ["stop", "connect", "start"] {
        let device = Acting::new(at);
        let line = Arc::new(RecordingConsumer::new(11));
        let connection = Connection::new(device.clone());
        connection.set_consumer(Some(line.clone())).unwrap();
        device.acts(|| panic!("the end's fault"));
        let restricted = catch_unwind(AssertUnwindSafe(|| connection.restrict(Some(Path::Relay))));
        restricted.unwrap_err();
        assert_eq!((device.inner.is_stopped(), line.is_stopped()), (false, false), "{at}");
        let path = connection.path();
        assert_eq!((device.state().path, line.path()), (path, path), "{at}");
        assert_eq!(connection.changed().unwrap(), Some(Path::Relay), "{at}");
    }
    let device = Acting::new("disconnect");
    let line = Arc::new(RecordingConsumer::new(11));
    let connection = Connection::new(device.clone());
    connection.set_consumer(Some(line.clone())).unwrap();
    device.acts(|| panic!("the end's fault"));
    catch_unwind(AssertUnwindSafe(|| connection.set_consumer(None))).unwrap_err();
    assert_eq!((line.path(), line.is_stopped()), (None, false));
}
