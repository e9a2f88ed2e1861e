// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which kernel modules to load, and in which order, from `modules.dep` and `modules.builtin`.

use std::collections::HashMap;

use anyhow::{Result, bail};

/// The files of the modules `wanted` and of all their dependencies; the dependencies of a module precede it.
///
/// `dep` is the text of `modules.dep` (`FILE: NEEDED-FILE...`), `builtin` that of `modules.builtin` (one file a line).
/// A module is named as `lsmod` names it; `-` and `_` are the same. A module that is built into the kernel needs no
/// loading. A module that the kernel does not have is an error.
pub fn load_order(wanted: &[&str], dep: &str, builtin: &str) -> Result<Vec<String>> {
    let needs: HashMap<&str, Vec<&str>> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needed)| (file, needed.split_whitespace().collect()))
        .collect();
    let files: HashMap<String, &str> = needs.keys().map(|file| (name(file), *file)).collect();
    let mut order = Vec::new();
    for module in wanted {
        match files.get(&name(module)) {
            Some(file) => visit(file, &needs, &mut Vec::new(), &mut order)?,
            None if builtin.lines().any(|file| name(file) == name(module)) => {}
            None => bail!("the kernel has no module {module}"),
        }
    }
    Ok(order)
}

/// Appends the dependencies of `file`, then `file`. `path` lists the files that led to `file`.
fn visit<'a>(
    file: &'a str,
    needs: &HashMap<&'a str, Vec<&'a str>>,
    path: &mut Vec<&'a str>,
    order: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|loaded| loaded == file) {
        return Ok(());
    }
    if path.contains(&file) {
        bail!("modules.dep: {file} needs itself");
    }
    let Some(needed) = needs.get(file) else {
        bail!("modules.dep: {file} is needed and has no line of its own");
    };
    path.push(file);
    for file in needed {
        visit(file, needs, path, order)?;
    }
    path.pop();
    order.push(file.to_owned());
    Ok(())
}

/// The module's name: the file without its directory and `.ko`, `.ko.xz`, `.ko.zst`.
fn name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    let name = file.split_once(".ko").map_or(file, |(name, _)| name);
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    // The lines are in the order of names, not of dependencies, and a needs c only through b.
    const DEP: &str = "\
kernel/x/a-mod.ko: kernel/x/b.ko
kernel/x/b.ko: kernel/y/c.ko
kernel/y/c.ko:
kernel/y/d.ko: kernel/y/c.ko kernel/x/b.ko
";

    #[test]
    fn needed_modules_come_first_and_once() {
        let order = load_order(&["a_mod", "d"], DEP, "").unwrap();
        assert_eq!(
            order,
            ["kernel/y/c.ko", "kernel/x/b.ko", "kernel/x/a-mod.ko", "kernel/y/d.ko"]
        );
    }

    #[test]
    fn dash_and_underscore_are_the_same() {
        assert_eq!(
            load_order(&["a-mod"], DEP, "").unwrap(),
            load_order(&["a_mod"], DEP, "").unwrap()
        );
    }

    #[test]
    fn a_built_in_module_is_not_loaded() {
        let builtin = "kernel/z/irq-bypass.ko\n";
        assert_eq!(
            load_order(&["irq_bypass", "c"], DEP, builtin).unwrap(),
            ["kernel/y/c.ko"]
        );
    }

    #[test]
    fn a_compressed_module_is_found() {
        assert_eq!(load_order(&["e"], "k/e.ko.xz:\n", "").unwrap(), ["k/e.ko.xz"]);
    }

    #[test]
    fn an_unknown_module_is_an_error() {
        let error = load_order(&["nothing"], DEP, "").unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module nothing");
    }

    #[test]
    fn a_circle_and_a_gap_are_errors() {
        let error = load_order(&["a"], "a.ko: b.ko\nb.ko: a.ko\n", "").unwrap_err();
        assert_eq!(error.to_string(), "modules.dep: a.ko needs itself");
        let error = load_order(&["a"], "a.ko: b.ko\n", "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "modules.dep: b.ko is needed and has no line of its own"
        );
    }
}
