// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask lab`: a PC or an arm64 machine emulated in software, with what build machines lack.
//!
//! It has a KVM whose interrupt controller waits for the guest's own EOI, an IOMMU, and PCI devices with an INTx pin that
//! are bound to vfio-pci. The programs in the PC are the build machine's own.

mod arch;
mod cards;
mod emulator;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod modules;
mod parts;
mod script;
pub mod suite;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

pub use self::arch::Arch;
use self::machine::TimeLimitStruck;
pub use self::machine::{Lab, Run, Sink};
pub use self::parts::Setup;
pub use self::script::quote_path;
use crate::cargo::Workspace;

/// The default limit of the PC's own time.
pub const TIME_LIMIT: Duration = Duration::from_secs(1200);

/// The lab's own exit codes, which timeout(1) and container engines use too.
const TIME_LIMIT_STRUCK: u8 = 124;
const LAB_FAILED: u8 = 125;

/// Run a command, or the lab test suite, in an emulated PC or arm64 machine with KVM, VFIO and a PCI device.
///
/// The PC is emulated in software: it needs neither virtualisation nor VFIO on this machine. In it are Debian's kernel,
/// KVM with nested SVM and a LAPIC whose EOI is the guest's own, an IOMMU with interrupt remapping, and QEMU's `edu`
/// device at 0000:00:02.0, bound to vfio-pci. So are PCI cards that Linux has drivers for: e1000 at 0000:00:0a.0 and
/// 0000:00:0c.0, rtl8139 at 0000:00:0e.0, e1000e at 0000:00:12.0, and a UHCI with a USB stick at 0000:00:14.0. Each
/// network card has a neighbour on its link, which --neighbours or the script $IRQ_TEST_NEIGHBOURS brings up as
/// 10.0.LINK.1.
///
/// The command runs as root in this machine's file tree and in the current directory; what it writes there is gone
/// afterwards. A first word that is a program of this workspace, such as `vmm-ref`, is built with --release first. Its
/// standard output and standard error are passed on, and its exit status is returned; 124 says that the time limit
/// struck, 125 that the lab failed. The log is in target/lab/last.log.
///
/// With `--arch aarch64` the machine has a GICv3, KVM with a vGIC, an SMMU and edu devices, and no PCI cards. Its programs
/// are built by Debian's compiler and need no libraries; in the place of this machine's own programs in /bin and
/// /usr/bin is busybox.
///
/// A Linux guest finds its kernel, initrd and disk in target/lab/cache/linux-VERSION: vmlinuz, guest-initrd and
/// guest-disk, of which IRQ_TEST_GUEST_KERNEL, IRQ_TEST_GUEST_INITRD and IRQ_TEST_GUEST_DISK are the paths.
///
/// Kernel, busybox, the compiler for aarch64 and, when it is not installed, QEMU are fetched from Debian's packages
/// once, and unpacked in target. After that no network is needed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask lab                                       the lab test suite
  cargo xtask lab -- ls -l /dev/kvm /dev/vfio           one command
  cargo xtask lab --edu 2 -- sh -c 'cat /proc/interrupts'
  cargo xtask lab --cpus 2 -- nproc
  cargo xtask lab --linux 7.3 --qemu 11.1 -- uname -r   another kernel and emulator
  cargo xtask lab --arch aarch64 -- uname -m            an arm64 machine
  cargo xtask lab --arch aarch64 -p kvm-irqfd           the lab tests of one package there
  cargo xtask lab --time-limit 60 -- vmm-ref probe      a program of this workspace
  cargo xtask lab --verbose -- dmesg                    with the console of the PC")]
pub struct Options {
    #[command(flatten)]
    setup: Setup,

    /// Run the lab test suite of this package alone; may be given more than once
    #[arg(short, long = "package", value_name = "PACKAGE", conflicts_with = "command")]
    packages: Vec<String>,

    /// Number of CPUs (the suite has one); two of them take turns in one thread of the emulator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    cpus: u8,

    /// Number of edu devices: the first at 0000:00:02.0, the next at 0000:00:03.0 (the suite has its own number)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=8))]
    edu: u8,

    /// First bring up the neighbours of the network cards, each of which then answers as 10.0.LINK.1
    #[arg(long, requires = "command")]
    neighbours: bool,

    /// End the run after so many seconds of the PC's own time, counted from power-on
    ///
    /// Time in which other work has this machine's CPUs is not the PC's own.
    #[arg(long, value_name = "SECONDS", default_value_t = TIME_LIMIT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: u64,

    /// Show the console of the PC on standard error
    #[arg(short, long)]
    verbose: bool,

    /// The command and its arguments; without one, the lab test suite runs
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs the command or the suite. Prints the lab's own failures, and returns an exit code that differs from the
/// command's.
pub fn run(options: &Options) -> ExitCode {
    let outcome = if options.command.is_empty() {
        run_suite(options)
    } else {
        run_command(options)
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        let struck = error.is::<TimeLimitStruck>();
        ExitCode::from(if struck { TIME_LIMIT_STRUCK } else { LAB_FAILED })
    })
}

const BRING_UP_NEIGHBOURS: &str = "$IRQ_TEST_NEIGHBOURS || exit\n";

fn run_command(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut words = options.command.clone();
    if let Some(program) =
        workspace.build_binary(&words[0], options.setup.arch.compiler(workspace.target())?.as_ref())?
    {
        words[0] = program;
    }
    let directory = std::env::current_dir().context("cannot tell the current directory")?;
    let neighbours = if options.neighbours { BRING_UP_NEIGHBOURS } else { "" };
    let run = Run {
        script: neighbours.to_owned() + &script::command(&directory, &words),
        cpus: options.cpus,
        edu: options.edu,
        time_limit: Duration::from_secs(options.time_limit),
        verbose: options.verbose,
        parts_begun: Arc::new(AtomicUsize::new(0)),
    };
    let stdout: Sink = Box::new(|bytes| {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    });
    let status = Lab::open(workspace.target(), &options.setup)?.run(&run, stdout)?;
    Ok(ExitCode::from(status))
}

fn run_suite(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let time_limit = Duration::from_secs(options.time_limit);
    let lab = Lab::open(workspace.target(), &options.setup)?;
    let arch = options.setup.arch;
    let programs = suite::build(&workspace, arch, &suite::packages(arch, &options.packages))?;
    let output: suite::Output = Arc::new(Mutex::new(io::stdout()));
    let total = suite::run(&lab, &programs, time_limit, options.verbose, &output).prefixed("lab: ");
    print!("\n{total}");
    Ok(total.exit_code())
}
