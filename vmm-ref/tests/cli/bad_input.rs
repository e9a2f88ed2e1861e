// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What cannot be run, and what is said of it.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use crate::program::{assert_refused, command, run};

pub fn command_lines() {
    for (arguments, cause) in [
        ("run --count 0", "use --count 1 or more"),
        ("run --count -5", "'-5'"),
        ("run --count many", "use a number from 1 to 1000000000"),
        ("run --count 1000000001", "use at most --count 1000000000"),
        ("run --sharers 0", "use --sharers 1"),
        ("run --sharers 17", "use at most --sharers 16"),
        ("run --sharers some", "'some'"),
        ("run --machine soft --irqchip kernel", "use --irqchip user"),
        ("run --machine soft --irqchip split", "use --irqchip user"),
        (
            "run --irqchip user --controller ioapic",
            "use --irqchip split, or --machine soft",
        ),
        ("run --irqchip split --controller pic", "use --irqchip user"),
        ("run --irqchip split --source resample", "use --source pin"),
        ("run --irqchip user --source line", "use --source pin"),
        ("run --source pin", "use --source resample with --irqchip kernel"),
        ("run --source irqfd", "use --irqchip split"),
        ("run --irqchip user --eoi resamplefd", "use --eoi key or gsi"),
        ("run --eoi key", "use --eoi gsi"),
        (
            "run --source line --eoi resamplefd",
            "a KVM_IRQ_LINE source has no resamplefd; use --eoi gsi",
        ),
        (
            "run --wait nap",
            "[possible values: block, spin, adaptive]; see vmm-ref run --help",
        ),
        ("run --irqchip none", "[possible values: kernel, split, user]"),
        ("run --controller apic", "[possible values: ioapic, pic, gic]"),
        (
            "run --controller gic",
            "use --controller ioapic or pic, or an arm64 host",
        ),
        (
            "run --no-guest-eoi=level",
            "use --no-guest-eoi, or --controller gic on an arm64 host",
        ),
        ("run --no-guest-eoi=all", "[possible values: eoi, deactivation, level]"),
        ("run --source wire", "[possible values: resample, line, pin, irqfd]"),
        ("run --eoi smoke", "[possible values: resamplefd, gsi, key]"),
        ("run --device edu", "use embedded, model, or vfio: and a PCI address"),
        (
            "run --device vfio:00:02.0",
            "as 0000:00:02.0 (lspci -D); see vmm-ref run --help",
        ),
        ("run --device vfio:ffff:ff:1f.7", "no PCI device ffff:ff:1f.7"),
        ("run --device vfio:ffff:ff:1f.7 --json", "no PCI device ffff:ff:1f.7"),
        ("run --swap-every 0", "use a number of round trips, from 1"),
        ("run --swap-every 50", "--swap-every with --forward none"),
        (
            "run --device model --forward relay --swap-every 50",
            "--swap-every with --forward relay: the path is to change; use --forward auto",
        ),
        (
            "run --device model --irqchip split --source pin --swap-every 50",
            "--swap-every needs two paths, and there is one: model to gsi 10: relay",
        ),
        ("run --device model --sharers 2", "use --sharers 1"),
        ("explain --device embedded", "use --device model or vfio:0000:00:02.0"),
        ("explain --irqchip split --forward kernel", "use --irqchip kernel"),
        ("explain --device vfio:ffff:ff:1f.7", "no PCI device ffff:ff:1f.7"),
        ("run --forward kernel", "use --device model or vfio:0000:00:02.0"),
        (
            "run --forward smoke",
            "[possible values: none, auto, relay, kernel, split-kick]",
        ),
        (
            "run --device vfio:0000:00:02.0 --forward none",
            "use --forward auto, relay, kernel or split-kick",
        ),
        ("run --device vfio:0000:00:02.0 --machine soft", "use --machine kvm"),
        (
            "run --device vfio:0000:00:02.0 --forward split-kick",
            "use --irqchip split without --source",
        ),
        (
            "run --device vfio:0000:00:02.0 --irqchip split --forward kernel",
            "use --irqchip kernel --source resample",
        ),
        (
            "run --device vfio:0000:00:02.0 --forward relay --source line --eoi gsi",
            "use --source resample",
        ),
        ("run --device vfio:0000:00:02.0 --eoi gsi", "use no --eoi"),
        ("run --device vfio:0000:00:02.0 --sharers 2", "use --sharers 1"),
        ("run --wait", "--wait"),
        ("run --frobnicate", "'--frobnicate' found; see vmm-ref run --help"),
        ("run now", "'now'"),
        ("probe --count 1", "'--count' found; see vmm-ref probe --help"),
        ("frobnicate", "'frobnicate'; see vmm-ref --help"),
    ] {
        assert_refused(arguments, &run(arguments), cause);
    }
}

pub fn devices() {
    for (device, cause) in [
        (
            "/nonexistent/kvm",
            "no KVM: /nonexistent/kvm does not exist; load kvm_intel or kvm_amd",
        ),
        (
            "/dev/null",
            "/dev/null is no KVM device this program can use: KVM_GET_API_VERSION: ",
        ),
        ("/", "/ is no KVM device this program can use: "),
    ] {
        for arguments in ["run --machine kvm", "run --machine kvm --json", "run --irqchip split"] {
            let arguments = format!("{arguments} --kvm-device {device}");
            assert_refused(&arguments, &run(&arguments), cause);
        }
        // The first command of the README works on every machine, and says what it does there.
        let ended = run(&format!("--kvm-device {device}"));
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("machine soft"), "{ended:?}");
        assert!(ended.stdout.contains("all well: 10000 of 10000"), "{ended:?}");
        assert!(ended.stderr.contains(cause), "{ended:?}");
        assert!(
            ended.stderr.contains("running on the soft machine instead"),
            "{ended:?}"
        );
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}

/// Only root can become somebody whom a file's mode keeps out.
pub fn is_root() -> Result<(), String> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err("needed to run the program as another user".to_owned()),
    }
}

pub fn permission() {
    let dir = std::env::temp_dir().join(format!("vmm-ref-permission-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    // Where it was built may be out of another user's reach.
    let program = dir.join("vmm-ref");
    std::fs::copy(env!("CARGO_BIN_EXE_vmm-ref"), &program).unwrap();
    let device = dir.join("kvm");
    File::create(&device)
        .unwrap()
        .set_permissions(Permissions::from_mode(0o600))
        .unwrap();
    for path in [&dir, &program] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    const NOBODY: u32 = 65534;
    let ended = command_of(&program)
        .args(["run", "--machine", "kvm", "--kvm-device"])
        .arg(&device)
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .output();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_refused("as nobody", &ended.unwrap().into(), "no permission for ");
}

fn command_of(program: &std::path::Path) -> std::process::Command {
    let mut nobody = std::process::Command::new(program);
    nobody.envs(command("").get_envs().filter_map(|(name, value)| Some((name, value?))));
    nobody
}
