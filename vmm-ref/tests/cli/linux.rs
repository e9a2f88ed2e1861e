// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Linux guest that cannot be had, and what is said of it. None of this boots.

use std::fs;
use std::path::{Path, PathBuf};

use vmm_ref::linux::speed;
use vmm_ref::vm::kvm::{DEV_KVM, open_kvm};

use crate::program::{assert_refused, run};

/// Files that go with the test.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("vmm-ref-cli-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A bzImage as far as its header goes: it wants 16 MiB from 16 MiB on.
fn bz_image(version: u16, flags: u16) -> Vec<u8> {
    let mut image = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup sectors
    put(0x202, b"HdrS");
    put(0x206, &version.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x236, &flags.to_le_bytes());
    put(0x238, &255_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x100_0000_u32.to_le_bytes()); // init_size
    image
}

/// So many devices of servers that are not there.
fn devices(count: usize) -> String {
    (0..count)
        .map(|server| format!("--device vfio-user:/tmp/{server} "))
        .collect()
}

pub fn bad_input() {
    let files = Files::new("bad-input");
    let kernel = files.file("kernel", &bz_image(0x20f, 1));
    let text = files.file("text", b"no kernel at all\n");
    let old = files.file("old", &bz_image(0x20b, 1));
    let of_32_bits = files.file("of-32-bits", &bz_image(0x20f, 0));
    let elf_of_32_bits = files.file("elf-of-32-bits", b"\x7fELF\x01\x01\x01");
    let broken_elf = files.file(
        "broken-elf",
        &[b"\x7fELF\x02\x01\x01".to_vec(), vec![0; 11], vec![62, 0]].concat(),
    );
    let large = files.file("large", &vec![0; 40 << 20]);
    let partial = files.file("partial", &[0; 513]);
    let with = |options: &str| format!("run --kernel {kernel} {options}");
    let on = |kernel: &str| format!("run --kernel {kernel}");
    for (arguments, cause) in [
        (on("/nowhere/vmlinuz"), "--kernel /nowhere/vmlinuz: No such file"),
        (on("/tmp"), "--kernel /tmp: Is a directory"),
        (on(&text), "use a bzImage (/boot/vmlinuz-*) or an ELF vmlinux"),
        (on(&old), "its boot protocol is 2.11; use a kernel for x86_64"),
        (on(&of_32_bits), "no 64-bit entry: XLF_KERNEL_64"),
        (on(&elf_of_32_bits), "no 64-bit entry: it is a 32-bit ELF file"),
        (on(&broken_elf), "is no kernel for x86"),
        (with("--memory 16M"), "use --memory 32M or more"),
        (with("--memory 2M"), "use --memory 32M or more"),
        (with("--memory 1M"), "use a size from 2M to 512G"),
        (with("--memory plenty"), "use a size from 2M to 512G"),
        (
            with("--memory 32M --initrd /nowhere/initrd"),
            "--initrd /nowhere/initrd: No such file",
        ),
        (
            with(&format!("--memory 64M --initrd {large}")),
            "use --memory 72M or more",
        ),
        (with("--cpus 0"), "0 is not in 1..=4"),
        (with("--cpus 5"), "5 is not in 1..=4"),
        (
            with(&format!("--cmdline {}", "x".repeat(256))),
            "256 bytes are more than the 255",
        ),
        (with("--disk /nowhere/disk"), "--disk /nowhere/disk: No such file"),
        (with("--disk /tmp"), "is a directory; use a raw disk image"),
        (with("--disk /dev/null"), "neither a file nor a block device"),
        (
            with("--device model"),
            "--device model with --kernel: it is no PCI device",
        ),
        (
            with("--device embedded"),
            "use vfio: and a PCI address, or vfio-user: and a socket",
        ),
        (with("--device vfio:ffff:ff:1f.7"), "no PCI device ffff:ff:1f.7"),
        (
            with("--device vfio-user:/tmp/a --device vfio-user:/tmp/b --device vfio-user:/tmp/a"),
            "--device vfio-user:/tmp/a is given twice",
        ),
        (
            with(&devices(32)),
            "32 --device: the guest's bus has room for 31 devices",
        ),
        (
            with(&(devices(9) + "--share-irq")),
            "9 --device: the guest's bus has room for 8 devices",
        ),
        (with("--msi on"), "use --device vfio:0000:00:0a.0, say, or --msi off"),
        (
            with("--device vfio-user:/tmp/a --msi on"),
            "--msi on is for devices of VFIO",
        ),
        (with("--memory 2049K"), "use a size such as 256M"),
        (
            with(&format!("--device vfio-user:/{}", "x".repeat(110))),
            "use a shorter path",
        ),
        (with("--forward relay"), "use --device vfio:0000:00:0a.0, say, as well"),
        (with("--swap-every 50"), "use --device vfio:0000:00:0a.0, say, as well"),
        (
            with("--device vfio-user:/tmp/a --forward relay --swap-every 50"),
            "--swap-every with --forward relay",
        ),
        (
            with("--device vfio-user:/tmp/a --forward none"),
            "its interrupt would go nowhere",
        ),
        (
            with("--device vfio-user:/tmp/a --forward split-kick"),
            "use --irqchip split without --source, or --forward relay",
        ),
        (
            with("--device vfio-user:/tmp/a --forward kernel --irqchip split"),
            "use --irqchip kernel --source resample, or --forward relay",
        ),
        (
            "run --device model --device model".to_owned(),
            "the embedded guest drives one device",
        ),
        (with(&format!("--disk {partial}")), "truncate -s %512"),
        (
            with(&format!("--disk {}", env!("CARGO_BIN_EXE_vmm-ref"))),
            "cannot be written",
        ),
        (
            with(&format!("--disk {large},ro").repeat(8).replace("--disk", " --disk")),
            "8 disks",
        ),
        (with("--irqchip user"), "use --irqchip kernel or split"),
        (with("--machine soft"), "use --machine kvm"),
        (with("--irqchip split --source line"), "use --source pin"),
        (
            with("--irqchip split --source irqfd"),
            "these devices hold a level; use --source pin",
        ),
        (with("--source pin"), "use --source resample with --irqchip kernel"),
        (with("--count 10"), "cannot be used with '--count <N>'"),
        ("run --disk x".to_owned(), "--kernel <FILE>"),
        ("run --share-irq".to_owned(), "--kernel <FILE>"),
    ] {
        assert_refused(&arguments, &run(&arguments), cause);
    }
    let missing = format!("{} --kvm-device /nowhere/kvm", with(""));
    assert_refused(&missing, &run(&missing), "no KVM: /nowhere/kvm does not exist");
}

pub fn is_slow() -> Result<(), String> {
    let kvm = open_kvm(Path::new(DEV_KVM)).map_err(|error| error.to_string())?;
    match speed::measure(&kvm).map_err(|error| error.to_string())? {
        mips if mips < speed::ENOUGH_MIPS => Ok(()),
        mips => Err(format!(
            "the one of this host makes {mips:.0} million instructions a second"
        )),
    }
}

pub fn slow_host() {
    let files = Files::new("slow-host");
    let kernel = files.file("kernel", &bz_image(0x20f, 1));
    assert_refused(
        "a slow host",
        &run(&format!("run --kernel {kernel}")),
        "cargo xtask lab -- vmm-ref run",
    );
}
