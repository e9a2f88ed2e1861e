// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `vmm-ref` program: a command line in, lines or JSON and an exit status out.

use std::io::{self, Write as _};
use std::process::ExitCode;

use vmm_ref::cli::{Cli, Command, Refused, RunArgs};
use vmm_ref::commands::{Failure, explain_command, probe_command, run_command};

/// The exit status when the run could not take place.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Refused::Asked(text)) => {
            // If standard output is closed, the text is lost.
            let _ = text.print();
            return ExitCode::SUCCESS;
        }
        Err(Refused::Wrong(line)) => return refuse(&line),
    };
    let mut out = anstream::stdout().lock();
    let ended = match &cli.command {
        None => run_command(&cli.kvm_device, &RunArgs::default(), &mut out),
        Some(Command::Run(arguments)) => run_command(&cli.kvm_device, arguments, &mut out),
        Some(Command::Explain(arguments)) => explain_command(&cli.kvm_device, arguments, &mut out),
        Some(Command::Probe(arguments)) => probe_command(&cli.kvm_device, arguments, &mut out),
    };
    match ended {
        Ok(status) => ExitCode::from(status),
        // The reader has closed the pipe (`vmm-ref | head`).
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(failure) => refuse(&failure.to_string()),
    }
}

fn refuse(line: &str) -> ExitCode {
    // If standard error is closed, the message is lost.
    let _ = writeln!(io::stderr(), "vmm-ref: {line}");
    ExitCode::from(REFUSED)
}
