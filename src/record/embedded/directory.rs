//! The store's directory: how it is created, and what may be in it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Creates the directory if it is absent, for its owner alone. An existing one keeps its permissions, because
/// somebody chose them, and the program creates files for their owner alone anyway. One that holds other
/// files would be shared with them, and is refused as a mistake. The names of a new directory and of its new
/// parents are entries of the directories above, which are synced: otherwise a power cut could take the whole
/// store.
pub(super) fn make(directory: &Path) -> std::io::Result<()> {
    let is_absent = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let made: Vec<&Path> = directory.ancestors().take_while(is_absent).collect();
    if made.is_empty() {
        looked_at(directory)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for path in made {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(above)?.sync_all()?;
    }
    Ok(())
}

/// Whether a directory holds a store; an existing one with other files has none, and cannot become one.
pub(in crate::record) fn looked_at(directory: &Path) -> std::io::Result<bool> {
    if is_in(directory) {
        return Ok(true);
    }
    if directory.exists() && holds_others(directory)? {
        let why =
            "it contains other files and no records; name a directory for the records alone, such as one below it";
        return Err(std::io::Error::other(why));
    }
    Ok(false)
}

/// Whether a directory contains anything that does not belong to a store, even an incomplete one.
fn holds_others(directory: &Path) -> std::io::Result<bool> {
    const OWN: [&str; 4] = ["lock", "keyspaces", crate::record::control_socket::SOCKET, "lost+found"];
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let is_own = OWN.iter().any(|own| name == *own) || Path::new(&name).extension().is_some_and(|end| end == "jnl");
        if !is_own {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Syncs a directory and those below it: the library syncs files and the directories that they are in, but
/// not always the directory in which it created another one.
pub(super) fn sync_names(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_names(&entry.path())?;
        }
    }
    fs::File::open(directory)?.sync_all()
}

/// Whether there is a store in a directory. An error counts as yes: opening the store will report it.
fn is_in(directory: &Path) -> bool {
    !matches!(directory.join("version").try_exists(), Ok(false))
}
