// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stock Linux as the guest, in the lab: Debian's kernel with an initrd of the lab's (xtask/src/lab/guest-init.sh),
//! which does what its command line asks for.
//!
//! A boot takes ten seconds there, so that each asks for several things.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::Value;
use testkit::harness::Suite;
use testkit::need::Need;
use vmm_ref::vm::stall::{STALL_LIMIT, StallDetector};

/// For one boot, with what is asked of the guest. On an idle machine it is 15 to 25 s.
const BOOT: Duration = Duration::from_secs(120);

const MIB: usize = 1 << 20;
const DISK: usize = 16 * MIB;

/// What the guest writes.
const WRITTEN: &[u8] = b"written by the guest\n";

fn variable(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os(name).ok_or_else(|| format!("no {name}; it is set in cargo xtask lab"))?;
    Ok(path.into())
}

fn guest() -> Result<(), String> {
    variable("IRQ_TEST_GUEST_KERNEL")?;
    variable("IRQ_TEST_GUEST_INITRD").map(drop)
}

fn main() -> ExitCode {
    let needs = |irqchip| [Need::Host("guest", guest), Need::GenuineLapicEoi, irqchip];
    let (full, split) = (needs(Need::FullIrqchip), needs(Need::SplitIrqchip));
    Suite::new("vmm-ref::linux")
        .serial()
        .test_within(
            BOOT,
            "the_kernels_irqchip_reads_writes_and_switches_itself_off",
            &full,
            reads_and_writes,
        )
        .test_within(
            BOOT,
            "two_cpus_share_a_pin_of_our_ioapic_under_load_while_it_moves",
            &split,
            shares,
        )
        .test_within(
            BOOT,
            "resample_irqfds_share_a_line_a_key_reaches_the_guest_and_sigterm_ends_it",
            &full,
            types,
        )
        .test_within(
            BOOT,
            "killed_with_our_ioapic_it_leaves_what_was_flushed_and_no_process",
            &split,
            killed,
        )
        .test_within(BOOT, "a_kernel_that_panics_resets_the_machine", &full, panics)
        .run()
}

/// A disk of the test's own, which goes with it.
struct Disk(PathBuf);

impl Disk {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vmm-ref-linux-{name}-{}", std::process::id()));
        let mut state = 1_u64;
        let content: Vec<u8> = (0..DISK / 8)
            .flat_map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                state.to_le_bytes()
            })
            .collect();
        fs::write(&path, content).unwrap();
        Self(path)
    }

    /// As sha256sum(1) has it.
    fn sha256(&self) -> String {
        let output = Command::new("sha256sum").arg(&self.0).output().unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    }

    /// Whether the first `size` bytes are what the guest writes.
    fn is_written(&self, size: usize) -> bool {
        let content = fs::read(&self.0).unwrap();
        content
            .iter()
            .zip(WRITTEN.iter().cycle())
            .take(size)
            .all(|(is, should)| is == should)
    }
}

impl Disk {
    /// A process that has it open.
    fn holder(&self) -> Option<PathBuf> {
        let has_it = |link: PathBuf| fs::read_link(link).is_ok_and(|file| file == self.0);
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
        processes.into_iter().find(|process| {
            let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            fds.map(|fd| fd.path()).any(has_it)
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The program on the lab's guest, which is to do `work`.
fn command(arguments: &str, disk: &Disk, work: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-ref"));
    command.arg("run").args(arguments.split_whitespace());
    command.arg("--kernel").arg(variable("IRQ_TEST_GUEST_KERNEL").unwrap());
    command.arg("--initrd").arg(variable("IRQ_TEST_GUEST_INITRD").unwrap());
    command.arg("--disk").arg(&disk.0);
    command.args(["--cmdline", &format!("console=ttyS0 panic=-1 quiet work={work}")]);
    command
}

/// Runs it with `--json`: the status, the console, and the object.
fn run(arguments: &str, disk: &Disk, work: &str) -> (i32, String, Value) {
    let output = command(arguments, disk, work)
        .arg("--json")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let console = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8_lossy(&output.stdout);
    let object = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{console}"));
    (output.status.code().unwrap(), console, object)
}

fn number(object: &Value, field: &str) -> u64 {
    object[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field} in {object}"))
}

/// What may come on top: interrupts of a line that went low under way, and what a device raised after the guest had
/// printed its counts.
const SPURIOUS: u64 = 8;

/// The guest's count of a line and ours: each time that a device raised its line the guest's handler ran once, and once
/// more at most for each level that was stated again. Devices that raise their line at the same time are served by one
/// run of the handler.
fn assert_agrees(devices: &[&Value]) {
    let guest = &devices[0]["guest"];
    assert_eq!(guest["flow"], "fasteoi", "{guest}");
    let count = number(guest, "count");
    let of = |field| devices.iter().map(move |device| number(device, field));
    assert!(of("raised").chain(of("eois")).all(|count| count > 0), "{devices:?}");
    assert_eq!(of("errors").sum::<u64>(), 0, "{devices:?}");
    let least = of("raised").max().unwrap();
    let most = of("raised").chain(of("reasserted")).sum::<u64>();
    let range = least.saturating_sub(SPURIOUS)..=most + SPURIOUS;
    assert!(range.contains(&count), "{range:?}: {devices:?}");
}

/// The guest has read the disk as it was.
fn assert_read(console: &str, sum: &str) {
    assert!(console.contains(&format!("guest: read {sum}  /dev/vda")), "{console}");
}

/// Under load, on one line.
fn assert_shared(console: &str, object: &Value) {
    assert_eq!(console.matches("guest: shared").count(), 2, "{console}");
    assert_eq!(console.matches("guest: moved virtio").count(), 2, "{console}");
    let (disk, entropy) = (&object["devices"][1], &object["devices"][2]);
    assert_eq!((number(disk, "gsi"), number(entropy, "gsi")), (16, 16));
    assert_agrees(&[disk, entropy]);
    assert!(
        number(disk, "raised") > 300 && number(entropy, "raised") > 100,
        "{object}"
    );
}

fn reads_and_writes() {
    let disk = Disk::new("reads");
    let sum = disk.sha256();
    let arguments = "--irqchip kernel --cpus 1 --doorbell trap";
    let (status, console, object) = run(arguments, &disk, "read,write,interrupts,status");
    assert_read(&console, &sum);
    assert!(console.contains("guest: wrote"), "{console}");
    assert_eq!((status, &object["end"]), (7, &Value::from("power-off")), "{object}");
    assert!(disk.is_written(DISK), "what the guest has written is on the disk");
    let devices = object["devices"].as_array().unwrap();
    assert_eq!(devices[0]["guest"]["flow"], "fasteoi", "the serial port");
    assert!(
        number(&devices[0], "raised") >= number(&devices[0]["guest"], "count"),
        "{object}"
    );
    assert_agrees(&[&devices[1]]);
    assert!(number(&devices[1], "raised") >= 16, "32 MiB went by: {object}");
    assert_agrees(&[&devices[2]]);
}

fn shares() {
    let disk = Disk::new("shares");
    let sum = disk.sha256();
    let arguments = "--irqchip split --cpus 2 --share-irq";
    let (status, console, object) = run(arguments, &disk, "read,share,move,share,write,interrupts");
    assert_read(&console, &sum);
    assert_eq!((status, &object["end"]), (0, &Value::from("power-off")), "{object}");
    assert!(disk.is_written(DISK), "what the guest has written is on the disk");
    assert_shared(&console, &object);
}

/// A run that has got as far as the line `until` of its console, with what the console has said, and its further lines.
fn start(mut command: Command, until: &str) -> (Child, String, impl Iterator<Item = String> + use<>) {
    let mut child = command
        .arg("--json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut seen = String::new();
    for line in lines.by_ref() {
        seen += &line;
        seen.push('\n');
        if line.contains(until) {
            return (child, seen, lines);
        }
    }
    panic!("it ended before {until:?}, {:?}: {seen}", child.wait().unwrap());
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_child(child);
    kill_process(pid, signal).unwrap();
}

/// A terminal for the program, and our side of it.
struct Terminal {
    keyboard: fs::File,
    terminal: fs::File,
}

impl Terminal {
    fn new() -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        Self {
            terminal: OpenOptions::new().read(true).write(true).open(name).unwrap(),
            keyboard: keyboard.into(),
        }
    }

    fn modes(&self) -> LocalModes {
        tcgetattr(&self.terminal).unwrap().local_modes & (LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

fn types() {
    let disk = Disk::new("types");
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    assert_eq!(before, LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);

    let arguments = "--irqchip kernel --source resample --cpus 2 --share-irq";
    let mut program = command(arguments, &disk, "share,move,share,interrupts,echo,hold");
    program.stdin(terminal.terminal.try_clone().unwrap());
    let (mut child, console, mut lines) = start(program, "guest: type");
    assert_eq!(terminal.modes(), LocalModes::ISIG, "keys go to the guest one by one");
    terminal.keyboard.write_all(b"a line\r").unwrap();
    assert!(lines.any(|line| line.contains("guest: heard a line")));
    assert!(lines.any(|line| line.contains("guest: flushed")));
    signal(&child, Signal::TERM);
    drop(lines.collect::<Vec<_>>());
    let object: Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{object}");
    assert_eq!(object["end"], "interrupted");
    assert_eq!(terminal.modes(), before, "the terminal is as it was");
    assert_shared(&console, &object);
}

fn killed() {
    let disk = Disk::new("killed");
    let terminal = Terminal::new();
    let before = terminal.modes();
    let mut program = command("--irqchip split --cpus 1", &disk, "hold");
    program.stdin(terminal.terminal.try_clone().unwrap());
    let (mut child, _, lines) = start(program, "guest: flushed");
    assert_ne!(terminal.modes(), before);
    signal(&child, Signal::KILL);
    drop(lines.collect::<Vec<_>>());
    assert!(!child.wait().unwrap().success());
    assert!(disk.is_written(4 * MIB), "what the guest had flushed is on the disk");
    // Another process puts the terminal back, and ends.
    let mut stall = StallDetector::new(STALL_LIMIT);
    while terminal.modes() != before || disk.holder().is_some() {
        assert!(
            !stall.is_stalled(0),
            "{:?}, and {:?} has the disk open",
            terminal.modes(),
            disk.holder()
        );
        thread::yield_now();
    }
}

/// Without an initrd and without a root.
fn panics() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-ref"))
        .args(["run", "--json", "--cmdline", "console=ttyS0 panic=-1 quiet", "--kernel"])
        .arg(variable("IRQ_TEST_GUEST_KERNEL").unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let console = String::from_utf8_lossy(&output.stderr);
    assert!(console.contains("Kernel panic"), "{console}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &object["end"]),
        (Some(1), &Value::from("reset")),
        "{object}"
    );
}
