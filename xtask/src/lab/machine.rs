// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The emulated PC: one boot, one command, one ending.
//!
//! QEMU writes four streams into pipes: the console, and by way of virtio-serial ports the command's standard output,
//! its standard error, and the messages of init.sh (`up`, `alive` every few seconds, then `exit STATUS STDOUT-BYTES
//! STDERR-BYTES`). A virtio port takes bytes before the host has them, so the PC must not end itself: the lab ends the
//! PC when the announced bytes have arrived.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::io::{Errno, FdFlags};
use rustix::pipe::PipeFlags;

use super::arch::Arch;
use super::initramfs::Archive;
use super::parts::{Parts, Setup};
use super::script::quote_path;
use super::{cards, guest};
use crate::debian::find_program;
use crate::progress::Meter;

/// The error of a run that took too long.
#[derive(Debug)]
pub struct TimeLimitStruck {
    limit: Duration,
    booted: bool,
    log: PathBuf,
}

impl fmt::Display for TimeLimitStruck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, log) = (self.limit.as_secs(), self.log.display());
        write!(
            f,
            "the time limit of {limit} s of the PC's own time struck {}; see {log}",
            stage(self.booted)
        )
    }
}

impl Error for TimeLimitStruck {}

/// The error of a PC that stopped. Programs in the PC cannot stop its processor, so this is a fault of the emulator.
#[derive(Debug)]
pub struct Hung {
    log: PathBuf,
}

impl fmt::Display for Hung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (silence, log) = (SILENCE.as_secs(), self.log.display());
        write!(
            f,
            "the PC has hung: no sign of life for {silence} s of its own time; see {log}"
        )
    }
}

impl Error for Hung {}

/// The error of a part of the script that did not end.
#[derive(Debug)]
pub struct PartHung;

impl fmt::Display for PartHung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "took more than {} s of the PC's own time", PART_LIMIT.as_secs())
    }
}

impl Error for PartHung {}

fn stage(booted: bool) -> &'static str {
    if booted {
        "while the command ran"
    } else {
        "before the command began"
    }
}

/// A kernel with a fault ends at once and prints all its messages (`panic=-1` resets, which ends QEMU). A busy build
/// machine causes soft lockups of less than a minute.
const KERNEL_COMMAND_LINE: &str =
    "panic=-1 oops=panic softlockup_panic=1 softlockup_all_cpu_backtrace=1 watchdog_thresh=30 mitigations=off";

/// How QEMU emulates the CPUs. One thread for two CPUs, because the emulator does not keep two threads apart. Seen with
/// QEMU 7.2, 10.0 and 11.1, within a minute or two of exits from two VMs at a time: the end of a VM is followed by
/// another one that saves the host's own registers as the guest's, which then runs in the host's memory; and, before
/// 8.1, a CPU that translates kernel text while another patches it keeps a breakpoint for ever. In one thread the CPUs
/// take turns: their instructions interleave, and nothing of that was seen. A round trip is faster on one CPU: the
/// interrupt wakes a thread, and not a halted CPU of the emulator.
fn acceleration(cpus: u8) -> &'static str {
    match cpus {
        1 => "tcg,thread=multi",
        _ => "tcg,thread=single",
    }
}

/// A PC that sends no message for this much of its own time has hung.
const SILENCE: Duration = Duration::from_secs(60);

/// The limit of the PC's own time for a part of the script: about four times the time of the longest part.
const PART_LIMIT: Duration = Duration::from_secs(600);

/// Takes a stream as it comes.
pub type Sink = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Console,
    Stdout,
    Stderr,
}

#[derive(Debug)]
enum Event {
    Up,
    Alive,
    Exit { status: u8, stdout: u64, stderr: u64 },
    Passed(Stream, usize),
    Closed,
    Unwritable(Stream, io::Error),
}

/// A run of the lab: the script and its settings.
#[derive(Debug)]
pub struct Run {
    /// A shell script.
    pub script: String,
    /// Number of CPUs.
    pub cpus: u8,
    /// Number of edu devices.
    pub edu: u8,
    /// The limit of the PC's own time from power-on to the end of the script.
    pub time_limit: Duration,
    /// Counts the parts that the script has begun, for a script in parts.
    pub parts_begun: Arc<AtomicUsize>,
    /// Show the console on standard error.
    pub verbose: bool,
}

/// The lab of this checkout, ready, and locked for this process until it is dropped.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    arch: Arch,
    parts: Parts,
    /// Holds the lock.
    _lock: File,
}

impl Lab {
    /// Waits until no other process uses the lab of this machine in `target`, and provides its parts. The wait ends, because every
    /// process that uses the lab has time limits.
    ///
    /// An error says why this machine cannot have a lab, and how to mend that.
    pub fn open(target: &Path, setup: &Setup) -> Result<Self> {
        let cache = target.join("lab/cache");
        let directory = target.join("lab").join(setup.arch.directory());
        for made in [&cache, &directory] {
            fs::create_dir_all(made).with_context(|| format!("cannot create {}", made.display()))?;
        }
        let lab = lock(&directory.join("lock"))?;
        let fetching = lock(&cache.join("lock"))?;
        let parts = Parts::provide(&cache, setup)?;
        drop(fetching);
        Ok(Self {
            directory,
            arch: setup.arch,
            parts,
            _lock: lab,
        })
    }
}

impl Lab {
    /// The versions of the kernel and of the emulator.
    pub fn describe(&self) -> Result<String> {
        let (linux, qemu) = (self.parts.kernel.release()?, self.parts.qemu.version()?);
        Ok(format!("Linux {linux} in QEMU {qemu}"))
    }
}

/// Locks the file `path` for as long as the result lives.
fn lock(path: &Path) -> Result<File> {
    let context = || format!("cannot lock {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(context)?;
    let mut told = false;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error).with_context(context),
        }
        if !told {
            let holder = fs::read_to_string(path).unwrap_or_default();
            eprintln!("lab: process {holder} uses the lab of this checkout; waiting for its end");
            told = true;
        }
        thread::sleep(Duration::from_millis(200));
    }
    file.set_len(0).with_context(context)?;
    write!(file, "{}", std::process::id()).with_context(context)?;
    Ok(file)
}

impl Lab {
    /// The processor of the emulated machine.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Boots the PC, runs the script as root in the PC, in the build machine's file tree, and returns the script's
    /// status.
    ///
    /// The script's output goes to `stdout`, to the standard error of this process, and to the log. A
    /// [`TimeLimitStruck`] is an error like a PC that goes down before the script has ended.
    pub fn run(&self, run: &Run, stdout: Sink) -> Result<u8> {
        self.write_initramfs(run)?;
        let path = self.log();
        let context = || format!("cannot write {}", path.display());
        fs::write(&path, "").with_context(context)?;
        let log = || OpenOptions::new().append(true).open(&path).with_context(context);
        let stderr: Sink = Box::new(|bytes| io::stderr().write_all(bytes));
        let console: Sink = if run.verbose {
            Box::new(|bytes| io::stderr().write_all(bytes))
        } else {
            Box::new(|_| Ok(()))
        };

        let (sender, events) = mpsc::channel();
        let mut ends = Vec::new();
        for (stream, sink) in [
            (Stream::Console, console),
            (Stream::Stdout, stdout),
            (Stream::Stderr, stderr),
        ] {
            let (ours, qemus) = pipe()?;
            ends.push(qemus);
            let (sender, log) = (sender.clone(), log()?);
            thread::spawn(move || pass_on(stream, ours, sink, log, &sender));
        }
        let (ours, qemus) = pipe()?;
        ends.push(qemus);
        thread::spawn(move || read_control(ours, &sender));

        let mut qemu = self.qemu(run, &ends);
        writeln!(log()?, "{qemu:?}").context("cannot write the log")?;
        let child = qemu
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?)
            .spawn()
            .context("cannot start QEMU")?;
        drop(ends);
        self.watch(run, Running(child), &events)
    }

    /// Handles the events until the end. QEMU has ended when this returns.
    fn watch(&self, run: &Run, mut qemu: Running, events: &Receiver<Event>) -> Result<u8> {
        let mut meter = Meter::new(qemu.0.id());
        let mut spent = meter.look();
        let mut booted = false;
        let (mut alive, mut part) = (spent.own, (0, spent.own));
        let mut announced = None;
        let (mut stdout_bytes, mut stderr_bytes) = (0, 0);
        let mut open = 3;
        loop {
            if let Some((status, stdout, stderr)) = announced {
                if stdout_bytes >= stdout && stderr_bytes >= stderr {
                    return Ok(status);
                }
            }
            spent = meter.tick().unwrap_or(spent);
            if spent.own >= run.time_limit {
                qemu.kill();
                drain(events);
                bail!(TimeLimitStruck {
                    limit: run.time_limit,
                    booted,
                    log: self.log()
                });
            }
            if booted && announced.is_none() && spent.own >= alive + SILENCE {
                qemu.kill();
                drain(events);
                // Keep the log under another name, because another boot may follow and overwrite it.
                let log = self.log().with_file_name("hung.log");
                fs::copy(self.log(), &log).with_context(|| format!("{}", log.display()))?;
                bail!(Hung { log });
            }
            let begun = run.parts_begun.load(Ordering::Relaxed);
            if begun != part.0 {
                part = (begun, spent.own);
            } else if begun > 0 && announced.is_none() && spent.own >= part.1 + PART_LIMIT {
                qemu.kill();
                drain(events);
                bail!(PartHung);
            }
            match events.recv_timeout(Duration::from_millis(100)) {
                Ok(Event::Up) => {
                    booted = true;
                    alive = spent.own;
                    if run.verbose {
                        eprintln!("lab: up after {spent}");
                    }
                }
                Ok(Event::Alive) => alive = spent.own,
                Ok(Event::Exit { status, stdout, stderr }) => announced = Some((status, stdout, stderr)),
                Ok(Event::Passed(Stream::Stdout, bytes)) => stdout_bytes += bytes as u64,
                Ok(Event::Passed(Stream::Stderr, bytes)) => stderr_bytes += bytes as u64,
                Ok(Event::Passed(Stream::Console, _)) => {}
                Ok(Event::Closed) => open -= 1,
                Ok(Event::Unwritable(stream, error)) => {
                    return Err(error).with_context(|| format!("cannot write {stream:?}"));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = 0,
            }
            if open == 0 {
                let how = qemu.wait()?;
                let (stage, log) = (stage(booted), self.log());
                bail!(
                    "the PC went down {stage} ({how}); see {}\n{}",
                    log.display(),
                    last_words(&log)
                );
            }
        }
    }

    fn write_initramfs(&self, run: &Run) -> Result<()> {
        let base = &self.parts.kernel.initramfs;
        let mut bytes = fs::read(base).with_context(|| format!("cannot read {}", base.display()))?;
        let mut archive = Archive::default();
        archive.file("init", include_bytes!("init.sh"))?;
        archive.file("neighbours", include_bytes!("neighbours.sh"))?;
        archive.file("vfio", cards::for_vfio(self.arch, run.edu).as_bytes())?;
        archive.file("command", (guest_exports(&self.parts) + &run.script).as_bytes())?;
        bytes.extend(archive.finish()?);
        let path = self.initramfs();
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The initramfs of the run: the provided parts, init.sh, and the script.
    fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// Console, output and QEMU's own messages of the last run.
    fn log(&self) -> PathBuf {
        self.directory.join("last.log")
    }

    /// The command line of the PC. `ends` are the pipes of the console, standard output, standard error and control.
    fn qemu(&self, run: &Run, ends: &[OwnedFd]) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        // QEMU ends when this process ends for any reason.
        if let Some(setpriv) = find_program("setpriv") {
            words.push(setpriv.into_os_string());
            words.extend(["--pdeathsig", "KILL"].map(OsString::from));
        }
        words.push("env".into());
        words.extend(self.parts.qemu.command_line());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);

        command.args(self.arch.board());
        // Software emulation works on every machine.
        command.args([
            "-accel",
            acceleration(run.cpus),
            "-smp",
            &run.cpus.to_string(),
            "-m",
            "2048",
        ]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(cards::arguments(
            self.arch,
            run.edu,
            &self.parts.beside_kernel(guest::DISK),
        ));
        let host = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap";
        command.args(["-fsdev", host]);
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host,addr=0x10"]);
        command.args(["-device", "virtio-serial-pci,addr=0x11"]);
        for (name, end) in ["console", "stdout", "stderr", "control"].iter().zip(ends) {
            command
                .arg("-chardev")
                .arg(format!("file,id={name},path=/dev/fd/{}", end.as_raw_fd()));
            if *name == "console" {
                command.args(["-serial", "chardev:console"]);
            } else {
                command
                    .arg("-device")
                    .arg(format!("virtserialport,chardev={name},name=lab.{name}"));
            }
        }
        command.arg("-kernel").arg(&self.parts.kernel.image);
        command.arg("-initrd").arg(self.initramfs());
        let loglevel = if run.verbose { 7 } else { 5 };
        command.arg("-append").arg(format!(
            "{} {KERNEL_COMMAND_LINE} loglevel={loglevel}",
            self.arch.kernel_arguments()
        ));
        command
    }
}

/// The end of the log, without the messages that QEMU always prints.
fn last_words(log: &Path) -> String {
    let log = fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log
        .lines()
        .skip(1) // the command line
        .filter(|line| !line.contains("TCG doesn't support requested feature"))
        .collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// A QEMU that is killed when it goes out of scope.
#[derive(Debug)]
struct Running(Child);

impl Running {
    fn kill(&mut self) {
        // Fails when QEMU has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        self.0.wait().context("cannot wait for QEMU")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pipe: the end of this process, and the end that QEMU inherits.
fn pipe() -> Result<(File, OwnedFd)> {
    let (ours, qemus) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    rustix::io::fcntl_setfd(&qemus, FdFlags::empty()).context("cannot pass a pipe to QEMU")?;
    Ok((ours.into(), qemus))
}

/// Copies one stream to its sink and to the log, and reports the number of bytes.
fn pass_on(stream: Stream, mut from: File, mut sink: Sink, mut log: File, events: &Sender<Event>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let event = match log.write_all(bytes).and_then(|()| sink(bytes)) {
            Ok(()) => Event::Passed(stream, bytes.len()),
            Err(error) => Event::Unwritable(stream, error),
        };
        if events.send(event).is_err() {
            return; // the receiver has gone
        }
    }
    let _ = events.send(Event::Closed);
}

/// Reads the messages of init.sh.
fn read_control(from: File, events: &Sender<Event>) {
    for line in BufReader::new(from).lines().map_while(io::Result::ok) {
        let event = match line.as_str() {
            "up" => Some(Event::Up),
            "alive" => Some(Event::Alive),
            line => parse_exit(line),
        };
        if let Some(event) = event {
            let _ = events.send(event);
        }
    }
}

fn parse_exit(line: &str) -> Option<Event> {
    let mut words = line.strip_prefix("exit ")?.split_whitespace();
    Some(Event::Exit {
        status: words.next()?.parse().ok()?,
        stdout: words.next()?.parse().ok()?,
        stderr: words.next()?.parse().ok()?,
    })
}

/// Waits for the remaining output: until every stream is closed, but only for a short time.
fn drain(events: &Receiver<Event>) {
    let end = Instant::now() + Duration::from_secs(2);
    while let Ok(_event) = events.recv_timeout(end.saturating_duration_since(Instant::now())) {}
}

/// Settings for the lab's script: where kernel, initrd and disk are, the words that start the lab's own QEMU in the
/// lab, and the script that brings up the neighbours of the network cards.
fn guest_exports(parts: &Parts) -> String {
    let beside = |name: &str| quote_path(&parts.beside_kernel(name));
    let qemu: Vec<_> = parts
        .qemu
        .command_line()
        .into_iter()
        .map(|word| quote_path(Path::new(&word)))
        .collect();
    format!(
        "export IRQ_TEST_GUEST_KERNEL={}\nexport IRQ_TEST_GUEST_INITRD={}\nexport IRQ_TEST_GUEST_DISK={}\n\
         export IRQ_TEST_QEMU=\"env {}\"\nexport IRQ_TEST_NEIGHBOURS=/run/lab/neighbours\n",
        quote_path(&parts.kernel.image),
        beside(guest::INITRD),
        beside(guest::DISK),
        qemu.join(" ")
    )
}
