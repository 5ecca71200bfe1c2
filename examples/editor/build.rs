//! Generates `editor_capnp` from the schema, and takes the page's script in, if that was built.

use std::path::Path;
use std::{env, fs};

/// Made by `page/build`.
const SCRIPT: &str = "page/dist/editor.js";

/// In its place for those who have not run that.
const MISSING: &str = r#"document.getElementById("state").textContent =
  "The script of this page is missing: run examples/editor/page/build, and build the server again.";
"#;

fn main() {
    capstead_build::compile(&["schema/editor.capnp"]);
    // The folder is always there, and the script isn't: a file that is missing would count as
    // changed.
    println!("cargo:rerun-if-changed=page/dist");
    let script = fs::read(SCRIPT).unwrap_or_else(|_| MISSING.into());
    let folder = env::var_os("OUT_DIR").expect("Cargo says where");
    fs::write(Path::new(&folder).join("editor.js"), script).expect("it can be written");
}
