// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask port`: another VMM, as its maintainers have it and with the patches of `ports/`.

mod build;
mod cloud_hypervisor;
mod counts;
mod guest_report;
mod libkrun;
mod runs;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

/// Show what these crates change in another VMM, before and after the patches of ports/.
#[derive(Debug, Subcommand)]
pub enum Port {
    CloudHypervisor(cloud_hypervisor::Options),
    Libkrun(libkrun::Options),
}

pub fn run(port: &Port) -> Result<ExitCode> {
    match port {
        Port::CloudHypervisor(options) => cloud_hypervisor::run(options),
        Port::Libkrun(options) => libkrun::run(options),
    }
}
