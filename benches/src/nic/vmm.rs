// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMMs that are compared, and how each is started.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use super::host::CARD;
use crate::Result;

/// A VMM with its options.
#[derive(Clone, Debug)]
pub struct Vmm {
    /// The name in the table.
    pub name: String,
    /// The VMM whose way of forwarding is the same; `None` for a QEMU.
    pub compared_with: Option<&'static str>,
    program: Program,
}

#[derive(Clone, Debug)]
enum Program {
    /// The irqchip and the path of vmm-ref.
    VmmRef(&'static str, &'static str),
    /// The property of QEMU's accelerator, and further properties of the device.
    Qemu(&'static str, &'static str),
}

const QEMU_KERNEL: &str = "QEMU, kernel_irqchip=on";
const QEMU_SPLIT: &str = "QEMU, kernel_irqchip=split";
const QEMU_RELAY: &str = "QEMU, x-no-kvm-intx";

/// This workspace's four paths, each beside the QEMU that it is compared with.
pub fn all() -> Vec<Vmm> {
    let ours = |irqchip, forward, compared_with| Vmm {
        name: format!("vmm-ref, {irqchip}, {forward}"),
        compared_with: Some(compared_with),
        program: Program::VmmRef(irqchip, forward),
    };
    let qemu = |name: &str, irqchip, device| Vmm {
        name: name.to_owned(),
        compared_with: None,
        program: Program::Qemu(irqchip, device),
    };
    vec![
        qemu(QEMU_KERNEL, "on", ""),
        ours("kernel", "kernel", QEMU_KERNEL),
        qemu(QEMU_SPLIT, "split", ""),
        ours("split", "split-kick", QEMU_SPLIT),
        qemu(QEMU_RELAY, "on", ",x-no-kvm-intx=on"),
        ours("kernel", "relay", QEMU_RELAY),
        ours("split", "relay", QEMU_RELAY),
    ]
}

impl Vmm {
    /// The command that boots the lab's guest, with its console on standard output, to do `work`.
    ///
    /// # Errors
    /// Outside of the lab.
    pub(super) fn command(&self, work: &str) -> Result<Command> {
        let kernel = file("IRQ_TEST_GUEST_KERNEL")?;
        let initrd = file("IRQ_TEST_GUEST_INITRD")?;
        let command_line = format!("console=ttyS0 panic=-1 quiet {work}");
        let mut command = match &self.program {
            Program::VmmRef(irqchip, forward) => {
                let program = std::env::current_exe().context("this program's own file")?;
                let mut command = Command::new(program.with_file_name("vmm-ref"));
                command.args(["run", "--irqchip", irqchip, "--forward", forward]);
                command.args(["--cpus", "1", "--memory", "256M"]);
                command.arg("--device").arg(format!("vfio:{CARD}"));
                command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
                command.arg("--cmdline").arg(command_line);
                command
            }
            Program::Qemu(irqchip, device) => {
                // The variable has words of the shell.
                let words = std::env::var("IRQ_TEST_QEMU").context("no IRQ_TEST_QEMU; it is set in cargo xtask lab")?;
                let mut command = Command::new("sh");
                command.args(["-c", "eval \"exec $IRQ_TEST_QEMU \\\"\\$@\\\"\"", "sh"]);
                command.env("IRQ_TEST_QEMU", words);
                command
                    .arg("-machine")
                    .arg(format!("q35,accel=kvm,kernel_irqchip={irqchip}"));
                command.args(["-cpu", "host", "-smp", "1", "-m", "256"]);
                command.args([
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-serial",
                    "stdio",
                    "-no-reboot",
                ]);
                command
                    .arg("-device")
                    .arg(format!("vfio-pci,host={CARD},rombar=0{device}"));
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
                command.arg("-append").arg(command_line);
                command
            }
        };
        command.stdin(std::process::Stdio::null());
        Ok(command)
    }
}

fn file(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).with_context(|| format!("no {variable}; it is set in cargo xtask lab"))?;
    Ok(path.into())
}
