//! Generates Rust code from Cap'n Proto schemas in a build script, mostly without the `capnp` tool.
//!
//! Next to the first schema, `schema/NAME.capnp`, lies `schema/NAME.request`: the tool's output for
//! the schemas, and a hash of their texts. It is committed, so only developers who change a schema
//! need the tool. This crate never downloads a tool, and never uses a request made from other
//! texts.
//!
//! ```no_run
//! // in `main` of build.rs
//! capstead_build::compile(&["schema/counter.capnp"]);
//! ```
//!
//! ```text
//! // in lib.rs
//! capnp::generated_code!(mod counter_capnp);
//! ```
//!
//! In addition to `capnpc`'s code, each client implements `capstead_client::Interface`: by it,
//! grants name methods as the schema does, and the server answers JSON. So a crate with generated
//! code depends on `capnp` and on `capstead-client`.
//!
//! A schema may `import "/capstead/facet.capnp"`, `"/capstead/http.capnp"`,
//! `"/capstead/restorer.capnp"` and `"/capstead/sturdyref.capnp"`; the crate `capstead_client` has
//! their code. Every other imported schema must be among the files of the same call.

mod interfaces;
mod public;
mod request;
mod tool;

use std::fmt;
use std::path::{Path, PathBuf};

/// Generates code for `files` into `OUT_DIR`: `schema/counter.capnp` becomes `counter_capnp.rs`.
///
/// Paths are relative to the package. All files are in one folder, which is left out of the names
/// of the generated files. This is meant for build scripts: on an error it prints one sentence and
/// exits with status 1.
pub fn compile(files: &[&str]) {
    Schemas::new(files).compile();
}

/// Checks whether the committed request still matches `files`.
///
/// This is meant for a test. The code is generated twice, from the committed request and from a new
/// one made by the installed tool, and compared as Rust code, because the bytes of requests differ
/// between versions of the tool.
///
/// # Errors
/// A file can't be read, the tool refuses a schema, or the committed request can't be understood.
pub fn check(files: &[&str]) -> Result<Freshness, Error> {
    Schemas::new(files).check()
}

/// The state of a committed request, as found by [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The committed request belongs to the schemas, and the installed tool agrees.
    Current,
    /// The committed request belongs to the schemas; no `capnp` tool is there to confirm its
    /// content.
    Unconfirmed,
    /// The committed request is missing, belongs to other texts, or gives other code.
    Stale,
}

/// Schemas that are compiled together, with the one option that [`compile`] doesn't have.
#[derive(Clone, Debug)]
pub struct Schemas {
    files: Vec<PathBuf>,
    request: PathBuf,
}

impl Schemas {
    /// Schemas in `files`, with the request next to the first of them.
    ///
    /// # Panics
    /// If `files` is empty.
    pub fn new(files: &[&str]) -> Self {
        assert!(!files.is_empty(), "there must be a schema to compile");
        let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
        Self { request: files[0].with_extension("request"), files }
    }

    /// Keeps the request at `path` instead.
    #[must_use]
    pub fn request(mut self, path: impl Into<PathBuf>) -> Self {
        self.request = path.into();
        self
    }

    /// Does what [`compile`] does.
    #[expect(clippy::print_stdout, reason = "a build script speaks to cargo by its output")]
    pub fn compile(&self) {
        for path in self.files.iter().chain([&self.request]) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        if let Err(error) = self.generate_into_out_dir() {
            println!("cargo::error={error}");
            std::process::exit(1);
        }
    }

    /// Does what the free function [`check`] does.
    ///
    /// # Errors
    /// As for that.
    pub fn check(&self) -> Result<Freshness, Error> {
        let Some(committed) = request::read(&self.request)? else { return Ok(Freshness::Stale) };
        if !committed.belongs_to(&request::hash(&self.files)?) {
            return Ok(Freshness::Stale);
        }
        if !tool::is_installed() {
            return Ok(Freshness::Unconfirmed);
        }
        let scratch = Scratch::new()?;
        let fresh = tool::compile(&self.files, &scratch.0)?;
        let old = tool::generate(committed.message(), &scratch.0.join("old"), &self.files)?;
        let new = tool::generate(&fresh, &scratch.0.join("new"), &self.files)?;
        Ok(if old == new { Freshness::Current } else { Freshness::Stale })
    }

    fn generate_into_out_dir(&self) -> Result<(), Error> {
        let out = std::env::var_os("OUT_DIR")
            .ok_or_else(|| Error::new("OUT_DIR isn't set: this must run in a build script"))?;
        let out = Path::new(&out);
        let hash = request::hash(&self.files)?;
        let committed = request::read(&self.request)?.filter(|request| request.belongs_to(&hash));
        let message = match committed {
            Some(request) => request.into_message(),
            None => self.renew(&hash, out)?,
        };
        tool::generate(&message, out, &self.files).map(drop)
    }

    /// Makes the request again with the tool, and leaves it next to the schema to be committed.
    fn renew(&self, hash: &request::Hash, scratch: &Path) -> Result<Vec<u8>, Error> {
        if !tool::is_installed() {
            return Err(Error::new(format!(
                "{} changed after {} was made; install the capnp tool to build it \
                 (Debian and Ubuntu: apt install capnproto; macOS: brew install capnp)",
                self.names(),
                self.request.display(),
            )));
        }
        let message = tool::compile(&self.files, scratch)?;
        request::write(&self.request, &message, hash)?;
        Ok(message)
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.files.iter().map(|file| file.display().to_string()).collect();
        names.join(" or ")
    }
}

/// The reason why no code could be generated: one sentence for the developer who runs the build.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }

    fn at(doing: &str, path: &Path, cause: impl fmt::Display) -> Self {
        Self(format!("can't {doing} {}: {cause}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A folder of its own for one check; dropping it removes the folder.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Error> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("capstead-build-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).map_err(|cause| Error::at("create", &path, cause))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failure does no harm: the leftovers are in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
