//! A list of all methods of a schema's interfaces, for whoever has to know which there are: generated code
//! can be called, and can't be asked.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use capnp::schema_capnp::{code_generator_request, node};

use crate::Error;

/// A method: the id of its interface, its number, and its name.
type Method = (u64, u16, String);

/// Adds the constant `ALL_METHODS` to the code of each file in `out`.
pub(crate) fn add(
    message: &[u8],
    out: &Path,
    files: &[PathBuf],
    generated: impl Fn(&Path) -> String,
) -> Result<(), Error> {
    let mut options = capnp::message::ReaderOptions::new();
    options.traversal_limit_in_words(None);
    let unread = |cause: capnp::Error| Error::new(format!("can't read the request: {cause}"));
    let message = capnp::serialize::read_message(message, options).map_err(unread)?;
    let request: code_generator_request::Reader<'_> = message.get_root().map_err(unread)?;
    for file in files {
        let path = out.join(generated(file));
        let mut code =
            std::fs::read_to_string(&path).map_err(|cause| Error::at("read", &path, cause))?;
        code.push_str(&constant(&of_file(request, file).map_err(unread)?));
        std::fs::write(&path, code).map_err(|cause| Error::at("write", &path, cause))?;
    }
    Ok(())
}

fn constant(methods: &BTreeSet<Method>) -> String {
    let mut code = "\n/// The methods of all interfaces of this file, those that they inherit among them: the id of the interface,
/// the method's number, and its name.\n#[allow(dead_code)]\npub const ALL_METHODS: &[(u64, u16, &str)] = &["
        .to_owned();
    for (interface, number, name) in methods {
        let _ = write!(code, "({interface:#x}, {number}, {name:?}), ");
    }
    code + "];\n"
}

fn of_file(
    request: code_generator_request::Reader<'_>,
    file: &Path,
) -> capnp::Result<BTreeSet<Method>> {
    let mut methods = BTreeSet::new();
    for requested in request.get_requested_files()? {
        let name = requested.get_filename()?.to_str()?;
        if Path::new(name).file_name() != file.file_name() {
            continue;
        }
        for node in request.get_nodes()? {
            if is_in(request, node, requested.get_id())? {
                add_of(request, node.get_id(), &mut methods)?;
            }
        }
    }
    Ok(methods)
}

fn node_of(
    request: code_generator_request::Reader<'_>,
    id: u64,
) -> capnp::Result<Option<node::Reader<'_>>> {
    Ok(request.get_nodes()?.iter().find(|node| node.get_id() == id))
}

/// Tells whether a node stands in the file, at any depth.
fn is_in(
    request: code_generator_request::Reader<'_>,
    node: node::Reader<'_>,
    file: u64,
) -> capnp::Result<bool> {
    let mut scope = node.get_scope_id();
    while scope != file {
        match node_of(request, scope)? {
            Some(above) => scope = above.get_scope_id(),
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Adds the methods of an interface, and of those that it extends. What is no interface has none.
fn add_of(
    request: code_generator_request::Reader<'_>,
    id: u64,
    methods: &mut BTreeSet<Method>,
) -> capnp::Result<()> {
    let Some(node) = node_of(request, id)? else { return Ok(()) };
    let node::Interface(interface) = node.which()? else { return Ok(()) };
    let display = node.get_display_name()?.to_str()?;
    let name = display.get(node.get_display_name_prefix_length() as usize..).unwrap_or(display);
    for (number, method) in (0..).zip(interface.get_methods()?) {
        methods.insert((id, number, format!("{name}.{}", method.get_name()?.to_str()?)));
    }
    for above in interface.get_superclasses()? {
        add_of(request, above.get_id(), methods)?;
    }
    Ok(())
}
