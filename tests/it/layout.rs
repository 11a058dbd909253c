//! The structure of the sources: no import cycle, one file that publishes and acks, and no long file.

use super::documents::rust_files;
use super::harness::project;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The sources of the library by module, `record::rules` for `src/record/rules.rs`; without their tests.
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

#[test]
fn no_imports_go_in_a_circle() {
    let modules = modules();
    let mut left: BTreeMap<&str, BTreeSet<String>> =
        modules.iter().map(|(own, text)| (own.as_str(), imports(own, text, &modules))).collect();
    let count = left.values().map(BTreeSet::len).sum::<usize>();
    assert!(modules.len() > 100 && count > 400, "{count} imports among {} modules prove nothing", modules.len());
    // A module that imports none of those left is in no cycle.
    while let Some(done) = left.iter().find(|(_, named)| named.is_empty()).map(|(own, _)| (*own).to_owned()) {
        left.remove(done.as_str());
        for named in left.values_mut() {
            named.remove(&done);
        }
    }
    assert!(left.is_empty(), "in a circle, or leading into one: {left:#?}");
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
