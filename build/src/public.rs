//! The public schemas of Capstead, embedded so that a user's schema can import them.
//!
//! They are written to a folder for the tool. Their Rust code is never generated here, because the
//! crate `capstead_client` has it.

use crate::Error;
use std::path::{Path, PathBuf};

const PUBLIC: [(&str, &str); 4] = [
    ("facet.capnp", include_str!("../../schema/facet.capnp")),
    ("http.capnp", include_str!("../../schema/http.capnp")),
    ("restorer.capnp", include_str!("../../schema/restorer.capnp")),
    ("sturdyref.capnp", include_str!("../../schema/sturdyref.capnp")),
];

/// The schema that defines `-> stream`. Some packages of the tool don't include it.
const STREAM: &str = "@0x86c366a91393f3f8;\nstruct StreamResult @0x995f9a3377c0b16e {}\n";

/// Writes the schemas below `folder`; returns the folder to be searched for absolute imports.
pub(crate) fn write_below(folder: &Path) -> Result<PathBuf, Error> {
    let import = folder.join("import");
    for (name, text) in PUBLIC {
        write_file(&import.join("capstead"), name, text)?;
    }
    write_file(&import.join("capnp"), "stream.capnp", STREAM)?;
    Ok(import)
}

fn write_file(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|cause| Error::at("create", folder, cause))?;
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(|cause| Error::at("write", &path, cause))
}

/// The ids of the files whose code is in the crate `capstead_client`.
pub(crate) fn ids() -> impl Iterator<Item = u64> {
    PUBLIC.iter().map(|(name, text)| {
        file_id(text).unwrap_or_else(|| panic!("the embedded schema {name} has no file id"))
    })
}

/// A file id stands at the start of a line: `@0xb665280aaff2e632;`.
fn file_id(text: &str) -> Option<u64> {
    let digits = text.lines().find_map(|line| line.strip_prefix("@0x")?.strip_suffix(';'))?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_public_schema_has_a_file_id_of_its_own() {
        let mut ids: Vec<u64> = super::ids().collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), super::PUBLIC.len());
        assert!(ids.iter().all(|id| id >> 63 == 1));
    }
}
