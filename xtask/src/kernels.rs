// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test --kernels`: the lab suite on each kernel, and one table of the conformance list's rows by kernel.

mod column;
mod page;
mod table;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use self::column::Column;
use self::table::Table;
use crate::cargo::Workspace;
use crate::conformance::{self, LIST};
use crate::lab::{self, Arch, Lab, Setup};
use crate::tally::Tally;

/// Each kernel and the emulator that it runs in: the installed QEMU or Debian's 7.2, and, for the newest kernel, 11.1.
const KERNELS: [(&str, &str); 3] = [("6.1", "any"), ("6.12", "any"), ("7.3", "11.1")];

/// The choice of kernels.
#[derive(Debug, Args)]
pub struct Kernels {
    /// Run the lab suite alone, on Linux 6.1, 6.12 and 7.3, and write one table: the conformance list's rows by kernel
    ///
    /// A row passes, is skipped with its reason, or differs: the kernel has another answer than the list, and the test
    /// knows that answer too. The table is printed, and written to target/lab/kernels as table.txt, table.json and
    /// table.html. The output of the tests is beside them. The test programs are compiled once. With -p the table keeps
    /// the results of the other packages from their last run; it names the commits.
    #[arg(long, conflicts_with = "no_lab")]
    kernels: bool,

    /// With --kernels: run these kernels only. The table keeps the columns of the others from their last run
    #[arg(long, value_name = "KERNEL", requires = "kernels", value_delimiter = ',',
          value_parser = PossibleValuesParser::new(KERNELS.map(|(name, _)| name)))]
    only: Vec<String>,

    /// With --kernels: print the table as JSON, and nothing else, on standard output
    #[arg(long, requires = "kernels")]
    json: bool,
}

impl Kernels {
    /// Whether the table is asked for.
    pub fn wanted(&self) -> bool {
        self.kernels
    }
}

/// Runs the tests of `packages`, of which none means all, on each kernel that is asked for, and writes the table.
pub fn run(options: &Kernels, packages: &[String]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let directory = workspace.target().join("lab/kernels");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let list = workspace.root().join(LIST);
    let list = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let entries = conformance::entries(&list);
    // All of them, whatever is wanted: cargo builds the programs of some packages with other features, and so twice.
    let mut programs = lab::suite::build(&workspace, Arch::X86_64, &lab::suite::packages(Arch::X86_64, &[]))?;
    programs.retain(|program| packages.is_empty() || packages.contains(&program.package));
    if programs.is_empty() {
        bail!("no test program of {} runs in the lab", packages.join(", "));
    }
    let (mut total, mut columns) = (Tally::default(), Vec::new());
    for (kernel, emulator) in KERNELS {
        let kept = directory.join(format!("{kernel}.json"));
        if !options.only.is_empty() && !options.only.iter().any(|name| name == kernel) {
            columns.extend(Column::load(&kept)?);
            continue;
        }
        let lab = Setup::named(kernel, emulator).and_then(|setup| Lab::open(workspace.target(), &setup));
        let lab = match lab {
            Ok(lab) => lab,
            Err(error) => {
                total.fail(format!("{kernel}: {error:#}"));
                continue;
            }
        };
        let (machine, log) = (lab.describe()?, directory.join(format!("{kernel}.log")));
        eprintln!("\nlab: {machine}; output: {}", log.display());
        let output = Shown::new(&log, !options.json)?;
        let output: lab::suite::Output = Arc::new(Mutex::new(output));
        let mut tally = lab::suite::run(&lab, &programs, lab::TIME_LIMIT, false, &output);
        tally.add(lab::suite::run_on_two_cpus(&lab, &programs, lab::TIME_LIMIT, &output));
        let names: Vec<String> = programs.iter().map(lab::suite::name).collect();
        let mut column = Column::new(kernel, machine, &names, &commit(workspace.root()), &tally);
        if let (false, Some(earlier)) = (packages.is_empty(), Column::load(&kept)?) {
            column = column.over(earlier);
        }
        column.save(&kept)?;
        columns.push(column);
        total.add(tally.prefixed(&format!("{kernel}: ")));
    }
    let table = Table::new(&entries, columns);
    let (text, json) = (table.to_string(), format!("{:#}\n", table.json()));
    for (name, content) in [
        ("table.txt", &text),
        ("table.json", &json),
        ("table.html", &page::html(&table)),
    ] {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if options.json {
        print!("{json}");
    } else {
        print!("\n{text}\n{total}");
    }
    eprintln!("the table: {}", directory.join("table.html").display());
    Ok(total.exit_code())
}

/// The commit that is tested; "-dirty" stands for changes that are in no commit.
fn commit(root: &Path) -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=9"])
        .current_dir(root);
    let output = git.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "no commit".to_owned())
}

/// The output of the tests: a file, and standard output when it is shown.
#[derive(Debug)]
struct Shown {
    path: PathBuf,
    file: File,
    shown: bool,
}

impl Shown {
    fn new(path: &Path, shown: bool) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
            shown,
        })
    }
}

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let in_file = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        self.file.write_all(bytes).map_err(in_file)?;
        if self.shown {
            io::stdout().write_all(bytes)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        io::stdout().flush()
    }
}
