//! A directory for the data of one run. It is removed with its content when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};

use capstead::{Result, failed};

/// The number of names that are tried: earlier runs that were killed may have left some.
const NAMES_MAX: u32 = 1000;

/// A directory of our own below the system's temporary one.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes the directory under an unused name.
    ///
    /// # Errors
    /// When it can't be made.
    pub(crate) fn new() -> Result<Self> {
        let process = std::process::id();
        for number in 0..NAMES_MAX {
            let path = std::env::temp_dir().join(format!("capstead-bench-{process}-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(format!("{}: {error}", path.display()))),
            }
        }
        Err(failed("the temporary directory is full of old benchmarks"))
    }

    /// A path in it; the caller makes the file or directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A directory in it.
    ///
    /// # Errors
    /// When it can't be made, or is there already.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        Ok(path)
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Files that can't be removed stay in the temporary directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_its_own_and_is_gone_afterwards() {
        let (one, two) = (Scratch::new().unwrap(), Scratch::new().unwrap());
        assert_ne!(one.as_ref(), two.as_ref());
        fs::write(one.directory("d").unwrap().join("f"), "x").unwrap();
        assert!(one.directory("d").is_err());
        let path = one.as_ref().to_owned();
        drop(one);
        assert!(!path.exists());
    }
}
