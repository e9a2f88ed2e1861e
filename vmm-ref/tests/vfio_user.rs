// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of a vfio-user server, and its INTx in the embedded guest: no hardware, no VFIO, and real KVM.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../crates/vfio-intx/examples/vfio-user-edu/edu.rs"]
mod edu;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use edu::{Edu, Intx};
use serde_json::Value;
use testkit::harness::Suite;
use testkit::need::Need;

fn main() -> ExitCode {
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

fn socket() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vmm-ref-{}-{n}.sock", std::process::id()))
}

fn program(device: &str, arguments: &str) -> std::process::Output {
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
    for (field, expected) in [("serviced", COUNT), ("resampled", COUNT), ("lost", 0), ("spurious", 0)] {
        assert_eq!(object[field], expected, "{field}: {object}");
    }
    assert_eq!(served.signals(), COUNT, "the device signals once for each interrupt");
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
