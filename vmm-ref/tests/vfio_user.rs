// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of a vfio-user server, and its INTx in the embedded guest: no hardware, no VFIO, and real KVM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../crates/vfio-intx/examples/vfio-user-edu/edu.rs"]
mod edu;

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Lines};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use edu::{Edu, Intx};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::harness::Suite;
use testkit::need::Need;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};

fn main() -> ExitCode {
    if let Some(path) = std::env::var_os(SERVE) {
        return serve(Path::new(&path));
    }
    let pic = [Need::GenuinePicEoi];
    let lapic = [Need::GenuineLapicEoi];
    let split = [Need::SplitIrqchip, Need::GenuineLapicEoi];
    // One at a time: each is two processes that wait for each other.
    Suite::new("vmm-ref::vfio_user")
        .serial()
        .test("the_kernel_loop_loses_nothing_on_the_8259", &pic, || {
            loses_nothing(Intx::Level, "--irqchip kernel --controller pic --forward kernel");
        })
        .test("the_relay_loses_nothing_on_the_8259", &pic, || {
            loses_nothing(Intx::Level, "--irqchip kernel --controller pic --forward relay");
        })
        .test("the_relay_loses_nothing_on_the_8259_in_userspace", &[Need::Kvm], || {
            loses_nothing(Intx::Level, "--irqchip user --forward relay");
        })
        .test("the_kernel_loop_loses_nothing_on_the_ioapic", &lapic, || {
            loses_nothing(Intx::Level, "--irqchip kernel --controller ioapic --forward kernel");
        })
        .test("the_split_kick_loses_nothing", &split, || {
            loses_nothing(Intx::Level, "--irqchip split --forward split-kick");
        })
        .test("a_device_that_pulses_is_relayed", &pic, || {
            loses_nothing(Intx::Pulse, "--irqchip kernel --controller pic --forward relay");
        })
        .test("a_device_that_pulses_has_no_kernel_loop", &pic, refuses_the_loop)
        .test("without_the_guests_eoi_nothing_goes_on", &pic, hangs)
        .test("without_a_server_it_says_how_to_start_one", &[Need::Kvm], no_server)
        .test("another_device_is_named_by_its_ids", &[Need::Kvm], another_device)
        .test("row_146_a_server_that_is_silent", &[Need::Kvm], silent_server)
        .test("row_146_a_server_that_stops_under_the_relay", &[Need::Kvm], || {
            stops("--irqchip user --forward relay");
        })
        .test("row_146_a_server_that_stops_under_the_kernel_loop", &pic, || {
            stops("--irqchip kernel --controller pic --forward kernel");
        })
        .test("row_146_a_server_that_ends", &[Need::Kvm], ends)
        .run()
}

/// A server for one client, in another thread of this process.
struct Served {
    path: PathBuf,
    thread: Option<JoinHandle<u64>>,
}

impl Served {
    fn new(intx: Intx) -> Self {
        let path = socket();
        let server = edu::server(&path, intx).unwrap();
        let thread = thread::spawn(move || {
            let mut edu = Edu::new(intx);
            server.run(&mut edu).unwrap();
            edu.model().signals()
        });
        Self {
            path,
            thread: Some(thread),
        }
    }

    /// How often the device has signalled, after its one client has gone.
    fn signals(mut self) -> u64 {
        self.thread.take().unwrap().join().unwrap()
    }
}

/// In the environment of a child: be a server there.
const SERVE: &str = "VMM_REF_TEST_SERVE";

/// A server in a process of its own, which says when its device has interrupted often enough to call it traffic.
fn serve(path: &Path) -> ExitCode {
    let server = edu::server(path, Intx::Level).unwrap();
    let mut edu = Edu::new(Intx::Level);
    let model = Arc::clone(edu.model());
    println!("listens");
    thread::spawn(move || {
        while model.signals() < 100 {
            thread::sleep(Duration::from_millis(1));
        }
        println!("traffic");
    });
    server.run(&mut edu).unwrap();
    ExitCode::SUCCESS
}

/// That process. Killed when dropped.
struct ServerProcess {
    path: PathBuf,
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl ServerProcess {
    fn new() -> Self {
        let path = socket();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(SERVE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { path, child, says };
        server.await_line("listens");
        server
    }

    fn await_line(&mut self, line: &str) {
        assert_eq!(self.says.next().unwrap().unwrap(), line);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.path));
    }
}

/// A run that does not end by itself.
fn endless(path: &Path, arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
        .args(["run", "--json", "--count", "1000000000", "--device"])
        .arg(format!("vfio-user:{}", path.display()))
        .args(arguments.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The run failed, and said so in one line that names the device's server or the guest's access to the device.
fn assert_failed_in_one_line(output: &Output) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success() && output.status.code().is_some(), "{output:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!said.contains("panicked") && !said.contains("start a server"), "{said}");
}

/// The server stops answering while its device interrupts and the vCPU's thread is being signalled.
fn stops(arguments: &str) {
    let mut server = ServerProcess::new();
    let run = endless(&server.path, arguments);
    server.await_line("traffic");
    server.signal(Signal::STOP);
    let output = run.wait_with_output().unwrap();
    assert_failed_in_one_line(&output);
}

/// The server is killed while its device interrupts.
fn ends() {
    let mut server = ServerProcess::new();
    let run = endless(&server.path, "--irqchip user --forward relay");
    server.await_line("traffic");
    server.signal(Signal::KILL);
    let output = run.wait_with_output().unwrap();
    assert_failed_in_one_line(&output);
}

/// A server that listens and says nothing.
fn silent_server() {
    let path = socket();
    let _listener = UnixListener::bind(&path).unwrap();
    let output = program(&format!("vfio-user:{}", path.display()), "--irqchip user");
    assert_failed_in_one_line(&output);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("VFIO_USER_VERSION"), "{said}");
    std::fs::remove_file(path).unwrap();
}

/// A device that the embedded guest cannot drive.
fn another_device() {
    let path = socket();
    let server = edu::server(&path, Intx::Level).unwrap();
    let thread = thread::spawn(move || drop(server.run(&mut NetworkCard)));
    let output = program(&format!("vfio-user:{}", path.display()), "--irqchip user");
    thread.join().unwrap();
    assert_failed_in_one_line(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("8086:10d3") && said.contains("edu (1234:11e8) only"),
        "{said}"
    );
}

struct NetworkCard;

impl ServerBackend for NetworkCard {
    fn region_read(&mut self, _: u32, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(&[0x86, 0x80, 0xd3, 0x10][..data.len()]);
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        Ok(())
    }
    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

fn socket() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vmm-ref-{}-{n}.sock", std::process::id()))
}

fn program(device: &str, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
        .args(["run", "--json", "--device", device])
        .args(arguments.split(' '))
        .output()
        .unwrap()
}

fn run(served: &Served, arguments: &str) -> (Option<i32>, Value) {
    let output = program(&format!("vfio-user:{}", served.path.display()), arguments);
    let object = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), object)
}

fn loses_nothing(intx: Intx, arguments: &str) {
    const COUNT: u64 = 1000;
    let served = Served::new(intx);
    let (status, object) = run(&served, &format!("{arguments} --count {COUNT}"));
    assert_eq!((status, &object["outcome"]), (Some(0), &"ok".into()), "{object}");
    assert_eq!(
        (&object["serviced"], &object["lost"]),
        (&COUNT.into(), &0.into()),
        "{object}"
    );
    // With an irqfd a pulse may run the handler once more than needed. That run has an EOI too, at which a device with a
    // request signals.
    if intx == Intx::Level {
        assert_eq!(served.signals(), COUNT, "the device signals once for each interrupt");
        assert_eq!(
            (&object["resampled"], &object["spurious"]),
            (&COUNT.into(), &0.into()),
            "{object}"
        );
    }
}

fn refuses_the_loop() {
    let served = Served::new(Intx::Pulse);
    let device = format!("vfio-user:{}", served.path.display());
    let output = program(&device, "--irqchip kernel --controller pic --forward kernel");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the device pulses") && said.contains("use --forward relay"),
        "{said}"
    );
    assert_eq!(served.signals(), 0);
}

/// The negative control: the handler serves the device and does not end the interrupt.
fn hangs() {
    let served = Served::new(Intx::Level);
    let (status, object) = run(&served, "--irqchip kernel --controller pic --no-guest-eoi");
    assert_eq!((status, &object["outcome"]), (Some(0), &"no-eoi".into()), "{object}");
    assert_eq!(
        (&object["serviced"], &object["resampled"]),
        (&1.into(), &0.into()),
        "{object}"
    );
    assert_eq!(served.signals(), 1);
}

fn no_server() {
    let device = format!("vfio-user:{}", socket().display());
    let output = program(&device, "--irqchip user");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains(&device) && said.contains("--example vfio-user-edu"),
        "{said}"
    );
}
