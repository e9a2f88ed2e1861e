// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vfio-user server with QEMU's `edu` device behind it: a PCI device with an INTx, on a machine without hardware, IOMMU or VFIO.
//!
//! ```text
//! cargo run -p vfio-intx --features vfio-user --example vfio-user-edu -- /tmp/edu.sock
//! cargo run -p vmm-ref -- run --device vfio-user:/tmp/edu.sock
//! ```

mod edu;

use std::path::PathBuf;
use std::process::ExitCode;

use edu::{Edu, Intx};
use vfio_user::ServerBackend as _;

const USAGE: &str = "\
A vfio-user server with QEMU's edu device behind it.

Usage: vfio-user-edu [--pulse] SOCKET

  --pulse  an INTx as libvfio-user's: EVENTFD alone, neither maskable nor automasked
  SOCKET   where to listen; it must not exist, and is removed at the end

Examples:
  vfio-user-edu /tmp/edu.sock
  vmm-ref run --device vfio-user:/tmp/edu.sock     in another terminal";

fn main() -> ExitCode {
    let mut intx = Intx::Level;
    let mut path = None;
    for argument in std::env::args_os().skip(1) {
        match argument.to_str() {
            Some("-h" | "--help") => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            Some("--pulse") => intx = Intx::Pulse,
            _ => path = Some(PathBuf::from(argument)),
        }
    }
    let Some(path) = path else {
        eprintln!("vfio-user-edu: where is it to listen? As in: vfio-user-edu /tmp/edu.sock");
        return ExitCode::from(2);
    };
    match serve(&path, intx) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vfio-user-edu: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// Serves one client after the other.
fn serve(path: &std::path::Path, intx: Intx) -> Result<(), Box<dyn std::error::Error>> {
    let server = edu::server(path, intx)?;
    let mut edu = Edu::new(intx);
    println!("edu listens at {}", path.display());
    loop {
        if let Err(error) = server.run(&mut edu) {
            eprintln!("vfio-user-edu: a client went away: {error}");
        }
        println!("{} interrupts signalled", edu.model().signals());
        edu.reset()?;
    }
}
