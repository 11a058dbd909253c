//! Documents on disk, read as the simulator reads them when it starts.

use super::*;

const DOCUMENTED: &str = r#"{
    "type_id": "selligent", // as documented, its trailing comma included
    "authentication": { "username": "api_user", "password": "access_key" },
    "properties": { "url": "my-selligent-installation.com", "gate": "didomi" },
    "mappings": [ { "id": "MAIL", "value": "organization_user_id", } ],
    "upsert_mode": true
}"#;

/// A directory of its own for one test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let unique = format!("gate-simulator-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn environment(name: &str) -> Option<String> {
    (name == "GATE_KEY").then(|| "from the environment".to_owned())
}

fn password(folder: &Folder, text: &str) -> Result<String, Vec<String>> {
    let file = folder.file("one.json", text);
    read(&file, &environment).map(|(_, password)| password)
}

#[test]
fn the_documented_document_loads_as_it_stands() {
    let folder = Folder::new("documented");
    let file = folder.file("shop.json", DOCUMENTED);
    let loaded = load(&[file], &environment).ok().unwrap();
    let shop = &loaded.integrations[0];
    assert_eq!(shop.name, "shop");
    assert_eq!(shop.username, "api_user");
    assert_eq!(shop.gate, "didomi");
    assert_eq!(shop.identifier, "MAIL");
    assert!(shop.properties.iter().eq(["MAIL"]));
}

#[test]
fn the_older_form_and_a_chosen_identifier_load() {
    let folder = Folder::new("older");
    let older = r#"{"config": {"url": "x", "gate": "g", "authentication":
        {"username": "u", "password": "p"}, "properties":
        [{"id": "ID", "value": "organization_user_id"}, {"id": "N", "value": "country"}]}}"#;
    let chosen = DOCUMENTED
        .replace(r#""id": "MAIL""#, r#""id": "KEY", "constant": "k" }, { "id": "MAIL""#)
        .replace(r#""upsert_mode""#, r#""identifier": "KEY", "upsert_mode""#);
    let files = [folder.file("older.json", older), folder.file("chosen.json", &chosen)];
    let loaded = load(&files, &environment).ok().unwrap();
    assert_eq!(loaded.integrations[0].identifier, "ID");
    assert_eq!(loaded.integrations[0].gate, "g");
    assert_eq!(loaded.integrations[1].identifier, "KEY");
}

#[test]
fn the_password_comes_as_text_from_the_environment_or_from_a_file() {
    let folder = Folder::new("password");
    folder.file("key.txt", "from a file\r\n");
    let with = |text: &str| DOCUMENTED.replace(r#""password": "access_key""#, text);
    let read = |text: &str| password(&folder, &with(text));
    assert_eq!(read(r#""password": "a ${B}""#).unwrap(), "a ${B}");
    assert_eq!(read(r#""password": "${GATE_KEY}""#).unwrap(), "from the environment");
    assert_eq!(read(r#""password_file": "key.txt""#).unwrap(), "from a file");
    for (text, word) in [
        (r#""password": "${ABSENT}""#, "ABSENT is not set"),
        (r#""password_file": "absent.txt""#, "absent.txt"),
        (r#""password": "p", "password_file": "key.txt""#, "keep one"),
        (r#""password": 1"#, "must be a string"),
        (r#""password": """#, "missing"),
    ] {
        let problems = read(text).unwrap_err();
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert!(problems[0].contains(word), "{text}: {problems:?}");
    }
}

#[test]
fn every_problem_of_every_document_is_listed() {
    let folder = Folder::new("problems");
    let files = [
        folder.file("empty.json", "{}"),
        folder.file("broken.json", "{\"mappings\": [}"),
        folder.file("Bad Name.json", DOCUMENTED),
        folder.file("list.json", "[]"),
        folder.file(
            "odd.json",
            &DOCUMENTED.replace("\"gate\"", "\"mode\": \"later\", \"gate\"").replace("organization_user_id", "country"),
        ),
        folder.0.join("absent.json"),
    ];
    let problems = load(&files, &environment).err().unwrap().join("\n");
    for word in [
        "empty.json: authentication.username: missing",
        "empty.json: authentication.password: missing",
        "empty.json: properties.gate: missing",
        "empty.json: mappings: missing",
        "broken.json: ",
        "Bad Name.json: file name: ",
        "list.json: not a JSON object",
        "odd.json: properties.mode: ",
        "odd.json: identifier: ",
        "absent.json: ",
    ] {
        assert!(problems.contains(word), "{word}\n{problems}");
    }
}

#[test]
fn two_files_of_one_name_are_a_problem_and_equal_credentials_a_remark() {
    let folder = Folder::new("twice");
    fs::create_dir(folder.0.join("other")).unwrap();
    let first = folder.file("one.json", DOCUMENTED);
    let same_name = folder.file("other/one.json", DOCUMENTED);
    let same_gate = folder.file("two.json", DOCUMENTED);
    let problems = load(&[first.clone(), same_name], &environment).err().unwrap();
    assert!(problems[0].contains("two integrations `one`"), "{problems:?}");
    let remarks = load(&[first, same_gate], &environment).ok().unwrap().remarks;
    assert!(remarks[2].contains("counts as one's"), "{remarks:?}");
}
