//! A power supply that can be cut: whatever was not synced is then gone, which killing a process cannot show.
//!
//! A library in the worker (`tests/fixtures/faults.c`) copies at each sync what is synced: the content of a
//! file, the names in a directory. Put together, these copies are the worst state that a file system which
//! keeps POSIX's promises may leave.

use super::{Folder, fault_library, unique};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub struct Power {
    /// The directory whose content may be lost.
    root: PathBuf,
    synced: PathBuf,
    lies: PathBuf,
}

impl Power {
    /// A power supply for a directory; what is there now counts as synced.
    pub fn of(folder: &Folder, root: &Path) -> Power {
        let synced = folder.0.join(unique());
        fs::create_dir_all(&synced).unwrap();
        let power = Power { root: root.to_owned(), lies: folder.0.join(format!("{}-lies", unique())), synced };
        power.sync(root);
        power
    }

    /// Sets the variables that connect a worker to this power supply.
    pub fn connect(&self, environment: &mut BTreeMap<String, String>) {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let variables = [
            ("LD_PRELOAD", fault_library().to_owned()),
            ("TEST_FAULT_POWER", path(&self.synced)),
            ("TEST_FAULT_LIES", path(&self.lies)),
        ];
        environment.extend(variables.map(|(name, value)| (name.to_owned(), value)));
    }

    /// From now on syncs do nothing.
    pub fn lie(&self) {
        fs::write(&self.lies, "").unwrap();
    }

    /// Cuts the power, once no worker runs any more: whatever was not synced is gone.
    pub fn cut(self) {
        let after = self.synced.join("after");
        self.restore(fs::metadata(&self.root).unwrap().ino(), &after);
        fs::remove_dir_all(&self.root).unwrap();
        fs::rename(after, &self.root).unwrap();
        fs::remove_dir_all(&self.synced).unwrap();
    }

    /// The path of a copy, by inode.
    fn of_inode(&self, inode: u64, what: &str) -> PathBuf {
        self.synced.join(format!("{inode}.{what}"))
    }

    fn sync(&self, folder: &Path) {
        let mut names = String::new();
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (inode, is_folder) = (entry.metadata().unwrap().ino(), entry.file_type().unwrap().is_dir());
            let name = entry.file_name().into_string().unwrap();
            names += &format!("{} {inode} {name}\n", if is_folder { "d" } else { "f" });
            if is_folder {
                self.sync(&entry.path());
            } else {
                fs::hard_link(entry.path(), self.of_inode(inode, "kept")).unwrap();
                fs::copy(entry.path(), self.of_inode(inode, "content")).unwrap();
            }
        }
        fs::write(self.of_inode(fs::metadata(folder).unwrap().ino(), "names"), names).unwrap();
    }

    /// Restores a directory as it was synced.
    fn restore(&self, inode: u64, to: &Path) {
        fs::create_dir_all(to).unwrap();
        let names = fs::read_to_string(self.of_inode(inode, "names")).unwrap_or_default();
        for line in names.lines() {
            let [kind, inode, name] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
            let inode = inode.parse().unwrap();
            let path = to.join(name);
            if kind == "d" {
                self.restore(inode, &path);
            } else if fs::rename(self.of_inode(inode, "content"), &path).is_err() {
                // Its name was synced, but none of its content.
                fs::write(path, "").unwrap();
            }
        }
    }
}
