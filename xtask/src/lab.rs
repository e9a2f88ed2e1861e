// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask lab`: a PC emulated in software, with what build machines lack.
//!
//! It has a KVM whose LAPIC waits for the guest's own EOI, an IOMMU, and PCI devices with an INTx pin that are bound to
//! vfio-pci. The programs in it are the build machine's own.

mod debian;
mod emulator;
mod guest;
mod initramfs;
mod kernel;
mod machine;
mod modules;
mod script;
pub mod suite;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use self::emulator::{Emulator, Qemu};
use self::kernel::{Kernel, Linux};
use self::machine::{Sink, TimeLimitStruck};
use crate::cargo::Workspace;

/// What a run may take when nothing else is said.
pub const TIME_LIMIT: Duration = Duration::from_secs(1200);

/// Exit codes of our own, as timeout(1) and container engines have them.
const TIME_LIMIT_STRUCK: u8 = 124;
const LAB_FAILED: u8 = 125;

/// Run a command, or the lab test suite, in an emulated PC with KVM, VFIO and a PCI device.
///
/// The PC is emulated in software: it needs neither virtualisation nor VFIO on this machine. In it are Debian's kernel, KVM
/// with nested SVM and a LAPIC whose EOI is the guest's own, an IOMMU with interrupt remapping, and QEMU's `edu` device at
/// 0000:00:02.0, bound to vfio-pci. The command runs as root in this machine's file tree and in the current directory; what
/// it writes there is gone afterwards. A first word that is a program of this workspace, such as `vmm-ref`, is built with
/// --release first. Its standard output and standard error are passed on, and its exit status is returned; 124 says that
/// the time limit struck, 125 that the lab failed. The log is in target/lab/last.log.
///
/// A Linux guest finds its kernel, initrd and disk in target/lab/cache/linux-VERSION: vmlinuz, guest-initrd and guest-disk, of
/// which IRQ_TEST_GUEST_KERNEL, IRQ_TEST_GUEST_INITRD and IRQ_TEST_GUEST_DISK are the paths.
///
/// Kernel, busybox and, when it is not installed, QEMU are fetched from Debian's packages once, and unpacked in target/lab.
/// After that no network is needed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cargo xtask lab                                       the lab test suite
  cargo xtask lab -- ls -l /dev/kvm /dev/vfio           one command
  cargo xtask lab --edu 2 -- sh -c 'cat /proc/interrupts'
  cargo xtask lab --linux 7.3 --qemu 11.1 -- uname -r   another kernel and emulator
  cargo xtask lab --time-limit 60 -- vmm-ref probe      a program of this workspace
  cargo xtask lab --verbose -- dmesg                    with the console of the PC")]
pub struct Options {
    /// The kind of machine
    #[arg(value_enum, default_value = "x86_64")]
    machine: Kind,

    #[command(flatten)]
    setup: Setup,

    /// Number of edu devices: the first at 0000:00:02.0, the next at 0000:00:03.0 (the suite has its own number)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=8))]
    edu: u8,

    /// End the run after so many seconds, counted from power-on
    #[arg(long, value_name = "SECONDS", default_value_t = TIME_LIMIT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: u64,

    /// Show the console of the PC on standard error
    #[arg(short, long)]
    verbose: bool,

    /// The command and its arguments; without one, the lab test suite runs
    #[arg(last = true)]
    command: Vec<String>,
}

/// Which kernel the lab boots, and in which emulator.
#[derive(Clone, Debug, Args)]
pub struct Setup {
    /// The kernel: Debian's 6.1, 6.12 or 7.3, or a directory with boot/vmlinuz-VERSION and lib/modules/VERSION
    #[arg(long, value_name = "KERNEL", default_value = Linux::DEFAULT)]
    linux: Linux,

    /// The emulator: Debian's QEMU 7.2 or 11.1, or a program; otherwise the installed one, or 7.2
    #[arg(long, value_name = "QEMU", default_value = "any", hide_default_value = true)]
    qemu: Emulator,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            linux: Linux::default(),
            qemu: Emulator::Any,
        }
    }
}

/// What the emulated PC is made of.
#[derive(Debug)]
struct Parts {
    kernel: Kernel,
    qemu: Qemu,
}

impl Parts {
    fn provide(cache: &Path, setup: &Setup) -> Result<Self> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            bail!("the lab runs this machine's programs in a PC: it needs Linux on x86_64");
        }
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        Ok(Self {
            kernel: kernel::provide(cache, &setup.linux)?,
            qemu: emulator::provide(cache, &setup.qemu)?,
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    #[value(name = "x86_64")]
    X86_64,
}

/// Runs the command or the suite. What goes wrong is told here, so that the exit code tells it from the command's own.
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

fn run_command(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut words = options.command.clone();
    if let Some(program) = workspace.build_binary(&words[0])? {
        words[0] = program;
    }
    let directory = std::env::current_dir().context("cannot tell the current directory")?;
    let run = Run {
        script: script::command(&directory, &words),
        edu: options.edu,
        time_limit: Duration::from_secs(options.time_limit),
        verbose: options.verbose,
    };
    let stdout: Sink = Box::new(|bytes| {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    });
    let status = Lab::open(workspace.target(), run.time_limit, &options.setup)?.run(&run, stdout)?;
    Ok(ExitCode::from(status))
}

fn run_suite(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let time_limit = Duration::from_secs(options.time_limit);
    let lab = Lab::open(workspace.target(), time_limit, &options.setup)?;
    let total = suite::run(&lab, &workspace, &suite::packages(&[]), time_limit, options.verbose)?;
    print!("\n{total}");
    Ok(total.exit_code())
}

/// What to run in the lab, and how.
#[derive(Debug)]
pub struct Run {
    /// A shell script.
    script: String,
    /// Number of edu devices.
    edu: u8,
    /// From power-on to the end of the script.
    time_limit: Duration,
    /// Show the console on standard error.
    verbose: bool,
}

/// The lab of this checkout, ready, and ours alone until it is dropped.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    parts: Parts,
    /// Holds the lock.
    _lock: File,
}

impl Lab {
    /// Waits until no other process uses the lab in `target`, but not longer than `patience`, and provides what it is made of.
    ///
    /// An error says why there can be no lab on this machine, and how to mend that.
    pub fn open(target: &Path, patience: Duration, setup: &Setup) -> Result<Self> {
        let directory = target.join("lab");
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let lock = lock(&directory.join("lock"), patience)?;
        let parts = Parts::provide(&directory.join("cache"), setup)?;
        Ok(Self {
            directory,
            parts,
            _lock: lock,
        })
    }
}

/// Locks the file `path` for as long as the result lives.
fn lock(path: &Path, patience: Duration) -> Result<File> {
    let context = || format!("cannot lock {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(context)?;
    let start = Instant::now();
    let mut told = false;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error).with_context(context),
        }
        let holder = fs::read_to_string(path).unwrap_or_default();
        if start.elapsed() >= patience {
            bail!("process {holder} still uses the lab after {} s", patience.as_secs());
        }
        if !told {
            eprintln!("lab: process {holder} uses the lab of this checkout; waiting for its end");
            told = true;
        }
        thread::sleep(Duration::from_millis(200));
    }
    file.set_len(0).with_context(context)?;
    write!(file, "{}", std::process::id()).with_context(context)?;
    Ok(file)
}
