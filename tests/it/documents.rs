//! The claims of the documents: each claim that a test can check has a test.

use super::harness::{Folder, fixture, project, run};
use consent_gate::broker::topology::Queues;
use consent_gate::integration::Name;
use consent_gate::schedule::Schedule;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn read(name: &str) -> String {
    fs::read_to_string(project().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The pages for people, except the changelog.
pub fn pages() -> BTreeSet<String> {
    let docs = fs::read_dir(project().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.map(|name| format!("docs/{}", name.to_str().unwrap())).filter(|name| name.ends_with(".md"));
    let others = ["README.md", "ARCHITECTURE.md", "deploy/README.md"].map(str::to_owned);
    docs.chain(others).collect()
}

/// The words in backticks that `wanted` accepts.
fn quoted(text: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).filter(|word| wanted(word)).map(str::to_owned).collect()
}

/// All sources below a folder, as paths from the project's folder.
pub fn rust_files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path.strip_prefix(project()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn architecture_names_every_folder_of_sources_and_no_file_that_is_not_there() {
    let page = read("ARCHITECTURE.md");
    let entries = fs::read_dir(project().join("src")).unwrap().map(|entry| entry.unwrap());
    let name = |entry: fs::DirEntry| {
        let slash = if entry.path().is_dir() { "/" } else { "" };
        format!("`src/{}{slash}`", entry.file_name().to_str().unwrap())
    };
    for name in entries.map(name).filter(|name| !["`src/bin/`", "`src/lib.rs`"].contains(&name.as_str())) {
        assert!(page.contains(&format!("| {name}")) || page.contains(&format!(", {name}")), "{name}");
    }
    let row = |line: &&str| line.starts_with("| `src/") && line.contains("/` |");
    let begin = page.lines().filter(row).flat_map(|line| {
        let folder = line.split('`').nth(1).unwrap();
        let files = line.rsplit('|').nth(1).unwrap().split('`').filter(|word| word.ends_with(".rs"));
        files.map(move |file| format!("{folder}{file}"))
    });
    let begin: Vec<String> = begin.collect();
    assert!(begin.len() > 20, "{begin:?}");
    let named = ["ARCHITECTURE.md", "docs/decisions.md", "docs/reliability.md", "CONTRIBUTING.md"]
        .map(|page| quoted(&read(page), |word| word.starts_with("src/") && word.ends_with(".rs")));
    for file in begin.iter().chain(named.iter().flatten()) {
        assert!(project().join(file).exists(), "{file}");
    }
}

#[test]
fn architecture_gives_a_reason_for_every_dependency() {
    let manifest: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let page = read("ARCHITECTURE.md");
    for section in ["dependencies", "dev-dependencies"] {
        for name in manifest[section].as_table().unwrap().keys() {
            assert!(page.contains(&format!("| `{name}` |")), "no reason for {name} in ARCHITECTURE.md");
        }
    }
}

#[test]
fn the_page_on_monitoring_names_every_metric_and_no_page_names_another() {
    let series = read("tests/golden/metrics-series.txt");
    let exposed: BTreeSet<String> = series
        .lines()
        .map(|line| line.split('{').next().unwrap())
        .map(|name| name.trim_end_matches("_sum").trim_end_matches("_count").to_owned())
        .collect();
    let named = |page: &str| -> BTreeSet<String> {
        let named = quoted(&read(page), |word| word.starts_with("consent_gate_") && !word.contains(['/', ' ']));
        named.iter().map(|word| word.split('{').next().unwrap().to_owned()).collect()
    };
    assert_eq!(named("docs/monitoring.md"), exposed);
    // Tables in the database have such names, too.
    let others = pages().into_iter().filter(|page| page != "docs/postgresql.md");
    let unknown: Vec<String> = others.flat_map(|page| named(&page)).filter(|name| !exposed.contains(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_page_on_behaviour_names_every_code() {
    use consent_gate::verdict::{DeadReason, Skip};
    let page = read("docs/behaviour.md");
    for code in Skip::ALL.iter().copied().map(Skip::code).chain(DeadReason::ALL.iter().copied().map(DeadReason::code)) {
        assert!(page.contains(&format!("`{code}`")), "{code} is not in docs/behaviour.md");
    }
}

#[test]
fn the_readme_is_short() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= 1_200, "README.md has {words} words; facts belong into docs/");
}

#[test]
fn every_page_of_docs_is_in_the_readme() {
    let readme = read("README.md");
    for page in pages().iter().filter(|page| *page != "README.md") {
        let folder = page.strip_suffix("README.md").unwrap_or(page);
        assert!(readme.contains(&format!("({page})")) || readme.contains(&format!("({folder})")), "{page}");
    }
}

#[test]
fn the_readmes_integration_loads_and_maps() {
    let folder = Folder::new();
    let document = read("README.md").split("```json\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    folder.write("integrations/acme.json", document);
    let arguments = ["map", "--integration", "acme", "-"];
    let mapped = run(&folder, &[("ACME_GATE_KEY", "key")], &arguments, read("event.example.json").as_bytes());
    assert_eq!(mapped.code, 0, "{}", mapped.err);
    assert!(mapped.out.contains(r#"OPTIN_NEWS  "1""#), "{}", mapped.out);
}

#[test]
fn the_page_on_configuration_names_every_section_and_every_key_of_a_document() {
    let page = read("docs/configuration.md");
    let named: BTreeSet<String> = quoted(&page, |_| true)
        .iter()
        .flat_map(|code| code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .map(str::to_owned)
        .collect();
    let settings = read("consent-gate.example.toml");
    let sections = settings.lines().filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
    // Those in a comment, too: they are optional keys.
    let document = read("integration.example.json");
    let keys = document.split("\":").map(|before| before.rsplit('"').next().unwrap()).filter(|key| !key.contains('\n'));
    let wanted: BTreeSet<&str> = sections.chain(keys).collect();
    assert!(wanted.len() > 30, "{wanted:?}");
    let unnamed: Vec<&&str> = wanted.iter().filter(|word| !named.contains(**word)).collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
}

#[test]
fn the_commented_example_is_the_default_configuration() {
    let folder = Folder::new();
    folder.write("integrations/acme.json", read("tests/fixtures/didomi-selligent.json"));
    let example = read("consent-gate.example.toml");
    folder.write("consent-gate.toml", &example);
    let checked = run(&folder, &[], &["check"], b"");
    assert_eq!(checked.code, 0, "{}", checked.err);
    // Every commented-out default must be a valid key, too.
    let uncommented: String =
        example.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n").collect();
    assert_ne!(uncommented, example);
    folder.write("consent-gate.toml", uncommented);
    let checked = run(&folder, &[], &["check"], b"");
    assert_eq!(checked.code, 0, "{}", checked.err);
}

#[test]
fn the_example_integration_loads_and_maps() {
    let folder = Folder::new();
    let file = folder.write("acme.json", read("integration.example.json"));
    let environment = [("ACME_GATE_KEY", "key")];
    let arguments = ["map", "--integration", file.to_str().unwrap(), "-"];
    let mapped = run(&folder, &environment, &arguments, &fixture("event-created-v2.json"));
    assert_eq!(mapped.code, 0, "{}", mapped.err);
    assert!(mapped.out.contains("would be sent"), "{}", mapped.out);
}

#[test]
fn deployed_configurations_load() {
    let folder = Folder::new();
    folder.write("integrations/acme.json", read("deploy/compose/integrations/acme.json"));
    let checked = run(&folder, &[("ACME_GATE_KEY", "key")], &["check"], b"");
    assert_eq!(checked.code, 0, "{}", checked.err);
}

/// The licences and bans of `deny.toml`, which cargo-deny reads too.
#[test]
fn every_dependency_has_a_permissive_licence_and_none_is_banned() {
    let deny: toml::Table = toml::from_str(&read("deny.toml")).unwrap();
    let texts = |value: &toml::Value| -> Vec<String> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item.as_str().or_else(|| item["crate"].as_str()).unwrap().to_owned())
            .collect()
    };
    let allowed: Vec<spdx::Licensee> =
        texts(&deny["licenses"]["allow"]).iter().map(|name| spdx::Licensee::parse(name).unwrap()).collect();
    let banned = texts(&deny["bans"]["deny"]);
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(project())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 50);
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX).unwrap();
        let permissive = expression.evaluate(|wanted| allowed.iter().any(|licensee| licensee.satisfies(wanted)));
        assert!(permissive, "{name} is under {licence}, which deny.toml does not allow");
        assert!(!banned.iter().any(|banned| banned == name), "{name} is banned by deny.toml");
    }
}

#[test]
fn the_page_on_configuration_counts_the_queues_of_an_integration() {
    let name = Name::new("acme").unwrap();
    let queues = Queues::of(&name).all(&Schedule::default());
    assert_eq!(queues.len(), 12, "{queues:?}");
    assert!(read("docs/configuration.md").contains("twelve queues (with the default schedule)"));
}

/// Options and values as the command line accepts them: help is shown once everything before it is valid.
#[test]
fn every_command_in_the_documents_is_one_that_the_program_takes() {
    let folder = Folder::new();
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for line in text.split("```").skip(1).step_by(2).flat_map(str::lines).filter(|line| !line.contains('…')) {
            let Some(line) = line.strip_prefix("consent-gate ") else { continue };
            let typed = line.split([' ', '\t']).take_while(|word| !word.starts_with(['#', '<', '>', '&']));
            let words: Vec<&str> = typed.filter(|word| !word.is_empty()).chain(["--help"]).collect();
            let shown = run(&folder, &[], &words, b"");
            assert_eq!(shown.code, 0, "{page}: consent-gate {line}\n{}", shown.err);
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn every_page_that_programs_and_scripts_name_is_there() {
    let listed = Command::new("git").args(["ls-files"]).current_dir(project()).output().unwrap();
    let files = String::from_utf8(listed.stdout).unwrap();
    let mut count = 0;
    for file in files.lines().filter(|file| *file != "CHANGELOG.md" && !file.starts_with("docs/")) {
        let Ok(text) = fs::read_to_string(project().join(file)) else { continue };
        for rest in text.split("docs/").skip(1) {
            let name = rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap_or_default();
            if rest[name.len()..].starts_with(".md") {
                assert!(project().join(format!("docs/{name}.md")).exists(), "{file} names docs/{name}.md");
                count += 1;
            }
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn what_the_quick_tests_leave_out_is_there() {
    let script = read("scripts/test");
    let slow: Vec<&str> =
        script.split("SLOW=(").nth(1).unwrap().split(')').next().unwrap().split_whitespace().collect();
    assert!(slow.len() > 10, "{slow:?}");
    for name in slow {
        let (module, test) = name.split_once("::").unwrap();
        let found = read(&format!("tests/it/{module}.rs")).contains(&format!("fn {test}"));
        assert!(found, "{name}");
    }
}
