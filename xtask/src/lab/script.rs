// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shell script that runs a command in the lab.

use std::path::Path;

/// The script that runs `words` in `directory`.
pub fn command(directory: &Path, words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!(
        "{}cd {} || exit\nexec {}\n",
        exports(&[]),
        quote_path(directory),
        words.join(" ")
    )
}

/// Exports `IRQ_TEST_LAB=1`, the settings `more`, and the environment variables that programs and tests read.
pub fn exports(more: &[(&str, &str)]) -> String {
    let mut script = String::new();
    for (name, value) in std::env::vars_os() {
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str()) {
            if is_passed(name) {
                script += &format!("export {name}={}\n", quote(value));
            }
        }
    }
    for (name, value) in more.iter().chain(&[("IRQ_TEST_LAB", "1")]) {
        script += &format!("export {name}={}\n", quote(value));
    }
    script
}

fn is_passed(name: &str) -> bool {
    ["PATH", "HOME", "LANG"].contains(&name)
        || ["RUST_", "IRQ_TEST_", "PROPTEST_"]
            .iter()
            .any(|start| name.starts_with(start))
}

/// A path as one word of the shell.
pub fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// Any text as one word of the shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let directory = std::env::temp_dir();
        let words = ["printf", "%s|", "", "a b", "it's", "$HOME `x` \\ \"", "*", "é\nü"];
        let script = command(&directory, &words.map(str::to_owned));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), words[2..].join("|") + "|");

        let script = command(&directory, &["sh", "-c", "pwd; echo $IRQ_TEST_LAB"].map(str::to_owned));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let expected = format!("{}\n1\n", directory.display());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn a_directory_that_is_not_there_is_no_success() {
        let script = command(Path::new("/nowhere"), &["true".to_owned()]);
        assert!(
            !Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap()
                .status
                .success()
        );
    }
}
