//! What `scripts/release` builds: everything that it promises, nothing else, and the same bytes each time.

use super::documents::pages;
use super::harness::{Folder, project, run};
use super::observed::anchor;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packs the worker of these tests, and returns the tarball's path.
fn pack(folder: &Folder) -> PathBuf {
    let mut script = Command::new(project().join("scripts/release"));
    script.args(["--binary", env!("CARGO_BIN_EXE_consent-gate"), "--to"]).arg(&folder.0);
    let output = script.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Unpacks it, and returns its only folder.
fn unpacked(tarball: &Path) -> PathBuf {
    let into = tarball.parent().unwrap();
    assert!(Command::new("tar").arg("-xzf").arg(tarball).arg("-C").arg(into).status().unwrap().success());
    into.join(tarball.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.gz").unwrap())
}

fn files(folder: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(folder, &path, found);
        } else {
            found.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// Every command in the help, spelled as `dead-replay`.
fn commands() -> BTreeSet<String> {
    fn of(parents: &[&str]) -> BTreeSet<String> {
        let arguments: Vec<&str> = parents.iter().copied().chain(["--help"]).collect();
        let help = run(&Folder::new(), &[], &arguments, b"").out;
        let Some((_, listed)) = help.split_once("Commands:\n") else { return BTreeSet::new() };
        let lines = listed.lines().take_while(|line| line.starts_with("  "));
        let names = lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
        names.filter(|name| *name != "help").map(str::to_owned).collect()
    }
    let mut all = BTreeSet::new();
    for command in of(&[]) {
        all.extend(of(&[&command]).into_iter().map(|verb| format!("{command}-{verb}")));
        all.insert(command);
    }
    all
}

#[test]
fn a_release_is_whole_and_the_same_each_time() {
    let (first, second) = (Folder::new(), Folder::new());
    let (tarball, again) = (pack(&first), pack(&second));
    let bytes = fs::read(&tarball).unwrap();
    assert!(bytes == fs::read(&again).unwrap(), "two runs, two tarballs");

    let name = tarball.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with(concat!("consent-gate-", env!("CARGO_PKG_VERSION"), "-")), "{name}");
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let sum = fs::read_to_string(tarball.with_file_name(format!("{name}.sha256"))).unwrap();
    assert_eq!(sum, format!("{digest}  {name}\n"));

    let folder = unpacked(&tarball);
    let mut found = BTreeSet::new();
    files(&folder, &folder, &mut found);
    for file in [
        "consent-gate",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "consent-gate.example.toml",
        "integration.example.json",
        "event.example.json",
        "completions/consent-gate.bash",
        "completions/_consent-gate",
        "completions/consent-gate.fish",
        "deploy/systemd/consent-gate.service",
        "docs/runbook.md",
    ] {
        assert!(found.contains(file), "{file} is not among {found:?}");
    }
    let programs: Vec<&String> = found.iter().filter(|file| is_elf(&folder.join(file))).collect();
    assert_eq!(programs, ["consent-gate"], "the worker, and no simulator");

    let version = Command::new(folder.join("consent-gate")).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(version.stdout).unwrap(), concat!("consent-gate ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
#[ignore = "builds the release, some minutes: cargo test --test it -- --ignored release::"]
fn beside_a_worker_that_was_built_lies_what_it_is_made_of_and_from() {
    let folder = Folder::new();
    let mut script = Command::new(project().join("scripts/release"));
    let output = script.arg("--to").arg(&folder.0).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tarball = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let beside = |suffix: &str| {
        let text = fs::read_to_string(tarball.to_str().unwrap().replace(".tar.gz", suffix)).unwrap();
        assert!(!text.contains(project().to_str().unwrap()), "{suffix} says where it was built");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let (parts, provenance) = (beside(".cdx.json"), beside(".provenance.json"));
    let names: BTreeSet<&str> =
        parts["components"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert!(names.is_superset(&BTreeSet::from(["lapin", "reqwest", "tokio", "fjall"])), "{names:?}");
    assert!(names.is_disjoint(&BTreeSet::from(["criterion", "proptest", "cc"])), "{names:?}");
    let digest: String = Sha256::digest(fs::read(&tarball).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(provenance["subject"][0]["digest"]["sha256"], digest);
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(project()).output().unwrap();
    let built = &provenance["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"];
    assert_eq!(*built, String::from_utf8(head.stdout).unwrap().trim());
}

fn is_elf(file: &Path) -> bool {
    fs::read(file).unwrap().starts_with(b"\x7fELF")
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let folder = Folder::new();
    let written = run(&folder, &[], &["man", "man1"], b"");
    assert_eq!(written.code, 0, "{}", written.err);
    let commands = commands();
    assert!(commands.contains("run") && commands.contains("dead-replay"), "{commands:?}");
    let mut pages = BTreeSet::new();
    files(&folder.0, &folder.0, &mut pages);
    let named = |command: &String| format!("man1/consent-gate-{command}.1");
    let expected: BTreeSet<String> = commands.iter().map(named).chain(["man1/consent-gate.1".to_owned()]).collect();
    assert_eq!(pages, expected);
    let front = fs::read_to_string(folder.0.join("man1/consent-gate.1")).unwrap();
    for command in commands.iter().filter(|command| !command.contains('-')) {
        assert!(front.contains(&format!("consent\\-gate\\-{command}(1)")), "{command} is not in\n{front}");
    }
}

/// The headings of a page as anchors.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        in_block ^= line.starts_with("```");
        if !in_block && line.starts_with('#') {
            found.insert(anchor(line.trim_start_matches('#').trim()));
        }
    }
    found
}

#[test]
fn every_link_and_anchor_of_the_documents_leads_somewhere_in_a_release() {
    let folder = Folder::new();
    let release = unpacked(&pack(&folder));
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(release.join(&page)).unwrap_or_else(|e| panic!("{page} is not released: {e}"));
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.contains("://")) {
            let (target, place) = link.split_once('#').map_or((link, None), |(target, place)| (target, Some(place)));
            let file = match target {
                "" => release.join(&page),
                target => release.join(&page).parent().unwrap().join(target),
            };
            assert!(file.exists(), "{page} leads to {link}");
            if let Some(place) = place {
                assert!(anchors(&fs::read_to_string(file).unwrap()).contains(place), "{page} leads to {link}");
            }
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}
