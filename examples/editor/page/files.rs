//! Makes the files that a server of documents has inside, for its build script.
//!
//! The page's script is made of packages by others, by `build` beside this file. Without it
//! browsers load the same files of the same versions from a public server, by the import map: it
//! has the hash of each, so that they are those files or none.

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};

/// The line of the page in whose place the import map stands.
const MAP_LINE: &str = "<!-- import map -->\n";

/// The page, its script, and the policy of both.
pub(crate) struct Files {
    /// The page.
    pub(crate) html: String,
    /// Its script.
    pub(crate) script: String,
    /// The value of `Content-Security-Policy`.
    pub(crate) policy: String,
}

/// Writes the files of the folder `page` to where Cargo wants what a build script makes.
pub(crate) fn write(page: &str) {
    // The folder of the script is always there, and the script isn't: a file that is missing would
    // count as changed.
    #[allow(clippy::print_stdout, reason = "a build script speaks to Cargo so; tests include this")]
    for watched in ["dist", "page.html", "editor.js", "import-map.json"] {
        println!("cargo:rerun-if-changed={page}/{watched}");
    }
    let read = |name: &str| {
        let path = Path::new(page).join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let built = Path::new(page).join("dist/editor.js").exists().then(|| read("dist/editor.js"));
    let files = made(&read("page.html"), built, &read("editor.js"), &read("import-map.json"));
    let folder = env::var_os("OUT_DIR").expect("Cargo says where");
    for (name, text) in
        [("editor.html", files.html), ("editor.js", files.script), ("editor.policy", files.policy)]
    {
        fs::write(Path::new(&folder).join(name), text).expect("it can be written");
    }
}

/// The files with the script that was built, or with its source and the import map.
pub(crate) fn made(page: &str, built: Option<String>, source: &str, map: &str) -> Files {
    assert!(page.contains(MAP_LINE), "the page has a place for the import map");
    if let Some(script) = built {
        return Files { html: page.replace(MAP_LINE, ""), script, policy: policy("") };
    }
    let element = format!("<script type=\"importmap\">\n{map}</script>\n");
    let (html, script) = (page.replace(MAP_LINE, &element), source.to_owned());
    Files { html, script, policy: policy(&packages(map)) }
}

/// CodeMirror makes style sheets of its own, and the page has a few lines of script.
fn policy(packages: &str) -> String {
    format!(
        "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; \
         script-src 'self' 'unsafe-inline'{packages}; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

/// The addresses of the packages in an import map: those of a version each, and nothing else of the
/// server.
fn packages(map: &str) -> String {
    let urls = map.split('"').filter(|text| text.starts_with("https://"));
    let package = |url: &str| {
        let version = url.rfind('@')?;
        Some(url[..=version + url[version..].find('/')?].to_owned())
    };
    let packages: BTreeSet<String> = urls.filter_map(package).collect();
    packages.iter().fold(String::new(), |all, package| all + " " + package)
}
