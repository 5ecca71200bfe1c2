//! The methods that the operator may name in a grant: a grant of one that isn't there lets nobody do anything.

use capstead_client::sturdyref::{Caveats, Method};

use crate::error::{Result, failed};
use crate::host::engine::vat::Vat;
use crate::id::{ObjectId, Pool};
use crate::schema::facet_capnp;
use crate::schema::restorer_capnp::{self, namespace};
use capnp::traits::HasTypeId;

/// A method as `ALL_METHODS` has it: the id of its interface, its number, and its name.
type NamedMethod = (u64, u16, &'static str);

/// Checks that a grant of the namespace would be of some use.
///
/// # Errors
/// When it names a method that isn't there, or none by which an object is reached.
pub(in crate::host) fn check_namespace(vat: &Vat, id: ObjectId, caveats: &Caveats) -> Result<()> {
    let of_restorer = restorer_capnp::ALL_METHODS.iter();
    let own: Vec<NamedMethod> =
        of_restorer.filter(|method| method.0 == namespace::Client::TYPE_ID).copied().collect();
    if let Some(named) = caveats.methods() {
        let hint = "; methods of its objects are named with --object-method";
        check("the namespace", named.iter(), &own, hint)?;
        if !own.iter().any(|method| named.contains(Method::new(method.0, method.1))) {
            return Err(failed(format!(
                "with these methods nobody could reach an object by the namespace: allow one of {}{hint}",
                said(&own)
            )));
        }
    }
    let class = vat.classes().find(|class| ObjectId::namespace(Pool::default(), class.name) == id);
    let (Some(class), Some(named)) = (class, caveats.object_methods()) else { return Ok(()) };
    check_class(class.name, class.methods, named.iter())
}

/// Checks that a grant of an object of that class would be of some use.
///
/// # Errors
/// When it names a method that isn't there.
pub(in crate::host) fn check_object(vat: &Vat, class: &str, caveats: &Caveats) -> Result<()> {
    if caveats.object_methods().is_some() {
        return Err(failed(
            "--object-method is for the objects of a namespace: name those of one object with --method",
        ));
    }
    // Tools that don't have the class know nothing of it.
    let (Ok(class), Some(named)) = (vat.class(class), caveats.methods()) else { return Ok(()) };
    check_class(class.name, class.methods, named.iter())
}

fn check_class(
    class: &str,
    methods: &[NamedMethod],
    named: impl Iterator<Item = Method>,
) -> Result<()> {
    if methods.is_empty() { Ok(()) } else { check(class, named, methods, "") }
}

/// Every target answers the methods of the schema of facets, too.
fn check(
    of: &str,
    mut named: impl Iterator<Item = Method>,
    own: &[NamedMethod],
    hint: &str,
) -> Result<()> {
    let all: Vec<NamedMethod> = own.iter().chain(facet_capnp::ALL_METHODS).copied().collect();
    let is_there = |named: &Method| all.iter().any(|&(id, of, _)| *named == Method::new(id, of));
    let Some(Method { interface, ordinal }) = named.find(|method| !is_there(method)) else {
        return Ok(());
    };
    Err(failed(format!("{of} has no method {interface:#x}:{ordinal}; it has {}{hint}", said(&all))))
}

fn said(methods: &[NamedMethod]) -> String {
    let said =
        methods.iter().map(|(interface, number, name)| format!("{name} {interface:#x}:{number}"));
    said.collect::<Vec<_>>().join(", ")
}
