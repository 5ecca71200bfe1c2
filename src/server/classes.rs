//! The classes of a server and the ways to their objects, checked before anything is made.

use super::builder::{Quota, Server};
use super::error::ServerError;
use super::routes_file;
use crate::gateway::Routes;
use crate::host::Class;
use crate::limits::CLASS_BYTES_MAX;

/// Names are part of every object's header and of paths, so they are checked.
fn check_name(name: &str) -> Result<(), ServerError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=CLASS_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(ServerError::Classes(format!(
        "the class name {name:?} is refused: use 1 to {CLASS_BYTES_MAX} letters, digits, _ and -"
    )))
}

/// The classes with their bindings and quotas.
///
/// # Errors
/// When they contradict each other.
pub(super) fn bound_classes(server: &Server) -> Result<Vec<Class>, ServerError> {
    let mut classes = server.classes.clone();
    for (at, class) in classes.iter().enumerate() {
        check_name(class.name)?;
        let same = |other: &Class| other.name.eq_ignore_ascii_case(class.name);
        if let Some(other) = classes[..at].iter().find(|other| same(other)) {
            let names = format!("{} and {}", other.name, class.name);
            let error = format!("the classes {names} can't be told apart in paths of HTTP");
            return Err(ServerError::Classes(error));
        }
    }
    for (from, binding) in &server.bindings {
        let has = |name| move |class: &&mut Class| class.name == name;
        if server.classes.iter().all(|class| class.name != binding.class) {
            let error = format!("add .class::<{0}>(): {from} is bound to it", binding.class);
            return Err(ServerError::Classes(error));
        }
        let Some(class) = classes.iter_mut().find(has(*from)) else {
            let error = format!("add .class::<{from}>(): a binding of it was given");
            return Err(ServerError::Classes(error));
        };
        if class.bindings.iter().any(|bound| bound.name == binding.name) {
            let error = format!("class {from} has two bindings named {:?}", binding.name);
            return Err(ServerError::Classes(error));
        }
        class.bindings.push(binding.clone());
    }
    for (name, quota) in &server.quotas {
        let Some(class) = classes.iter_mut().find(|class| class.name == name) else {
            let error = format!("there is a quota for {name}, and no class of that name");
            return Err(ServerError::Setting(error));
        };
        match *quota {
            Quota::Object(bytes) => class.object_limit = bytes,
            Quota::Class(bytes) => class.total_limit = Some(bytes),
        }
    }
    Ok(classes)
}

/// The table of routes.
///
/// # Errors
/// When one is no route, or the file of them can't be used.
pub(super) fn routes(server: &Server) -> Result<Routes, ServerError> {
    if let Some(path) = &server.routes_file {
        let classes: Vec<_> = server.classes.iter().map(|class| class.name).collect();
        return routes_file::read(path, &classes);
    }
    let rows = server.routes.iter().cloned().collect::<Result<_, _>>();
    Ok(Routes::new(rows.map_err(ServerError::Setting)?, &server.only_by_routes))
}
