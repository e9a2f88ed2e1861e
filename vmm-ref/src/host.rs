// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host that this process runs on.

use std::fmt;
use std::fs;
use std::path::Path;
use std::thread;

use serde::{Serialize, Serializer};

use crate::composition::options::GIC;

/// The properties of the host that figures depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Release of the kernel.
    pub kernel: String,
    /// The modules that implement KVM for this CPU, "kvm_intel" say. Empty when there are none, or when they are built
    /// in and have no parameters.
    pub kvm_modules: Vec<String>,
    /// CPUs that this process may use.
    pub cpus: usize,
}

impl Host {
    /// Examines this host.
    pub fn this() -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            kvm_modules: kvm_modules(Path::new("/sys/module")),
            cpus: thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The module "kvm" is generic; a module "kvm_NAME" implements it for a CPU.
fn kvm_modules(sys_module: &Path) -> Vec<String> {
    let names = fs::read_dir(sys_module).into_iter().flatten().flatten();
    let mut modules: Vec<_> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"))
        .collect();
    modules.sort();
    modules
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}, ", self.kernel)?;
        match self.kvm_modules.as_slice() {
            // On arm64 KVM is no module.
            [] if GIC => f.write_str("built-in KVM")?,
            [] => f.write_str("no KVM module")?,
            modules => f.write_str(&modules.join(" and "))?,
        }
        let plural = if self.cpus == 1 { "" } else { "s" };
        write!(f, ", {} CPU{plural}", self.cpus)
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_found_among_others() {
        let dir = std::env::temp_dir().join(format!("vmm-ref-sys-module-{}", std::process::id()));
        for module in ["kvm", "kvm_amd", "ext4", "irqbypass"] {
            fs::create_dir_all(dir.join(module)).unwrap();
        }
        let found = kvm_modules(&dir);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, ["kvm_amd"]);
        assert_eq!(kvm_modules(&dir), [""; 0]);
    }

    #[test]
    fn a_host_reads_as_a_line() {
        let mut host = Host {
            kernel: "6.18.0".to_owned(),
            kvm_modules: vec!["kvm_intel".to_owned()],
            cpus: 2,
        };
        assert_eq!(host.to_string(), "Linux 6.18.0, kvm_intel, 2 CPUs");
        host.kvm_modules.clear();
        host.cpus = 1;
        assert_eq!(host.to_string(), "Linux 6.18.0, no KVM module, 1 CPU");
    }
}
