// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The workspace's packages and their test programs, as cargo lists and builds them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::compiler::Compiler;

/// The packages of the workspace, as `cargo metadata` lists them.
#[derive(Debug)]
pub struct Workspace {
    packages: Vec<Package>,
    root: PathBuf,
    target: PathBuf,
}

#[derive(Debug)]
struct Package {
    id: String,
    name: String,
    version: String,
    directory: PathBuf,
    has_doctests: bool,
    binaries: Vec<String>,
    is_library: bool,
    features: Vec<String>,
}

/// One compiled test program: unit tests, or one file of `tests/`.
#[derive(Clone, Debug)]
pub struct TestProgram {
    /// Name of the program's package.
    pub package: String,
    /// Version of that package.
    pub version: String,
    /// Directory of that package's manifest. As with cargo, its tests run there.
    pub directory: PathBuf,
    /// Source file, relative to the package's directory.
    pub source: PathBuf,
    /// Name of the target: the crate for unit tests, the file for an integration test.
    pub suite: String,
    /// The program.
    pub executable: PathBuf,
}

impl TestProgram {
    /// The line that announces the program's run.
    pub fn heading(&self) -> String {
        format!("     Running {} ({})", self.source.display(), self.package)
    }
}

/// What `cargo metadata` tells with one more option.
///
/// # Errors
/// When cargo cannot be run, or fails.
pub fn metadata(option: &str) -> Result<Value> {
    let output = cargo()
        .args(["metadata", "--format-version=1", option])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed");
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

impl Workspace {
    /// Asks `cargo metadata`.
    pub fn load() -> Result<Self> {
        let metadata = metadata("--no-deps")?;
        let root = PathBuf::from(text(&metadata, "workspace_root")?);
        let libraries = root.join("crates");
        let packages = array(&metadata, "packages")
            .map(|package| {
                let manifest = Path::new(text(package, "manifest_path")?);
                Ok(Package {
                    id: text(package, "id")?.to_owned(),
                    name: text(package, "name")?.to_owned(),
                    version: text(package, "version")?.to_owned(),
                    directory: manifest.parent().unwrap_or(manifest).to_owned(),
                    has_doctests: array(package, "targets")
                        .any(|target| target.get("doctest") == Some(&Value::Bool(true))),
                    binaries: array(package, "targets")
                        .filter(|target| has_kind(target, "bin"))
                        .filter_map(|target| Some(target.get("name")?.as_str()?.to_owned()))
                        .collect(),
                    is_library: manifest.starts_with(&libraries),
                    features: package
                        .get("features")
                        .and_then(Value::as_object)
                        .map_or_else(Vec::new, |features| {
                            features.keys().filter(|name| *name != "default").cloned().collect()
                        }),
                })
            })
            .collect::<Result<_>>()?;
        let target = PathBuf::from(text(&metadata, "target_directory")?);
        Ok(Self { packages, root, target })
    }

    /// The output of `cargo metadata` for every package, with all features and for this machine.
    pub fn resolved(&self) -> Result<Value> {
        let output = cargo()
            .args(["metadata", "--all-features", "--format-version=1", "--filter-platform"])
            .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("cargo metadata failed");
        }
        serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
    }

    /// The directory of the workspace.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The packages of `crates/`, which VMMs take, and the features of each.
    pub fn libraries(&self) -> impl Iterator<Item = (&str, &[String])> {
        let libraries = self.packages.iter().filter(|package| package.is_library);
        libraries.map(|package| (package.name.as_str(), package.features.as_slice()))
    }

    /// The packages and their directories.
    pub fn directories(&self) -> impl Iterator<Item = (&str, &Path)> {
        let packages = self.packages.iter();
        packages.map(|package| (package.name.as_str(), package.directory.as_path()))
    }

    /// The directory that cargo builds in.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Builds the program `name` with `--release` and gives its path; `None` when no package has a program of that
    /// name. With a compiler, the program is for aarch64.
    pub fn build_binary(&self, name: &str, aarch64: Option<&Compiler>) -> Result<Option<String>> {
        let has_it = |package: &&Package| package.binaries.iter().any(|binary| binary == name);
        let Some(package) = self.packages.iter().find(has_it) else {
            return Ok(None);
        };
        let output = cargo_for(aarch64)?
            .args(["build", "--release", "--message-format=json-render-diagnostics"])
            .args(["--package", &package.name, "--bin", name])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("{name} does not build");
        }
        messages(&output.stdout)
            .filter_map(|message| Some(message.get("executable")?.as_str()?.to_owned()))
            .last()
            .map_or_else(|| bail!("cargo built no {name}"), |path| Ok(Some(path)))
    }

    /// Builds the programs of `package` and its `benches` with `--release`, and gives the name and the path of each.
    pub fn build_benches(&self, package: &str, benches: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let output = cargo()
            .args(["build", "--release", "--message-format=json-render-diagnostics"])
            .args(["--package", package, "--bins"])
            .args(benches.iter().flat_map(|bench| ["--bench", bench]))
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("{package} does not build");
        }
        let program = |message: Value| {
            let name = message.pointer("/target/name")?.as_str()?.to_owned();
            Some((name, PathBuf::from(message.get("executable")?.as_str()?)))
        };
        Ok(messages(&output.stdout).filter_map(program).collect())
    }

    /// Builds the test programs of `packages` (all when empty) with all features, and lists them by
    /// package, unit tests first.
    pub fn build_tests(&self, packages: &[String]) -> Result<Vec<TestProgram>> {
        self.check(packages)?;
        self.build_programs(&selection(packages), None)
    }

    /// Builds the integration tests of `packages` that have one of the names `tests`, with all features and
    /// `--release`. With a compiler, the programs are for aarch64.
    pub fn build_released_tests(
        &self,
        packages: &[String],
        tests: &[&str],
        aarch64: Option<&Compiler>,
    ) -> Result<Vec<TestProgram>> {
        let mut arguments = selection(packages);
        arguments.push("--release".to_owned());
        for test in tests {
            arguments.extend(["--test".to_owned(), (*test).to_owned()]);
        }
        self.build_programs(&arguments, aarch64)
    }

    fn build_programs(&self, arguments: &[String], aarch64: Option<&Compiler>) -> Result<Vec<TestProgram>> {
        let output = cargo_for(aarch64)?
            .args(["test", "--no-run", "--all-features"])
            .arg("--message-format=json-render-diagnostics")
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("the tests do not build");
        }
        let mut programs = Vec::new();
        for message in messages(&output.stdout) {
            programs.extend(self.test_program(&message));
        }
        // Cargo announces programs in the order in which they were compiled.
        programs.sort_by(|a, b| (&a.package, &a.source).cmp(&(&b.package, &b.source)));
        Ok(programs)
    }

    /// Refuses a name that is no package of the workspace, with a clearer message than cargo's.
    fn check(&self, packages: &[String]) -> Result<()> {
        let names: Vec<&str> = self.packages.iter().map(|package| package.name.as_str()).collect();
        match packages.iter().find(|package| !names.contains(&package.as_str())) {
            None => Ok(()),
            Some(unknown) => {
                bail!("the workspace has no package `{unknown}`; it has {}", names.join(", "))
            }
        }
    }

    /// The test program that a message of cargo announces, if any.
    fn test_program(&self, message: &Value) -> Option<TestProgram> {
        let is_test = message.pointer("/profile/test") == Some(&Value::Bool(true));
        let executable = message.get("executable").and_then(Value::as_str)?;
        if !is_test {
            return None; // a program that an integration test starts
        }
        let id = message.get("package_id").and_then(Value::as_str)?;
        let package = self.packages.iter().find(|package| package.id == id)?;
        let source = message.pointer("/target/src_path").and_then(Value::as_str)?;
        let source = Path::new(source);
        Some(TestProgram {
            package: package.name.clone(),
            version: package.version.clone(),
            directory: package.directory.clone(),
            source: source.strip_prefix(&package.directory).unwrap_or(source).to_owned(),
            suite: message.pointer("/target/name").and_then(Value::as_str)?.to_owned(),
            executable: executable.into(),
        })
    }

    /// The command that checks interrupt-core's sharing state in every interleaving of a few threads; `None` when that
    /// package is not among `packages`. The check is built apart, because the model checker replaces std's
    /// synchronisation.
    pub fn model_checks(&self, packages: &[String]) -> Option<Command> {
        const PACKAGE: &str = "interrupt-core";
        let wanted = packages.is_empty() || packages.iter().any(|package| package == PACKAGE);
        let exists = self.packages.iter().any(|package| package.name == PACKAGE);
        if !wanted || !exists {
            return None;
        }
        let mut command = cargo();
        command
            .args([
                "test",
                "--quiet",
                "--release",
                "--package",
                PACKAGE,
                "--lib",
                "model_checks",
            ])
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", self.target.join("loom"));
        Some(command)
    }

    /// The command that runs the doctests of `packages` (all when empty); `None` when none of the packages can have
    /// doctests.
    pub fn doctests(&self, packages: &[String]) -> Option<Command> {
        let with_doctests: Vec<String> = self
            .packages
            .iter()
            .filter(|package| packages.is_empty() || packages.contains(&package.name))
            .filter(|package| package.has_doctests)
            .map(|package| package.name.clone())
            .collect();
        if with_doctests.is_empty() {
            return None;
        }
        // The selection of `build_tests` where cargo accepts it, so that features resolve alike and nothing is built
        // twice.
        let packages = if packages.is_empty() { packages } else { &with_doctests };
        let mut command = cargo();
        command.args(["test", "--doc", "--no-fail-fast", "--all-features"]);
        command.args(selection(packages));
        Some(command)
    }
}

/// The cargo that runs this program, or else the cargo in the path.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// That cargo, building for this machine, or for aarch64 with `aarch64`.
fn cargo_for(aarch64: Option<&Compiler>) -> Result<Command> {
    let mut cargo = cargo();
    if let Some(compiler) = aarch64 {
        compiler.aarch64(&mut cargo)?;
    }
    Ok(cargo)
}

fn selection(packages: &[String]) -> Vec<String> {
    if packages.is_empty() {
        return vec!["--workspace".to_owned()];
    }
    packages.iter().map(|package| format!("--package={package}")).collect()
}

/// The JSON messages in cargo's output, without the lines that a build script has printed.
fn messages(output: &[u8]) -> impl Iterator<Item = Value> {
    output
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
}

fn has_kind(target: &Value, kind: &str) -> bool {
    array(target, "kind").any(|value| value == kind)
}

/// The elements of `key`, if that is an array.
pub fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// The string `key`.
pub fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value
        .get(key)
        .and_then(Value::as_str)
        .with_context(|| format!("cargo metadata has no `{key}`"))
}
