// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask imports`: which file of a package uses which, without circles.
//!
//! An arrow goes from the file that names an item to the file that defines it: a name that `lib.rs` re-exports leads to
//! its origin. Tests do not count, and neither does a re-export whose name the file uses nowhere else. Files that use
//! each other in a circle cannot be understood one by one, and neither can two folders that do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::cargo::Workspace;
use crate::tally::Tally;

/// Check that the files of each package import each other without circles
///
/// It is a part of `cargo xtask test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Print the graph of this package as a Mermaid diagram instead; an arrow goes from a file to one that it uses
    #[arg(long, value_name = "PACKAGE")]
    picture: Option<String>,
}

/// Checks every package, or prints the picture of one.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    if let Some(name) = &options.picture {
        let Some((_, directory)) = workspace.directories().find(|(package, _)| package == name) else {
            bail!("the workspace has no package `{name}`");
        };
        for graph in graphs(directory)? {
            print!("{}", graph.picture());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let tally = check(&workspace)?;
    print!("\n{tally}");
    Ok(tally.exit_code())
}

/// Checks every package.
pub fn check(workspace: &Workspace) -> Result<Tally> {
    println!("\n     Imports");
    let mut tally = Tally::default();
    for (name, directory) in workspace.directories() {
        let mut wrong = Vec::new();
        for graph in graphs(directory)? {
            wrong.extend(graph.circles());
            let folders = graph.folders().circles();
            wrong.extend(folders.into_iter().filter(|circle| circle.contains("/ -> ")));
        }
        let outcome = if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("\n  {}", wrong.join("\n  ")))
        };
        tally.one("imports", name, outcome);
    }
    Ok(tally)
}

/// One graph for the library and one for the program, if the package has them.
fn graphs(directory: &Path) -> Result<Vec<Graph>> {
    let roots = ["lib.rs", "main.rs"].map(|root| directory.join("src").join(root));
    let roots = roots.iter().filter(|root| root.exists());
    roots
        .map(|root| {
            let mut package = Package::default();
            package.read(root, &[])?;
            Ok(package.graph())
        })
        .collect()
}

/// The files of a package, or its folders, by name. Each has the files that it uses, and for each of these the name of
/// an item.
#[derive(Debug, Default)]
struct Graph {
    arrows: BTreeMap<String, BTreeMap<String, String>>,
}

impl Graph {
    fn add(&mut self, from: &str, to: &str, item: &str) {
        self.arrows.entry(to.to_owned()).or_default();
        let arrows = self.arrows.entry(from.to_owned()).or_default();
        if from != to {
            arrows.entry(to.to_owned()).or_insert_with(|| item.to_owned());
        }
    }

    /// The same with all files of a top-level folder as one, and with the file that has the folder's name.
    fn folders(&self) -> Self {
        let is_folder = |name: &str| self.arrows.keys().any(|file| file.starts_with(&format!("{name}/")));
        let folder = |file: &str| match file.split('/').next() {
            Some(name) if is_folder(name) => format!("{name}/"),
            _ => file.to_owned(),
        };
        let mut folders = Self::default();
        for (from, arrows) in &self.arrows {
            for to in arrows.keys() {
                folders.add(&folder(from), &folder(to), &format!("{from} uses {to}"));
            }
        }
        folders
    }

    /// All files that can be reached from `from`.
    fn behind(&self, from: &str) -> BTreeSet<&str> {
        let (mut found, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(node) = open.pop() {
            for to in self.arrows.get(node).into_iter().flat_map(BTreeMap::keys) {
                if found.insert(to.as_str()) {
                    open.push(to);
                }
            }
        }
        found
    }

    /// Each circle: its files, and the arrows between them.
    fn circles(&self) -> Vec<String> {
        let behind: BTreeMap<&str, _> = self
            .arrows
            .keys()
            .map(|node| (node.as_str(), self.behind(node)))
            .collect();
        let mut done = BTreeSet::new();
        let mut found = Vec::new();
        for (node, reached) in &behind {
            if !reached.contains(node) || !done.insert(*node) {
                continue;
            }
            let members: Vec<&str> = reached
                .iter()
                .copied()
                .filter(|other| behind[other].contains(node))
                .collect();
            done.extend(members.iter().copied());
            let mut text = format!("a circle of {}", members.join(", "));
            for from in &members {
                for (to, item) in &self.arrows[*from] {
                    if members.contains(&to.as_str()) {
                        let _ = write!(text, "\n    {from} -> {to} ({item})");
                    }
                }
            }
            found.push(text);
        }
        found
    }

    /// A Mermaid diagram.
    fn picture(&self) -> String {
        let id = |name: &str| name.replace(['/', '.'], "_");
        let mut text = "flowchart TD\n".to_owned();
        for (from, arrows) in &self.arrows {
            let _ = writeln!(text, "    {}[{from}]", id(from));
            for to in arrows.keys() {
                let _ = writeln!(text, "    {} --> {}", id(from), id(to));
            }
        }
        text
    }
}

/// A name that a `use` brings in: its path from the root of the package.
#[derive(Debug)]
struct Import {
    name: String,
    path: Vec<String>,
    is_public: bool,
}

#[derive(Debug, Default)]
struct Module {
    /// From `src`, without the extension.
    file: String,
    /// The path of the module from the root.
    place: Vec<String>,
    children: BTreeMap<String, usize>,
    /// The names that the module defines.
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths from the root that are written out in code.
    paths: Vec<Vec<String>>,
    /// Every name in code beside imports.
    words: BTreeSet<String>,
}

/// The modules of a library or program; the first is its root.
#[derive(Debug, Default)]
struct Package {
    modules: Vec<Module>,
}

impl Package {
    /// Reads the file of the module `place`, and the modules in it.
    fn read(&mut self, path: &Path, place: &[String]) -> Result<usize> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let tokens: TokenStream = match text.parse() {
            Ok(tokens) => tokens,
            Err(error) => bail!("{}: {error}", path.display()),
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let folder = path.parent().unwrap_or(Path::new(""));
        let (file, folder) = match stem.as_ref() {
            "lib" | "main" => (stem.into_owned(), folder.to_owned()),
            "mod" => (format!("{}/mod", place.join("/")), folder.to_owned()),
            stem => (place.join("/"), folder.join(stem)),
        };
        self.module(tokens, place, &file, &folder)
    }

    /// Reads the items of a module that is in `file`; the files of the modules in it are in `folder`.
    fn module(&mut self, tokens: TokenStream, place: &[String], file: &str, folder: &Path) -> Result<usize> {
        let index = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            place: place.to_owned(),
            ..Module::default()
        });
        let tokens = without_tests(tokens);
        let mut rest: Vec<TokenTree> = Vec::new();
        let mut at = 0;
        // The modules first: their names begin paths.
        while at < tokens.len() {
            let (Some("mod"), Some(name)) = (word(&tokens, at).as_deref(), word(&tokens, at + 1)) else {
                rest.push(tokens[at].clone());
                at += 1;
                continue;
            };
            while rest.last().is_some_and(is_visibility) {
                rest.pop();
            }
            let place: Vec<String> = place.iter().chain([&name]).cloned().collect();
            let child = match tokens.get(at + 2) {
                Some(TokenTree::Group(body)) => self.module(body.stream(), &place, file, &folder.join(&name))?,
                _ => {
                    let files = [format!("{name}.rs"), format!("{name}/mod.rs")].map(|file| folder.join(file));
                    match files.iter().find(|file| file.exists()) {
                        Some(file) => self.read(file, &place)?,
                        // A file of another package (`#[path]`), which imports nothing of this package.
                        None => self.module(TokenStream::new(), &place, &place.join("/"), folder)?,
                    }
                }
            };
            self.modules[index].children.insert(name, child);
            at += 3;
        }
        self.items(&rest, index);
        self.code(&rest, index);
        Ok(index)
    }

    /// Collects the names that a module defines or imports.
    fn items(&mut self, tokens: &[TokenTree], index: usize) {
        let mut at = 0;
        let mut is_public = false;
        while at < tokens.len() {
            let name = match word(tokens, at).as_deref() {
                Some("pub") => {
                    is_public = true;
                    at += 1;
                    continue;
                }
                Some("use") => {
                    let end = at + item_length(&tokens[at..]);
                    self.import(&tokens[at + 1..end], index, &[], is_public);
                    None
                }
                Some("struct" | "enum" | "trait" | "fn" | "type" | "const" | "static" | "union") => {
                    let words = (at + 1..tokens.len()).filter_map(|next| word(tokens, next));
                    words
                        .filter(|word| !["fn", "unsafe", "extern", "mut", "async"].contains(&word.as_str()))
                        .take(1)
                        .last()
                }
                Some("macro_rules") => word(tokens, at + 2),
                Some("impl") => None,
                _ => {
                    at += 1;
                    continue;
                }
            };
            self.modules[index].items.extend(name);
            is_public = false;
            at += item_length(&tokens[at..]);
        }
    }

    /// Takes one tree of a `use`: `a::{b, c as d, e::*}`.
    fn import(&mut self, tokens: &[TokenTree], index: usize, before: &[String], is_public: bool) {
        let mut path = before.to_vec();
        let mut alias = None;
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Ident(ident) if *ident == "as" => alias = word(tokens, at + 1),
                TokenTree::Ident(ident) if alias.is_none() => path.push(ident.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == '*' => path.push("*".to_owned()),
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    for tree in inner
                        .split(|token| is_punct(token, ','))
                        .filter(|tree| !tree.is_empty())
                    {
                        self.import(tree, index, &path, is_public);
                    }
                    return;
                }
                _ => {}
            }
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = alias.or_else(|| path.last().cloned());
        if let (Some(path), Some(name)) = (self.absolute(&path, index), name) {
            self.modules[index].imports.push(Import { name, path, is_public });
        }
    }

    /// Collects the paths and names of code, also inside of braces.
    fn code(&mut self, tokens: &[TokenTree], index: usize) {
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.code(&without_tests(group.stream()), index),
                TokenTree::Ident(ident) if *ident == "use" => {
                    let end = item_length(&tokens[at..]);
                    // A path at the front of a module is already collected; collecting the path twice does no harm.
                    self.import(&tokens[at + 1..at + end], index, &[], true);
                    at += end - 1;
                }
                TokenTree::Ident(first) => {
                    let mut path = vec![first.to_string()];
                    let colon = |at: usize| tokens.get(at).is_some_and(|token| is_punct(token, ':'));
                    while let (true, true, Some(next)) = (colon(at + 1), colon(at + 2), word(tokens, at + 3)) {
                        path.push(next);
                        at += 3;
                    }
                    if let (true, Some(path)) = (path.len() > 1, self.absolute(&path, index)) {
                        self.modules[index].paths.push(path);
                    }
                    self.modules[index].words.extend(path);
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// The path from the root; `None` for a path that leaves the package, or begins with a name that is no module.
    fn absolute(&self, path: &[String], index: usize) -> Option<Vec<String>> {
        let module = &self.modules[index];
        let (first, _) = path.split_first()?;
        let supers = path.iter().take_while(|part| *part == "super").count();
        let (place, rest) = match first.as_str() {
            "crate" => (&[][..], &path[1..]),
            "self" => (&module.place[..], &path[1..]),
            "super" => (
                &module.place[..module.place.len().checked_sub(supers)?],
                &path[supers..],
            ),
            child if module.children.contains_key(child) => (&module.place[..], path),
            _ => return None,
        };
        Some([place, rest].concat())
    }

    /// The module that defines the item at `path`, after at most `depth` re-exports.
    fn definition(&self, path: &[String], depth: u8) -> Option<usize> {
        let mut module = 0;
        for (at, name) in path.iter().enumerate() {
            let here = self.modules.get(module)?;
            if let Some(&child) = here.children.get(name) {
                module = child;
                continue;
            }
            if here.items.contains(name) || depth == 0 {
                return Some(module);
            }
            let is_it = |import: &&Import| import.name == *name && import.path.last().is_some_and(|last| last != "*");
            if let Some(import) = here.imports.iter().find(is_it) {
                return self.definition(&[&import.path[..], &path[at + 1..]].concat(), depth - 1);
            }
            for glob in here
                .imports
                .iter()
                .filter_map(|import| import.path.strip_suffix(&["*".to_owned()]))
            {
                let found = self.definition(&[glob, &path[at..at + 1]].concat(), depth - 1);
                if found.is_some_and(|found| self.modules[found].items.contains(name)) {
                    return found;
                }
            }
            return Some(module);
        }
        Some(module)
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::default();
        for module in &self.modules {
            graph.add(&module.file, &module.file, "");
            let is_used = |import: &&Import| !import.is_public || module.words.contains(&import.name);
            let imports = module.imports.iter().filter(is_used).map(|import| &import.path);
            for path in imports.chain(&module.paths) {
                if let Some(definition) = self.definition(path, 8) {
                    let item = path.last().map_or("", String::as_str);
                    graph.add(&module.file, &self.modules[definition].file, item);
                }
            }
        }
        graph
    }
}

/// The tokens without the items that are behind `#[cfg(test)]`.
fn without_tests(tokens: TokenStream) -> Vec<TokenTree> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_test = |attribute: &TokenTree| {
            let text: String = attribute.to_string().split_whitespace().collect();
            text.starts_with("[cfg(test)") || text.starts_with("[cfg(all(test")
        };
        if is_punct(&tokens[at], '#') && tokens.get(at + 1).is_some_and(is_test) {
            at += 2;
            at += item_length(&tokens[at..]);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// How many tokens the item has that begins here: to its semicolon, or its braces. A field ends with its comma.
fn item_length(tokens: &[TokenTree]) -> usize {
    let is_field = tokens.get(1).is_some_and(|token| is_punct(token, ':'));
    let is_use = word(tokens, 0).is_some_and(|word| word == "use");
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && !is_use,
        token => is_punct(token, ';') || is_field && is_punct(token, ','),
    };
    tokens.iter().position(is_end).map_or(tokens.len(), |end| end + 1)
}

fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at)? {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_punct(token: &TokenTree, punct: char) -> bool {
    matches!(token, TokenTree::Punct(found) if found.as_char() == punct)
}

/// `pub`, or the parentheses after it.
fn is_visibility(token: &TokenTree) -> bool {
    match token {
        TokenTree::Ident(ident) => *ident == "pub",
        TokenTree::Group(group) => group.delimiter() == Delimiter::Parenthesis,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The graph of the modules that `text` declares with braces, each as a file of its own.
    fn graph(text: &str) -> Graph {
        let mut package = Package::default();
        package
            .module(text.parse().unwrap(), &[], "lib", Path::new(""))
            .unwrap();
        for module in &mut package.modules[1..] {
            let front = if module.children.is_empty() { "" } else { "/mod" };
            module.file = module.place.join("/") + front;
        }
        package.graph()
    }

    fn arrows(text: &str) -> String {
        let graph = graph(text);
        let arrows = graph.arrows.iter();
        let arrows = arrows.flat_map(|(from, arrows)| arrows.keys().map(move |to| format!("{from}>{to}")));
        arrows.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_arrow_leads_to_the_file_that_defines_the_name() {
        assert_eq!(
            arrows("mod a { use crate::B; } mod b { pub struct B; } pub use b::B;"),
            "a>b"
        );
        assert_eq!(
            arrows("mod a { use crate::*; fn f(_: B) {} } mod b { pub fn g() {} } pub use b::*;"),
            "a>lib"
        );
        assert_eq!(
            arrows("mod a { use crate::g; } mod b { pub fn g() {} } pub use b::*;"),
            "a>b"
        );
        assert_eq!(
            arrows("mod a { fn f() { crate::b::c::g() } } mod b { pub mod c { pub fn g() {} } }"),
            "a>b/c"
        );
        assert_eq!(
            arrows("mod b { pub const N: u8 = 1; mod c { use super::{N as M}; } }"),
            "b/c>b/mod"
        );
        assert_eq!(
            arrows("mod b { mod c { use super::super::d::D; } } mod d { pub enum D {} }"),
            "b/c>d"
        );
    }

    #[test]
    fn a_re_export_is_an_arrow_when_the_file_uses_the_name() {
        assert_eq!(arrows("pub mod b { pub struct B; } pub use b::B;"), "");
        assert_eq!(arrows("mod b { pub struct B; } pub use b::B; fn f(_: B) {}"), "lib>b");
        assert_eq!(arrows("mod b { pub struct B; } fn f() { b::B; }"), "lib>b");
        assert_eq!(arrows("mod b { pub struct B; } use b::B;"), "lib>b");
    }

    #[test]
    fn tests_do_not_count() {
        let text =
            "mod a { #[cfg(test)] mod tests { use crate::b::B; } #[cfg(test)] use crate::b::B; fn f() {} } mod b {}";
        assert_eq!(arrows(text), "");
        assert_eq!(
            arrows(
                "mod a { fn f() {} #[cfg(test)] fn g() { crate::b::h() } fn i() { crate::c::j() } } mod b {} mod c {}"
            ),
            "a>c"
        );
    }

    #[test]
    fn circles_of_files_and_of_folders_are_named() {
        let graph = graph(
            "mod a { use crate::b::B; pub struct A; } mod b { use crate::c::C; } mod c { use crate::a::A; } mod d { use crate::a::A; }",
        );
        assert_eq!(
            graph.circles(),
            ["a circle of a, b, c
    a -> b (B)
    b -> c (C)
    c -> a (A)"]
        );
    }

    #[test]
    fn folders_make_circles_too() {
        let graph = graph(
            "mod x { mod a { use crate::y::B; } pub mod b { pub struct X; } }
             mod y { pub struct B; mod z { use crate::x::b::X; } }",
        );
        assert_eq!(graph.circles(), [""; 0]);
        assert_eq!(
            graph.folders().circles(),
            ["a circle of x/, y/\n    x/ -> y/ (x/a uses y/mod)\n    y/ -> x/ (y/z uses x/b)"]
        );
    }
}
