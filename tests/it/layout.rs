//! The structure of the sources: no import cycle, neither of files nor of folders, pure files that are pure, one file
//! that publishes and acks, no two types of one name, and no long file.

use super::documents::rust_files;
use super::harness::project;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The sources of the library by module, `record::rules` for `src/record/rules/mod.rs`; without their tests.
fn modules() -> BTreeMap<String, String> {
    let mut files = BTreeSet::new();
    rust_files(&project().join("src"), &mut files);
    let sources = files.iter().filter_map(|file| {
        let name = file.strip_prefix("src/")?.strip_suffix(".rs")?;
        let is_apart =
            name.starts_with("bin/") || ["lib", "main"].contains(&name) || name.split('/').any(|part| part == "tests");
        (!is_apart).then(|| {
            let text = fs::read_to_string(project().join(file)).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
            (name.strip_suffix("/mod").unwrap_or(name).replace('/', "::"), code)
        })
    });
    sources.collect()
}

/// `a::{b, c::{d}}` as `a::b` and `a::c::d`.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (mut paths, mut depth, mut part) = (Vec::new(), 0, String::new());
    for letter in rest.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                paths.extend(expanded(&format!("{before}{part}")));
                part.clear();
                continue;
            }
            _ => {}
        }
        part.push(letter);
    }
    paths
}

/// The modules that a module imports.
fn imports(own: &str, text: &str, modules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let statements = text.lines().map(str::trim_start).collect::<Vec<_>>().join(" ");
    let statements = statements.split("use ").skip(1).filter_map(|rest| rest.split_once(';')).map(|(path, _)| path);
    let mut named = BTreeSet::new();
    for path in statements.flat_map(|statement| expanded(&statement.replace([' ', '\n'], ""))) {
        let mut base: Vec<&str> = own.split("::").collect();
        let mut path = path.as_str();
        if let Some(rest) = path.strip_prefix("crate::") {
            (base, path) = (Vec::new(), rest);
        } else if let Some(rest) = path.strip_prefix("self::") {
            path = rest;
        } else if !path.starts_with("super::") {
            continue;
        }
        while let Some(rest) = path.strip_prefix("super::") {
            base.pop();
            path = rest;
        }
        let whole: Vec<&str> = base.into_iter().chain(path.split("::")).collect();
        let longest = (1..=whole.len()).rev().map(|length| whole[..length].join("::"));
        named.extend(longest.into_iter().find(|name| modules.contains_key(name)).filter(|name| name != own));
    }
    named
}

/// The folder, or the file beside the folders, of a module.
fn folder(module: &str) -> String {
    module.split("::").next().unwrap().to_owned()
}

/// Asserts that no imports go in a circle: a module that imports none of those left is in no cycle.
fn assert_acyclic(mut left: BTreeMap<String, BTreeSet<String>>) {
    while let Some(done) = left.iter().find(|(_, named)| named.is_empty()).map(|(own, _)| own.clone()) {
        left.remove(&done);
        for named in left.values_mut() {
            named.remove(&done);
        }
    }
    assert!(left.is_empty(), "in a circle, or leading into one: {left:#?}");
}

#[test]
fn no_imports_go_in_a_circle() {
    let modules = modules();
    let of_files: BTreeMap<_, _> =
        modules.iter().map(|(own, text)| (own.clone(), imports(own, text, &modules))).collect();
    let count = of_files.values().map(BTreeSet::len).sum::<usize>();
    assert!(modules.len() > 100 && count > 400, "{count} imports among {} modules prove nothing", modules.len());

    let mut of_folders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (own, named) in &of_files {
        let others = named.iter().map(|name| folder(name)).filter(|name| *name != folder(own));
        of_folders.entry(folder(own)).or_default().extend(others);
    }
    assert!((10..25).contains(&of_folders.len()), "{:?}", of_folders.keys());
    assert_acyclic(of_folders);
    assert_acyclic(of_files);
}

/// The rows of the code map in ARCHITECTURE.md are in the order of the imports.
#[test]
fn each_folder_imports_only_from_those_below_it_in_the_code_map() {
    let page = fs::read_to_string(project().join("ARCHITECTURE.md")).unwrap();
    let modules = modules();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `src/")).collect();
    let row = |name: &str| {
        let written = [format!("`src/{name}/`"), format!("`src/{name}.rs`")];
        let is_of = |line: &&str| written.iter().any(|written| line.split(" | ").next().unwrap().contains(written));
        rows.iter().position(is_of).unwrap_or_else(|| panic!("{name} is not in the code map"))
    };
    for (own, text) in &modules {
        for name in imports(own, text, &modules).iter().filter(|name| folder(name) != folder(own)) {
            assert!(row(&folder(own)) < row(&folder(name)), "{own} imports {name}, which is above it");
        }
    }
}

/// What acts, and what gives another answer each time.
const IMPURE: [&str; 12] = [
    "async fn",
    ".await",
    "spawn(",
    "select!",
    "sleep(",
    "reqwest::Client",
    "std::fs",
    "std::net",
    "std::env",
    "::now()",
    "random(",
    "tracing::",
];

#[test]
fn what_is_called_pure_is_pure() {
    let is_pure =
        |text: &str| text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.contains("(pure"));
    let pure: Vec<(String, String)> = modules().into_iter().filter(|(_, text)| is_pure(text)).collect();
    assert!(pure.len() > 30, "{}", pure.len());
    for (own, text) in pure {
        let found: Vec<&str> = IMPURE.into_iter().filter(|sign| text.contains(sign)).collect();
        assert!(found.is_empty(), "{own} is called pure, and has {found:?}");
    }
}

#[test]
fn no_two_types_have_one_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (own, text) in modules() {
        for line in text.lines().filter(|line| !line.starts_with("    ")) {
            let line = line.strip_prefix("pub").map_or(line, |rest| rest.split_once(' ').unwrap().1);
            let name = ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| line.strip_prefix(kind));
            let Some(name) = name.and_then(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next()) else {
                continue;
            };
            places.entry(name.to_owned()).or_default().push(own.clone());
        }
    }
    assert!(places.len() > 200, "{}", places.len());
    places.retain(|_, modules| modules.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

#[test]
fn one_file_publishes_and_acks() {
    let calls = ["basic_publish(", "basic_ack(", "acker.ack("];
    let those = modules().into_iter().filter(|(_, text)| calls.iter().any(|call| text.contains(call)));
    assert_eq!(those.map(|(own, _)| own).collect::<Vec<_>>(), ["broker::wire"]);
}

#[test]
fn no_source_is_longer_than_400_lines() {
    let mut files = BTreeSet::new();
    rust_files(&project().join("src"), &mut files);
    let lines = |file: &&String| fs::read_to_string(project().join(file)).unwrap().lines().count();
    let long: Vec<_> = files.iter().filter(|file| lines(file) > 400).collect();
    assert!(files.len() > 100 && long.is_empty(), "{long:?}");
}
