//! The classes of a server and the ways to their objects, checked before anything is made.

use std::sync::Arc;

use super::builder::{Quota, Server};
use super::error::ServerError;
use super::routes_file;
use crate::gateway::Routes;
use crate::host::{Class, Object, class_of};
use crate::limits::CLASS_BYTES_MAX;
use crate::metrics::Metrics;
use crate::net::ConnectionsMax;
use crate::outbound::{Outbound, Setup};

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
pub(super) fn bound_classes(
    server: &Server,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Class>, ServerError> {
    let mut classes = server.classes.clone();
    classes.extend(outbound(server, metrics)?);
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
        if classes.iter().all(|class| class.name != binding.class) {
            let class = binding.class;
            let call = match class {
                Outbound::CLASS => ".outbound([…])".to_owned(),
                _ => format!(".class::<{class}>()"),
            };
            let error = format!("add {call}: {from} is bound to {class}");
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

/// The way out, if there is one. The gateway doesn't get it: every client of its port could call
/// servers that trust this one.
///
/// # Errors
/// When an origin is none.
fn outbound(server: &Server, metrics: &Arc<Metrics>) -> Result<Option<Class>, ServerError> {
    let Some(origins) = &server.outbound else { return Ok(None) };
    let limits = server.outbound_limits;
    let most = ConnectionsMax::of(server.hosts).map_err(ServerError::Setting)?;
    let connections = most.outbound(limits.connections);
    let setup = Setup::new(origins, limits, connections, metrics.clone());
    let setup = setup.map_err(ServerError::Setting)?;
    let mut class = class_of::<Outbound>();
    class.woken_at_start = setup.names();
    class.setting = Some(Arc::new(setup));
    class.is_open_to_http = false;
    Ok(Some(class))
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
