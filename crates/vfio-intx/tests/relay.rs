// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The relay in an event loop: on threads, under changes of the path, and what one relayed interrupt costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::guest::{SoftGuest, TestLine};
use common::model_rig::{level, pulse};
use common::{PATIENCE, connection, new_eventfd, signal, to};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use interrupt_core::forward::{Connection, GuestLine, Path};
use interrupt_core::forward::{DeviceInterrupt, InterruptInfo};
use interrupt_core::testing::ManualNotifier;
use interrupt_core::{Delivery, Gsi, LevelSource, Result as CoreResult, SourceKey};
use testkit::alloc::{CountingAllocator, allocations_on_this_thread};
use testkit::harness::Suite;
use testkit::need::Need;
use testkit::process::fds;
use vfio_intx::{Intx, ModelIntx, Relay, State};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Set for the process whose system calls are counted: the event loop and the number of rounds.
const CHILD: &str = "VFIO_INTX_TEST_ROUNDS";

fn main() -> ExitCode {
    if let Ok(rounds) = std::env::var(CHILD) {
        let (event_loop, rounds) = rounds.split_once(' ').unwrap();
        let mut bench = Bench::new(event_loop.parse().unwrap());
        (0..rounds.parse().unwrap()).for_each(|_| bench.round());
        return ExitCode::SUCCESS;
    }
    let strace = [Need::Host("strace", has_strace)];
    Suite::new("relay")
        .serial()
        .test("nothing_is_lost_in_an_event_manager", &[], || {
            on_threads(Loop::EventManager, level(), 10_000, 0)
        })
        .test("nothing_is_lost_on_a_thread_of_its_own", &[], || {
            on_threads(Loop::Wait, level(), 10_000, 0)
        })
        .test("nothing_is_lost_while_the_path_changes", &[], || {
            on_threads(Loop::EventManager, level(), 20_000, 50);
            on_threads(Loop::Wait, level(), 20_000, 50);
        })
        .test("no_pulse_is_lost_while_the_line_changes", &[], || {
            on_threads(Loop::EventManager, pulse(), 20_000, 5);
            on_threads(Loop::Wait, pulse(), 20_000, 5);
        })
        .test("a_relayed_interrupt_allocates_nothing", &[], || {
            allocates_nothing(Loop::Wait);
            allocates_nothing(Loop::EventManager);
        })
        .test("a_relayed_interrupt_takes_four_system_calls", &strace, || {
            takes_four_system_calls(Loop::Wait);
            takes_four_system_calls(Loop::EventManager);
        })
        .test("an_event_manager_is_left_clean", &[], an_event_manager_is_left_clean)
        .test("no_fd_is_left_open", &[], no_fd_is_left_open)
        .run()
}

fn has_strace() -> Result<(), String> {
    let outcome = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    match outcome {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("it cannot trace here ({status})")),
        Err(error) => Err(error.to_string()),
    }
}

/// Who runs the relay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loop {
    Wait,
    EventManager,
}

impl std::str::FromStr for Loop {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Wait, Self::EventManager]
            .into_iter()
            .find(|event_loop| format!("{event_loop:?}") == name)
            .ok_or_else(|| name.to_owned())
    }
}

enum Runner {
    Wait(Relay),
    EventManager(EventManager<Box<dyn MutEventSubscriber + Send>>),
}

impl Runner {
    fn new(event_loop: Loop, relay: Relay) -> Self {
        match event_loop {
            Loop::Wait => Self::Wait(relay),
            Loop::EventManager => {
                let mut manager: EventManager<Box<dyn MutEventSubscriber + Send>> = EventManager::new().unwrap();
                manager.add_subscriber(Box::new(relay));
                Self::EventManager(manager)
            }
        }
    }

    fn run(&mut self, timeout: Duration) {
        match self {
            Self::Wait(relay) => drop(relay.wait(Some(timeout)).unwrap()),
            Self::EventManager(manager) => {
                let _ = manager
                    .run_with_timeout(timeout.as_millis().try_into().unwrap())
                    .unwrap();
            }
        }
    }
}

/// A device, an event loop, the kernel and a guest, each on its own thread; and a thread that changes the path every
/// `swap_every` interrupts, if that is not 0.
fn on_threads(event_loop: Loop, device: Arc<ModelIntx>, count: u32, swap_every: u32) {
    let (intx, relay) = Intx::new(device.clone()).unwrap();
    let (intx, connection) = connection(intx);
    let SoftGuest { a, b, .. } = SoftGuest::new();
    connection.set_consumer(to(a.relay())).unwrap();
    assert_eq!(intx.enable().unwrap(), State::Carried(Path::Relay));

    let (served, spurious) = (AtomicU32::new(0), AtomicU32::new(0));
    let over = AtomicBool::new(false);
    let running = || !over.load(Ordering::Relaxed);
    let mut swaps = 0;
    thread::scope(|scope| {
        let _over = OnDrop(&over);
        scope.spawn(move || {
            let mut runner = Runner::new(event_loop, relay);
            while running() {
                runner.run(Duration::from_millis(20));
            }
        });
        scope.spawn(|| {
            while running() {
                let busy = a.irqfd.poll() | b.irqfd.poll() | device.poll_unmask();
                if !busy {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while running() {
                for line in [&a, &b] {
                    if line.accept() {
                        handler(&device, &served, &spurious);
                        line.eoi();
                    }
                }
                thread::yield_now();
            }
        });
        for round in 0..count {
            device.raise(1);
            if swap_every > 0 && round % swap_every == 0 {
                connection.set_consumer(to(path(swaps, &a, &b))).unwrap();
                swaps += 1;
            }
            let deadline = Instant::now() + PATIENCE;
            while served.load(Ordering::Acquire) <= round {
                assert!(Instant::now() < deadline, "round {round}: {intx:?} {device:?}");
                thread::yield_now();
            }
        }
    });
    // Each raise was one handler run that found it. None was run for nothing, unless the line was changed, when an
    // interrupt that the processor had accepted is one.
    assert_eq!(served.into_inner(), count);
    if swaps == 0 {
        assert_eq!(spurious.into_inner(), 0);
    } else {
        let spurious = spurious.into_inner();
        assert!(
            spurious <= swaps,
            "{spurious} handler runs for nothing in {swaps} changes"
        );
        assert_eq!(intx.status().fallbacks, 0);
        println!("{event_loop:?}: {count} interrupts, {swaps} changes of path, {spurious} handler runs for nothing");
    }
}

/// The paths in turn, and the lines with them.
fn path(swap: u32, a: &TestLine, b: &TestLine) -> GuestLine {
    match swap % 5 {
        0 => a.kernel(),
        1 => b.relay(),
        2 => b.split(),
        3 => a.split(),
        _ => a.relay(),
    }
}

fn handler(device: &ModelIntx, served: &AtomicU32, spurious: &AtomicU32) {
    match device.status() {
        0 => spurious.fetch_add(1, Ordering::Relaxed),
        status => {
            device.acknowledge(status);
            served.fetch_add(1, Ordering::Release)
        }
    };
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A device whose unmask is one system call, and nothing else.
#[derive(Debug)]
struct OneCallDevice(OwnedFd);

impl DeviceInterrupt for OneCallDevice {
    fn label(&self) -> &str {
        "device"
    }

    fn info(&self) -> CoreResult<InterruptInfo> {
        Ok(InterruptInfo {
            level: true,
            maskable: true,
            automasked: true,
            unmask_fd: false,
        })
    }

    fn set_trigger(&self, fd: Option<BorrowedFd<'_>>) -> CoreResult<()> {
        // The test signals the trigger itself.
        if let Some(fd) = fd {
            *TRIGGER.lock().unwrap() = Some(fd.try_clone_to_owned().unwrap());
        }
        Ok(())
    }

    fn set_unmask(&self, _fd: Option<BorrowedFd<'_>>) -> CoreResult<()> {
        unreachable!("it has said that it takes none")
    }

    fn mask(&self) -> CoreResult<()> {
        Ok(())
    }

    fn unmask(&self) -> CoreResult<()> {
        signal(&self.0);
        if TRIGGER.lock().unwrap().is_some() {
            return Ok(());
        }
        // As VFIO answers while INTx is not set up.
        Err(interrupt_core::Error::Device {
            operation: "unmask",
            device: "device".to_owned(),
            source: std::io::Error::from_raw_os_error(22),
        })
    }
}

static TRIGGER: std::sync::Mutex<Option<OwnedFd>> = std::sync::Mutex::new(None);

/// A source whose assertion is one system call, as a resample irqfd's is.
#[derive(Debug)]
struct OneCallSource {
    key: SourceKey,
    trigger: OwnedFd,
}

impl LevelSource for OneCallSource {
    fn key(&self) -> SourceKey {
        self.key
    }

    fn label(&self) -> &str {
        "irqfd"
    }

    fn assert(&self) -> CoreResult<Delivery> {
        signal(&self.trigger);
        Ok(Delivery::Unknown)
    }

    fn deassert(&self) -> CoreResult<()> {
        Ok(())
    }

    fn force_deassert(&self) -> CoreResult<()> {
        Ok(())
    }

    fn trigger(&self) -> Option<BorrowedFd<'_>> {
        Some(self.trigger.as_fd())
    }
}

/// A relay and nothing else, so that what is counted is its own.
struct Bench {
    runner: Runner,
    _connection: Connection,
    trigger: OwnedFd,
    notifier: Arc<ManualNotifier>,
    device: Arc<OneCallDevice>,
    source: Arc<OneCallSource>,
}

impl Bench {
    fn new(event_loop: Loop) -> Self {
        *TRIGGER.lock().unwrap() = None;
        let device = Arc::new(OneCallDevice(new_eventfd()));
        let (intx, relay) = Intx::new(device.clone()).unwrap();
        let (intx, connection) = connection(intx);
        let source = Arc::new(OneCallSource {
            key: SourceKey::new(Gsi(10)),
            trigger: new_eventfd(),
        });
        let notifier = Arc::new(ManualNotifier::default());
        connection
            .set_consumer(to(GuestLine::kernel(source.clone(), notifier.clone())))
            .unwrap();
        assert_eq!(intx.enable().unwrap(), State::Carried(Path::Relay));
        let mut bench = Self {
            runner: Runner::new(event_loop, relay),
            _connection: connection,
            trigger: TRIGGER.lock().unwrap().as_ref().unwrap().try_clone().unwrap(),
            notifier,
            device,
            source,
        };
        // What changed before the loop began, and the checks of a first signal.
        bench.runner.run(Duration::ZERO);
        for _ in 0..4 {
            bench.round();
        }
        bench
    }

    /// One interrupt: six system calls, two of which are the test's.
    fn round(&mut self) {
        signal(&self.trigger);
        self.runner.run(PATIENCE);
        self.notifier.eoi(Gsi(10)).unwrap();
        self.runner.run(PATIENCE);
    }

    /// How often the line was asserted and the device unmasked since the last call.
    fn counts(&self) -> (u64, u64) {
        (common::take(&self.source.trigger), common::take(&self.device.0))
    }
}

fn allocates_nothing(event_loop: Loop) {
    let mut bench = Bench::new(event_loop);
    bench.counts();
    let before = allocations_on_this_thread();
    for _ in 0..1_000 {
        bench.round();
    }
    assert_eq!(allocations_on_this_thread() - before, 0, "{event_loop:?}");
    assert_eq!(bench.counts(), (1_000, 1_000), "each round was a whole one");
}

fn takes_four_system_calls(event_loop: Loop) {
    let count = |rounds: u32| -> Vec<(String, u64)> {
        let log = std::env::temp_dir().join(format!("vfio-intx-strace-{}", std::process::id()));
        let status = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(&log)
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, format!("{event_loop:?} {rounds}"))
            .status()
            .unwrap();
        assert!(status.success());
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let calls = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), calls))
        };
        text.lines()
            .filter_map(line)
            .filter(|(name, _)| name != "total")
            .collect()
    };
    let (few, many) = (count(1_000), count(3_000));
    let per_round: Vec<(String, f64)> = many
        .iter()
        .map(|(name, calls)| {
            let before = few
                .iter()
                .find(|(other, _)| other == name)
                .map_or(0, |(_, calls)| *calls);
            (name.clone(), (*calls as f64 - before as f64) / 2_000.0)
        })
        .filter(|(_, calls)| *calls != 0.0)
        .collect();
    println!("{event_loop:?}: system calls of a round, two of them the test's own: {per_round:?}");
    let of = |wanted: &str| -> f64 {
        let matching = per_round.iter().filter(|(name, _)| name.starts_with(wanted));
        matching.map(|(_, calls)| calls).sum()
    };
    assert_eq!(
        of("write"),
        4.0,
        "the device's, the EOI's; one to assert, one to unmask"
    );
    assert_eq!(of("epoll_"), 2.0, "two waits, no epoll_ctl");
    assert_eq!(of(""), 6.0, "and nothing else");
}

/// What the relay has added to an event-manager it takes out again when its INTx is gone.
fn an_event_manager_is_left_clean() {
    let (intx, relay) = Intx::new(level()).unwrap();
    let (intx, connection) = connection(intx);
    let guest = SoftGuest::new();
    let mut manager: EventManager<Box<dyn MutEventSubscriber + Send>> = EventManager::new().unwrap();
    let id = manager.add_subscriber(Box::new(relay));
    for line in [guest.a.relay(), guest.a.kernel(), guest.b.relay()] {
        connection.set_consumer(to(line)).unwrap();
        intx.enable().unwrap();
        let _ = manager.run_with_timeout(0).unwrap();
    }
    drop((connection, intx));
    assert_eq!(manager.run_with_timeout(1_000).unwrap(), 1, "it is told of the end");
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
    let relay = manager.remove_subscriber(id).unwrap();
    let before = fds();
    drop(relay);
    assert_eq!(before - fds(), 4, "its three eventfds and its epoll instance");
}

/// Every operation, and every failure of every step, gives back what it took.
fn no_fd_is_left_open() {
    let all = |device: &Arc<ModelIntx>, fails: Option<usize>| {
        let guest = SoftGuest::new();
        let (intx, relay) = Intx::new(device.clone()).unwrap();
        if let Some(step) = fails {
            device.refuse(step, 1, 12);
        }
        let (intx, connection) = connection(intx);
        for line in [
            guest.a.relay(),
            guest.a.kernel(),
            guest.b.split(),
            guest.b.without_trigger(),
        ] {
            drop(connection.set_consumer(to(line)));
            drop(intx.enable());
            drop(intx.mask());
            drop(intx.unmask());
        }
        drop(intx.reset(|| device.reset()));
        drop(intx.enter_msi());
        drop(intx.leave_msi());
        drop(connection.set_consumer(None));
        let status = intx.status();
        // In both orders.
        if status.fallbacks % 2 == 0 {
            drop(relay);
        }
        drop((connection, intx));
        (status.fallbacks, device.is_enabled())
    };
    // Once for what the process opens on first use.
    all(&level(), None);
    let before = fds();
    let mut fallbacks = 0;
    for step in 0..60 {
        let device = level();
        let (fell_back, enabled) = all(&device, Some(step));
        fallbacks += fell_back;
        assert!(!enabled, "step {step}: torn down");
        drop(device);
        assert_eq!(fds(), before, "step {step}");
    }
    assert!(fallbacks > 3, "{fallbacks} fallbacks: the steps were reached");
}
