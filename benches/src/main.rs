// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program behind `cargo xtask bench`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use benches::counters::{Counters, Counting};
use benches::measure::{Extent, in_turns};
use benches::operations::{ALL, Operation};
use benches::results::{FORMAT, Group, Host, LeftOut, Results};
use benches::ways::Ways;
use benches::{Result, compare, micro, nic, page, scaling, targets, waiting, ways};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench                      the short set, on a page and as JSON
  cargo xtask bench --full               everything, with more round trips
  cargo xtask bench --compare old.json   and what has changed since
  cargo xtask bench --lab                in the emulated PC, where the EOI is the guest's own
  cargo xtask bench --lab --only INTx    the ways of a VFIO device's INTx
  cargo xtask bench --lab --only nic     a network card under Linux, beside QEMU";

/// Measures round trips of interrupts beside their floors, and writes a page of it.
#[derive(Parser)]
#[command(name = "benches", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Other>,
    /// Every composition, and many more round trips
    #[arg(long)]
    full: bool,
    /// Only the groups of round trips whose name contains this, or only waiting, or only nic
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// How often each VMM boots to measure a network card, in the lab
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: u8,
    /// Where the page goes
    #[arg(long, value_name = "FILE", default_value = "target/bench/index.html")]
    html: PathBuf,
    /// Where the same goes as JSON; - is standard output, and then there is no page
    #[arg(long, value_name = "FILE", default_value = "target/bench/results.json")]
    json: PathBuf,
    /// Where criterion has left its figures
    #[arg(long, value_name = "DIRECTORY", default_value = "target/criterion")]
    criterion: PathBuf,
    /// Print what has changed beyond noise since the run that wrote this JSON
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Other {
    /// Makes the page of what --json has written
    Page {
        /// The JSON
        json: PathBuf,
        /// The page
        html: PathBuf,
    },
    /// Does one operation so many times, for valgrind to count its instructions.
    #[command(hide = true)]
    Operation { name: String, count: u64 },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        Some(Other::Operation { name, count }) => operation(name, *count).map(|()| 0),
        Some(Other::Page { json, html }) => read(json).and_then(|results| present(&results, html)).map(|()| 0),
        None => run(&arguments),
    };
    match done {
        Ok(status) => status.into(),
        Err(error) => {
            // If standard error is closed, the message is lost.
            let _ = writeln!(io::stderr(), "benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn operation(name: &str, count: u64) -> Result<()> {
    let operation = Operation::of(name).with_context(|| format!("no operation {name}"))?;
    let mut ready = operation.ready()?;
    ready(count)
}

fn run(arguments: &Arguments) -> Result<u8> {
    // Read the file before the measurements, so that an unreadable file is reported at once.
    let old = arguments.compare.as_deref().map(read).transpose()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
            .context("cannot catch Ctrl-C")?;
    }
    let results = match measure(arguments, &interrupted) {
        _ if interrupted.load(Ordering::Acquire) => return Ok(INTERRUPTED),
        results => results?,
    };
    let json = serde_json::to_string_pretty(&results)?;
    let mut out = io::stdout().lock();
    if arguments.json == Path::new("-") {
        writeln!(out, "{json}")?;
    } else {
        write(&arguments.json, &json)?;
        present(&results, &arguments.html)?;
        writeln!(out, "{}", arguments.json.display())?;
    }
    if let Some(old) = old {
        let changes = compare::changes(&old, &results);
        writeln!(
            out,
            "\nchanged beyond noise: {}",
            if changes.is_empty() { "nothing" } else { "" }
        )?;
        for change in changes {
            writeln!(out, "  {change}")?;
        }
    }
    Ok(0)
}

/// Writes the page, and prints its summary.
fn present(results: &Results, html: &Path) -> Result<()> {
    write(html, &page::page(results)?)?;
    let mut out = io::stdout().lock();
    summary(results, &mut out)?;
    writeln!(out, "\n{}", html.display())?;
    Ok(())
}

fn read(path: &Path) -> Result<Results> {
    let json = fs::read(path).with_context(|| format!("{}", path.display()))?;
    let results: Results =
        serde_json::from_slice(&json).with_context(|| format!("{}: not of --json", path.display()))?;
    if results.format != FORMAT {
        bail!(
            "{}: format {}, this program knows {FORMAT}",
            path.display(),
            results.format
        );
    }
    Ok(results)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    }
    fs::write(path, text).with_context(|| format!("{}", path.display()))
}

fn measure(arguments: &Arguments, interrupted: &AtomicBool) -> Result<Results> {
    let (begun, load_before) = (Instant::now(), load());
    let kvm = open_kvm(Path::new(DEV_KVM));
    let mut counters = Counters::new();
    // No group is measured beside a network card or adaptive waiting, and the negative controls of all take a minute.
    let no_group = [Some(nic::ONLY), Some(waiting::ONLY)].contains(&arguments.only.as_deref());
    let mut ways = match no_group {
        true => Ways::default(),
        false => ways::here(kvm.as_ref().ok(), arguments.full, interrupted)?,
    };
    if let Some(only) = &arguments.only {
        ways.groups.retain(|group| group.control.group.contains(only));
    }
    let mut left_out = ways.left_out;
    if let Err(error) = &kvm {
        left_out.push(LeftOut::new("everything on KVM", error.to_string()));
    }
    if let Some(why) = counters.missing() {
        left_out.push(LeftOut::new("system calls and context switches", why));
    }

    let extent = Extent {
        turns: if arguments.full { 15 } else { 8 },
        rounds: if arguments.full { 5000 } else { 500 },
    };
    let steps: usize = ways
        .groups
        .iter()
        .map(|group| group.subjects.len() * (extent.turns + 1))
        .sum();
    let bar = bar(steps as u64);
    let mut groups = Vec::with_capacity(ways.groups.len());
    for mut group in ways.groups {
        bar.set_message(group.control.group.clone());
        let measured = in_turns(&mut group.subjects, extent, &mut counters, &mut || bar.inc(1))?;
        groups.push(Group {
            control: group.control,
            ways: measured,
        });
    }
    let mut network = None;
    if arguments.only.as_deref() == Some(nic::ONLY) {
        let vmms = nic::all();
        bar.set_length((vmms.len() * usize::from(arguments.rounds)) as u64);
        let on_step = &mut |name: &str| {
            bar.set_message(name.to_owned());
            bar.inc(1);
        };
        let (figures, without) = nic::measure(&vmms, arguments.rounds.into(), interrupted, on_step)?;
        network = Some(figures);
        left_out.extend(without);
    }
    bar.set_message("waiting, scaling, instructions");
    let (mut waiting, mut scaling, mut instructions) = (None, Vec::new(), BTreeMap::new());
    if arguments.only.as_deref().is_none_or(|only| only == waiting::ONLY) {
        waiting = match &kvm {
            Ok(kvm) => Some(waiting::measure(kvm, extent, interrupted)?),
            Err(_) => None,
        };
    }
    if arguments.only.is_none() {
        scaling = scaling::measure(kvm.as_ref().ok())?;
        instructions = instructions_of_all(&mut left_out);
    }
    bar.finish_and_clear();
    let operations_ns = micro::criterion(&arguments.criterion);
    if operations_ns.is_empty() {
        left_out.push(LeftOut::new(
            "times of single operations",
            "run cargo bench -p benches before",
        ));
    }

    let mut results = Results {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
            - begun.elapsed().as_secs(),
        seconds: begun.elapsed().as_secs(),
        full: arguments.full,
        host: Host {
            summary: vmm_ref::host::Host::this().to_string(),
            processor: processor(),
            load_before,
            load_after: load(),
        },
        groups,
        nic: network,
        waiting,
        scaling,
        operations_ns,
        instructions,
        left_out,
        targets: Vec::new(),
    };
    results.targets = targets::judge(&results);
    if arguments.only.is_some() {
        results.targets.retain(|target| target.measured.is_ok());
        results
            .left_out
            .retain(|left_out| nic::all().iter().any(|vmm| vmm.name == left_out.what));
    }
    Ok(results)
}

fn instructions_of_all(left_out: &mut Vec<LeftOut>) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    let count = |operation: &Operation| {
        let program = std::env::current_exe().context("this program's own file")?;
        micro::instructions(&program, operation.name)
    };
    for operation in &ALL {
        match count(operation) {
            Ok(instructions) => drop(counts.insert(operation.name.to_owned(), instructions)),
            Err(error) => {
                left_out.push(LeftOut::new("instructions", format!("{}: {error:#}", operation.name)));
                break;
            }
        }
    }
    counts
}

/// Makes the progress bar, which only a terminal shows.
fn bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn load() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(0.0)
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "not named".to_owned(), |(_, name)| name.trim().to_owned())
}

fn summary(results: &Results, out: &mut impl io::Write) -> io::Result<()> {
    writeln!(out, "{}, {}", results.host.summary, results.host.processor)?;
    for group in &results.groups {
        writeln!(out, "\n{}: {}", group.control.group, group.control.finding)?;
        let figure = if group.control.eoi {
            "EOI round trip"
        } else {
            "to the end at injection, no EOI"
        };
        writeln!(
            out,
            "  {figure:48} {:>24} {:>9} {:>22}",
            "p50 us (of the turns)", "p99 us", "over floor"
        )?;
        for way in &group.ways {
            let name = format!(
                "{}{}, {}",
                if way.floor.is_none() { "floor: " } else { "" },
                way.name,
                way.wait
            );
            let ratio = way.over_floor.map_or_else(String::new, |ratio| ratio.to_string());
            writeln!(
                out,
                "  {name:48.48} {:>24} {:>9.2} {ratio:>22}",
                way.p50_us.to_string(),
                way.latency_us.p99
            )?;
        }
    }
    if let Some(nic) = &results.nic {
        writeln!(out, "\n{}", nic::table::markdown(nic))?;
    }
    writeln!(out, "\ntargets")?;
    for target in &results.targets {
        let (measured, met) = match (&target.measured, target.is_met()) {
            (Ok(measured), Some(true)) => (measured.to_string(), "met"),
            (Ok(measured), _) => (measured.to_string(), "missed"),
            (Err(why), _) => (why.clone(), "no figure"),
        };
        writeln!(
            out,
            "  {met:9} {}: {measured} {} (at most {})",
            target.what, target.unit, target.limit
        )?;
    }
    for left_out in &results.left_out {
        writeln!(out, "left out: {}: {}", left_out.what, left_out.why)?;
    }
    Ok(())
}
