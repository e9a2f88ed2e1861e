// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use interrupt_core::Irqchip;

use crate::composition::options::{
    Composition, Controller, DeviceKind, DoorbellPath, Eoi, Forward, MachineKind, Source, Wait, Without,
};
use crate::linux::args::LinuxArgs;
use crate::vm::kvm::DEV_KVM;

/// The most round trips of one run: the guest counts in 32 bits.
const MAX_COUNT: u64 = 1_000_000_000;

const EXAMPLES: &str = "\
Examples:
  vmm-ref                          10,000 round trips with the defaults of `vmm-ref run`
  vmm-ref run --wait adaptive      the same, with another way to wait
  vmm-ref explain                  by which path a device's interrupt would go, and why
  vmm-ref probe                    what this host can do

Exit status:
  0    nothing was lost and nothing was spurious
  1    something was
  2    the run could not take place
  130  interrupted by Ctrl-C, after the summary so far";

const RUN_EXAMPLES: &str = "\
Examples:
  vmm-ref run --irqchip kernel     interrupt controllers in the kernel
  vmm-ref run --irqchip split      the IOAPIC in this process, the LAPIC in the kernel
  vmm-ref run --irqchip split --source irqfd
                                   an irqfd on the pin's message
  vmm-ref run --irqchip user       the 8259 in this process
  vmm-ref run --machine soft       without KVM
  vmm-ref run --controller pic     the line goes to the 8259
  vmm-ref run --controller ioapic  the line goes to the IOAPIC
  vmm-ref run --controller gic     on arm64: the line is an SPI of the GIC
  vmm-ref run --source line --eoi gsi
                                   the devices drive KVM_IRQ_LINE
  vmm-ref run --eoi gsi            the EOI is reported for the GSI, whoever drives it
  vmm-ref run --sharers 8          eight devices on one GSI
  vmm-ref run --wait spin          poll for the EOI
  vmm-ref run --count 1000000      a million round trips
  vmm-ref run --doorbell ioeventfd
                                   the guest stores to a doorbell too, without an exit
  vmm-ref run --doorbell trap      the same stores, each with an exit
  vmm-ref run --device model       a model of a device with an INTx, whose path the connection chooses
  vmm-ref run --device model --forward auto --swap-every 50 --count 100000
                                   the path changes every 50 round trips
  vmm-ref run --device vfio:0000:00:02.0
                                   QEMU's edu device, bound to vfio-pci (cargo xtask lab)
  vmm-ref run --device vfio:0000:00:02.0 --forward relay
                                   its interrupts and EOIs pass through a thread of this process
  vmm-ref run --device vfio:0000:00:02.0 --irqchip split --forward split-kick
                                   an irqfd, and the IOAPIC of this process
  vmm-ref run --device vfio-user:/tmp/edu.sock
                                   an edu of a vfio-user server (vfio-intx's example vfio-user-edu), without any hardware
  vmm-ref run --no-guest-eoi       the negative control
  vmm-ref run --no-guest-eoi=deactivation
                                   one of a GIC's: EOImode 1 without a write of ICC_DIR_EL1
  vmm-ref run --json | jq .latency_us.p50
                                   for programs
  vmm-ref run --doorbell trap --json | jq .doorbell.mmio.p50_ns
                                   what a store costs
  vmm-ref run --kernel vmlinuz --initrd initrd --disk disk.img
                                   a Linux guest, with its console on this terminal
  vmm-ref run --kernel vmlinuz --disk disk.img,ro --cmdline 'console=ttyS0 root=/dev/vda ro'
                                   its root on the disk, which it may not write
  vmm-ref run --kernel vmlinuz --irqchip split --memory 512M --cpus 2
                                   it programs the IOAPIC of this process
  vmm-ref run --kernel vmlinuz --disk a.img --disk b.img --share-irq
                                   all its virtio devices on one line
  vmm-ref run --kernel vmlinuz --initrd initrd --device vfio:0000:00:0a.0
                                   a PCI device of the host's, such as a network card, bound to vfio-pci
  vmm-ref run --kernel vmlinuz --initrd initrd --device vfio:0000:00:0a.0 --device vfio:0000:00:0c.0 --swap-every 50
                                   two, whose interrupts change their paths all the time
  vmm-ref run --kernel vmlinuz --initrd initrd --device vfio:0000:00:12.0 --msi on
                                   one that may use MSI-X

Exit status with --kernel: what the guest writes to I/O port 0xf4, if it does; else 0 after a power-off, and 1 after a reset.";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  vmm-ref explain                  a model device and the irqchip of the kernel
  vmm-ref explain --irqchip split --source pin
                                   a line that no irqfd leads to
  vmm-ref explain --machine soft   without KVM
  vmm-ref explain --device vfio:0000:00:02.0
                                   a PCI device of this machine's, bound to vfio-pci
  vmm-ref explain --forward relay  what is asked for is a reason too
  vmm-ref explain --json | jq -r .path
                                   for programs";

const PROBE_EXAMPLES: &str = "\
Examples:
  vmm-ref probe                    one line for each capability
  vmm-ref probe --json | jq .capabilities
                                   for programs";

/// Carries level interrupts all the way round on real KVM: a device asserts its line, a small guest serves it and ends
/// the interrupt, and the device is told.
#[derive(Debug, Parser)]
#[command(name = "vmm-ref", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; `run` with its defaults when left out.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The KVM device. For tests.
    #[arg(long, global = true, hide = true, default_value = DEV_KVM)]
    pub kvm_device: PathBuf,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the embedded guest and counts what becomes of its devices' interrupts
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Prints by which path a device's interrupt would go, and why by no better one
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Prints what this host can do, each found by trying it
    #[command(after_help = PROBE_EXAMPLES)]
    Probe(ProbeArgs),
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// What runs the guest [default: kvm, or soft where there is no KVM]
    #[arg(long, value_enum)]
    pub machine: Option<MachineKind>,

    /// Where the interrupt controllers are [default: kernel, or user with the soft machine]
    #[arg(long, value_parser = irqchip())]
    pub irqchip: Option<Irqchip>,

    /// The controller that the line goes to [default: the one whose EOI is observable on this host, the IOAPIC if both
    /// are]
    #[arg(long, value_enum)]
    pub controller: Option<Controller>,

    /// How a device holds its line [default: resample with --irqchip kernel, else pin]
    #[arg(long, value_enum)]
    pub source: Option<Source>,

    /// How a device learns of an EOI [default: resamplefd, or key for --source pin, or gsi]
    #[arg(long, value_enum)]
    pub eoi: Option<Eoi>,

    /// The device: embedded; model, for a model of a device with an INTx; vfio:ADDRESS, for QEMU's edu device, bound to
    /// vfio-pci, at that PCI address; or vfio-user:SOCKET, for one of a server
    /// [default: embedded]. With --kernel: any PCI device of vfio or vfio-user, once for each of them
    #[arg(long, value_name = "DEVICE")]
    pub device: Vec<DeviceKind>,

    /// What carries the interrupt of such a device, and the EOI [default: auto]
    #[arg(long, value_enum)]
    pub forward: Option<Forward>,

    /// With --forward auto: change the path every N round trips, in the middle of one, to another at random; with
    /// --kernel, every N EOIs of the device's line
    #[arg(long, value_name = "N", value_parser = swap_every)]
    pub swap_every: Option<u64>,

    /// How many devices share the GSI; they make their requests in turn
    #[arg(long, value_name = "N", default_value_t = RunArgs::default().sharers)]
    pub sharers: usize,

    /// How the devices wait for an EOI
    #[arg(long, value_enum, default_value_t = RunArgs::default().wait)]
    pub wait: Wait,

    /// Round trips to make [default: 10000, or 5000 with a VFIO device]
    #[arg(long, value_name = "N", value_parser = count)]
    pub count: Option<u64>,

    /// Ring the device's doorbell besides, COUNT times by PIO and COUNT times by MMIO, and time the stores
    #[arg(long, value_enum)]
    pub doorbell: Option<DoorbellPath>,

    /// Leave the EOI, or what is named, out of the guest's program: the negative control, which is to end with no EOI seen
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "eoi")]
    pub no_guest_eoi: Option<Without>,

    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,

    /// A Linux guest instead of the embedded one.
    #[command(flatten)]
    pub linux: LinuxArgs,
}

/// Options of `explain`. They mean what they mean for `run`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// What would run the guest [default: kvm, or soft where there is no KVM]
    #[arg(long, value_enum)]
    pub machine: Option<MachineKind>,

    /// Where the interrupt controllers are [default: kernel, or user with the soft machine]
    #[arg(long, value_parser = irqchip())]
    pub irqchip: Option<Irqchip>,

    /// How the line is held [default: resample with --irqchip kernel, irqfd with split, else pin]
    #[arg(long, value_enum)]
    pub source: Option<Source>,

    /// The device: model; vfio:ADDRESS, for any PCI device that is bound to vfio-pci; or vfio-user:SOCKET
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceKind::Model)]
    pub device: DeviceKind,

    /// What is to carry the interrupt, and the EOI
    #[arg(long, value_enum, default_value_t = Forward::Auto)]
    pub forward: Forward,

    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

impl From<&ExplainArgs> for RunArgs {
    fn from(arguments: &ExplainArgs) -> Self {
        Self {
            machine: arguments.machine,
            irqchip: arguments.irqchip,
            source: arguments.source,
            device: vec![arguments.device],
            forward: Some(arguments.forward),
            json: arguments.json,
            ..Self::default()
        }
    }
}

/// Options of `probe`.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

impl RunArgs {
    /// The device of the embedded guest, which has one.
    pub fn device(&self) -> DeviceKind {
        self.device.first().copied().unwrap_or(DeviceKind::Embedded)
    }

    /// The irqchip on this machine.
    pub fn irqchip(&self, machine: MachineKind) -> Irqchip {
        self.irqchip.unwrap_or(machine.irqchips()[0])
    }

    /// How many round trips to make.
    pub fn count(&self) -> u64 {
        self.count.unwrap_or(match self.device() {
            // Fewer round trips, because a VFIO device is usually in the lab, which is slow.
            DeviceKind::Vfio(_) => 5_000,
            DeviceKind::Embedded | DeviceKind::Model | DeviceKind::VfioUser(_) => 10_000,
        })
    }

    /// The forwarder of the device's interrupt.
    pub fn forward(&self) -> Forward {
        self.forward.unwrap_or(Forward::default_of(self.device()))
    }

    /// The composition that the options ask for, with the caller's machine and default controller.
    pub fn composition(&self, machine: MachineKind, controller: Controller) -> Composition {
        let irqchip = self.irqchip(machine);
        let forward = self.forward();
        let source = self.source.unwrap_or(Source::default_with(irqchip, forward));
        Composition {
            source,
            eoi: self.eoi.unwrap_or(Eoi::default_of(source)),
            forward,
            device: self.device(),
            sharers: self.sharers,
            wait: self.wait,
            doorbell: self.doorbell,
            ..Composition::new(machine, irqchip, controller)
        }
    }
}

/// The options of `vmm-ref` without arguments.
impl Default for RunArgs {
    fn default() -> Self {
        Self {
            machine: None,
            irqchip: None,
            controller: None,
            source: None,
            eoi: None,
            device: Vec::new(),
            forward: None,
            swap_every: None,
            sharers: 1,
            wait: Wait::Block,
            count: None,
            doorbell: None,
            no_guest_eoi: None,
            json: false,
            linux: LinuxArgs::default(),
        }
    }
}

/// The values of `--irqchip`. `interrupt-core` does not depend on clap.
fn irqchip() -> impl TypedValueParser<Value = Irqchip> {
    const VALUES: [(Irqchip, &str, &str); 3] = [
        (
            Irqchip::Kernel,
            "kernel",
            "All in the kernel: 8259 pair, IOAPIC and LAPIC, or a GIC",
        ),
        (
            Irqchip::Split,
            "split",
            "The LAPIC in the kernel, the IOAPIC in this process",
        ),
        (
            Irqchip::User,
            "user",
            "All in this process: the 8259 pair, and on the soft machine the IOAPIC too",
        ),
    ];
    PossibleValuesParser::new(VALUES.map(|(_, name, help)| PossibleValue::new(name).help(help))).map(|text| {
        let value = VALUES.iter().find(|(_, name, _)| *name == text);
        // The parser accepts no other text.
        value.map_or(Irqchip::Kernel, |(irqchip, ..)| *irqchip)
    })
}

fn swap_every(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(every @ 1..) => Ok(every),
        _ => Err("use a number of round trips, from 1".to_owned()),
    }
}

fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("a run needs at least one round trip; use --count 1 or more".to_owned()),
        Ok(count @ 1..=MAX_COUNT) => Ok(count),
        Ok(_) => Err(format!("the guest counts in 32 bits; use at most --count {MAX_COUNT}")),
        Err(error) => Err(format!("{error}; use a number from 1 to {MAX_COUNT}")),
    }
}

/// Why the command line gave no command.
#[derive(Debug)]
pub enum Refused {
    /// The command line asks for help or the version: the text for standard output.
    Asked(clap::Error),
    /// The command line is wrong: the reason in one line.
    Wrong(String),
}

impl Cli {
    /// Parses a command line, program name first.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn from(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Refused> {
        let arguments: Vec<_> = arguments.into_iter().collect();
        Self::try_parse_from(&arguments).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refused::Asked(error),
            _ => Refused::Wrong(one_line(&error, arguments.get(1))),
        })
    }
}

/// clap spreads cause, possible values, tips and usage over several lines.
fn one_line(error: &clap::Error, command: Option<&OsString>) -> String {
    let text = error.to_string();
    let parts = text.lines().map(str::trim).filter(|part| {
        let said_elsewhere = part.starts_with("Usage:") || part.starts_with("For more information");
        !part.is_empty() && !said_elsewhere
    });
    let line = parts.collect::<Vec<_>>().join(" ");
    let cause = line.strip_prefix("error: ").unwrap_or(&line);
    let command = match command.and_then(|command| command.to_str()) {
        Some(command @ ("run" | "explain" | "probe")) => format!(" {command}"),
        _ => String::new(),
    };
    format!("{cause}; see vmm-ref{command} --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a line into words as a shell does. Text in single quotes is one word.
    fn parse(line: &str) -> Result<Cli, Refused> {
        let parts = line.split('\'').enumerate();
        let words = parts.flat_map(|(n, part)| match n % 2 {
            0 => part.split_whitespace().collect::<Vec<_>>(),
            _ => vec![part],
        });
        Cli::from(words.map(OsString::from))
    }

    #[test]
    fn run_without_options_is_what_no_command_does() {
        let Some(Command::Run(arguments)) = parse("vmm-ref run").unwrap().command else {
            panic!("no run");
        };
        assert_eq!(format!("{arguments:?}"), format!("{:?}", RunArgs::default()));
        assert!(parse("vmm-ref").unwrap().command.is_none());
    }

    #[test]
    fn an_irqchip_is_parsed_from_its_name() {
        for irqchip in MachineKind::Kvm.irqchips() {
            let Some(Command::Run(arguments)) = parse(&format!("vmm-ref run --irqchip {irqchip}")).unwrap().command
            else {
                panic!("no run");
            };
            assert_eq!(arguments.irqchip, Some(*irqchip));
        }
    }

    #[test]
    fn every_example_of_the_help_parses() {
        let examples = [EXAMPLES, RUN_EXAMPLES, EXPLAIN_EXAMPLES, PROBE_EXAMPLES].join("\n");
        let mut options = 0;
        for line in examples.lines().filter(|line| line.starts_with("  vmm-ref")) {
            let command = line.trim().split("  ").next().unwrap();
            let command = command.split(" | ").next().unwrap();
            parse(command).unwrap_or_else(|error| panic!("{command}: {error:?}"));
            options += 1;
        }
        assert!(options >= 14, "{options} examples");
    }

    #[test]
    fn every_option_has_an_example() {
        use clap::CommandFactory as _;
        for (command, examples) in [
            ("run", RUN_EXAMPLES),
            ("explain", EXPLAIN_EXAMPLES),
            ("probe", PROBE_EXAMPLES),
        ] {
            let cli = Cli::command();
            let command = cli.find_subcommand(command).unwrap();
            for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(examples.contains(&format!("--{option}")), "no example of --{option}");
            }
        }
    }
}
