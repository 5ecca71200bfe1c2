//! Gives each generated client the names of its methods and its schema, which generated code can't
//! tell.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use capnp::schema_capnp::node;
use capnpc::codegen::GeneratorContext;

use crate::Error;

/// A method: the id of its interface, its number, and its name.
type Method = (u64, u16, String);

/// Implements the trait `Interface` in the code of each file in `out`, and leaves the schema beside
/// that.
pub(crate) fn add(
    message: &[u8],
    out: &Path,
    files: &[PathBuf],
    generated: impl Fn(&Path) -> String,
) -> Result<(), Error> {
    let mut options = capnp::message::ReaderOptions::new();
    options.traversal_limit_in_words(None);
    let unread = |cause: capnp::Error| Error::new(format!("can't read the request: {cause}"));
    let request = message;
    let message = capnp::serialize::read_message(message, options).map_err(unread)?;
    let schemas = GeneratorContext::new(&message).map_err(unread)?;
    for file in files {
        let path = out.join(generated(file));
        let mut code =
            std::fs::read_to_string(&path).map_err(|cause| Error::at("read", &path, cause))?;
        let schema = path.with_extension("schema");
        let schema_name = schema.file_name().unwrap_or_default().to_string_lossy();
        code.push_str(&of_file(&schemas, file, &schema_name).map_err(unread)?);
        std::fs::write(&path, code).map_err(|cause| Error::at("write", &path, cause))?;
        std::fs::write(&schema, request).map_err(|cause| Error::at("write", &schema, cause))?;
    }
    Ok(())
}

fn of_file(schemas: &GeneratorContext<'_>, file: &Path, schema: &str) -> capnp::Result<String> {
    let mut code = String::new();
    for requested in schemas.request.get_requested_files()? {
        let name = requested.get_filename()?.to_str()?;
        if Path::new(name).file_name() != file.file_name() {
            continue;
        }
        for node in schemas.request.get_nodes()? {
            let is_interface = matches!(node.which()?, node::Interface(_));
            if is_interface && is_in(schemas, node, requested.get_id()) {
                code.push_str(&implementation(schemas, requested.get_id(), node, schema)?);
            }
        }
    }
    Ok(code)
}

/// Tells whether a node is in the file, at any depth.
fn is_in(schemas: &GeneratorContext<'_>, node: node::Reader<'_>, file: u64) -> bool {
    let mut scope = node.get_scope_id();
    while scope != file {
        match schemas.node_map.get(&scope) {
            Some(above) => scope = above.get_scope_id(),
            None => return false,
        }
    }
    true
}

fn implementation(
    schemas: &GeneratorContext<'_>,
    file: u64,
    node: node::Reader<'_>,
    schema: &str,
) -> capnp::Result<String> {
    let mut methods = Vec::new();
    add_of(schemas, node.get_id(), &mut methods)?;
    let mut listed = String::new();
    for (interface, number, name) in methods {
        let _ = write!(listed, "({interface:#x}, {number}, {name:?}), ");
    }
    // The code is included in a module of any name, so paths begin after the file's own scope.
    let module = schemas.scope_map[&node.get_id()][schemas.scope_map[&file].len()..].join("::");
    let (generics, bounds) = generics(schemas, node)?;
    let name = last_name(node)?;
    Ok(format!(
        "\nimpl{generics} ::capstead_client::Interface for {module}::Client{generics}{bounds} {{\n  \
         const NAME: &'static str = {name:?};\n  \
         const METHODS: &'static [(u64, u16, &'static str)] = &[{listed}];\n  \
         const ID: u64 = {:#x};\n  const SCHEMA: &'static [u8] = include_bytes!({schema:?});\n}}\n",
        node.get_id()
    ))
}

/// The parameters of a generic interface, starting with those of the interfaces around it.
fn generics(
    schemas: &GeneratorContext<'_>,
    node: node::Reader<'_>,
) -> capnp::Result<(String, String)> {
    let (mut names, mut at) = (Vec::new(), Some(node));
    while let Some(node) = at {
        for parameter in node.get_parameters()?.iter().rev() {
            names.insert(0, parameter.get_name()?.to_str()?);
        }
        at = schemas.node_map.get(&node.get_scope_id()).copied();
    }
    if names.is_empty() {
        return Ok((String::new(), String::new()));
    }
    let bounds = names.iter().map(|name| format!("{name}: ::capnp::traits::Owned"));
    let bounds = bounds.collect::<Vec<_>>().join(", ");
    Ok((format!("<{}>", names.join(", ")), format!(" where {bounds}")))
}

/// Adds the methods of an interface, and then of those that it extends, each interface once.
fn add_of(schemas: &GeneratorContext<'_>, id: u64, methods: &mut Vec<Method>) -> capnp::Result<()> {
    let Some(&node) = schemas.node_map.get(&id) else { return Ok(()) };
    let node::Interface(interface) = node.which()? else { return Ok(()) };
    let name = last_name(node)?;
    for (number, method) in (0..).zip(interface.get_methods()?) {
        let method = (id, number, format!("{name}.{}", method.get_name()?.to_str()?));
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    for above in interface.get_superclasses()? {
        add_of(schemas, above.get_id(), methods)?;
    }
    Ok(())
}

/// The name of an interface without the names of those around it.
fn last_name(node: node::Reader<'_>) -> capnp::Result<&str> {
    let whole = node.get_display_name()?.to_str()?;
    Ok(whole.get(node.get_display_name_prefix_length() as usize..).unwrap_or(whole))
}
