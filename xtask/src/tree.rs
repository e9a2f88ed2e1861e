// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files of the checkout, for the checks that read them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A text file: its path from the root of the workspace, and its text.
#[derive(Debug)]
pub struct Source {
    pub path: String,
    pub text: String,
}

/// The Rust sources and Markdown documents below `root`, in the order of their paths.
pub fn sources(root: &Path) -> Result<Vec<Source>> {
    files(root)?
        .into_iter()
        .filter(|path| path.ends_with(".rs") || path.ends_with(".md"))
        .map(|path| {
            let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
            Ok(Source { path, text })
        })
        .collect()
}

/// The paths of all files below `root`, sorted, without build output and hidden files.
pub fn files(root: &Path) -> Result<Vec<String>> {
    let (mut found, mut open) = (Vec::new(), vec![String::new()]);
    while let Some(folder) = open.pop() {
        let context = || format!("cannot read {folder}");
        for entry in fs::read_dir(root.join(&folder)).with_context(context)? {
            let entry = entry.with_context(context)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "target" || name.starts_with('.') && folder.is_empty() {
                continue;
            }
            let path = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            if entry.file_type().with_context(context)?.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
