// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Series of patches, and the source trees that they are applied to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{array, metadata, text};

/// The patches of a series, in their order.
pub fn series(directory: &Path) -> Result<Vec<PathBuf>> {
    sorted(directory, |path| {
        path.extension().is_some_and(|extension| extension == "patch")
    })
}

/// The paths in a directory that are wanted, sorted by name.
pub fn sorted(directory: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Makes `to` a copy of the tree `from`. A file that is there already with the same content stays untouched, so that
/// cargo does not build it again; what is not in `from` is removed. Below `from`, the names in `except` are left out.
pub fn copy_tree(from: &Path, to: &Path, except: &[&str]) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut names = Vec::new();
    for path in sorted(from, |path| !except.iter().any(|name| path.ends_with(name)))? {
        let name = path.file_name().unwrap_or_default().to_owned();
        let copy = to.join(&name);
        if path.is_dir() {
            copy_tree(&path, &copy, except)?;
        } else {
            // Not fs::copy: a registry's files may be read-only, and the copies are patched.
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if fs::read(&copy).ok().as_ref() != Some(&content) {
                fs::write(&copy, content).with_context(|| format!("cannot write {}", copy.display()))?;
            }
        }
        names.push(name);
    }
    for stale in sorted(to, |path| {
        !names.iter().any(|name| Some(name.as_os_str()) == path.file_name())
    })? {
        let removed = if stale.is_dir() {
            fs::remove_dir_all(&stale)
        } else {
            fs::remove_file(&stale)
        };
        removed.with_context(|| format!("cannot remove {}", stale.display()))?;
    }
    Ok(())
}

/// Applies one patch to the tree `copy`.
pub fn apply(patch: &Path, copy: &Path) -> Result<()> {
    let applied = Command::new("git")
        // Keep git from the repository around target/: the root of the patches is the copy.
        .env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap_or(copy))
        .args(["apply", "--whitespace=nowarn"])
        .arg(patch)
        .current_dir(copy)
        .status()
        .context("cannot run git")?;
    if !applied.success() {
        bail!("{} does not apply to {}", patch.display(), copy.display());
    }
    Ok(())
}

/// The directory of each dependency's released source, by name and version, as `cargo metadata` with this option has them.
pub fn released_sources(option: &str) -> Result<BTreeMap<(String, String), PathBuf>> {
    let metadata = metadata(option)?;
    array(&metadata, "packages")
        .map(|package| {
            let manifest = Path::new(text(package, "manifest_path")?);
            let id = (text(package, "name")?.to_owned(), text(package, "version")?.to_owned());
            Ok((id, manifest.parent().unwrap_or(manifest).to_owned()))
        })
        .collect()
}

/// A path as a string of a cargo configuration.
pub fn toml_string(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is no UTF-8", path.display()))?;
    Ok(serde_json::to_string(text)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_what_was_equal_stays_untouched() {
        let root = std::env::temp_dir().join(format!("xtask-patches-{}", std::process::id()));
        let (from, to) = (root.join("from"), root.join("to"));
        fs::create_dir_all(from.join("a/target")).unwrap();
        fs::create_dir_all(to.join("gone")).unwrap();
        for (file, content) in [
            ("from/a/x", "1"),
            ("from/y", "2"),
            ("from/a/target/z", "3"),
            ("to/y", "2"),
            ("to/w", "4"),
        ] {
            fs::write(root.join(file), content).unwrap();
        }
        let modified = || fs::metadata(to.join("y")).unwrap().modified().unwrap();
        let before = modified();
        copy_tree(&from, &to, &["target"]).unwrap();
        assert_eq!(modified(), before);
        assert_eq!(fs::read_to_string(to.join("a/x")).unwrap(), "1");
        assert_eq!(sorted(&to, |_| true).unwrap(), [to.join("a"), to.join("y")]);
        assert!(!to.join("a/target").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
