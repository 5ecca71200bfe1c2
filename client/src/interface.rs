//! The names of methods, which grants and restrictions use.

use crate::facet_capnp::{facet, persistent};
use capnp::Error;

/// A method by its numbers in the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method {
    /// The id of the interface that declares it.
    pub interface: u64,
    /// Its number in that interface, as in `read @2`.
    pub ordinal: u16,
}

impl Method {
    /// The method with this ordinal in the interface with this id.
    #[must_use]
    pub const fn new(interface: u64, ordinal: u16) -> Self {
        Self { interface, ordinal }
    }
}

/// A method: the id of its interface, its ordinal, and its name.
type Named = (u64, u16, &'static str);

/// An interface whose methods have names.
///
/// `capstead_build::compile` implements it for every client that it generates.
#[diagnostic::on_unimplemented(
    message = "the names of the methods of `{Self}` aren't known",
    note = "generate the code of its schema with `capstead_build::compile` in build.rs"
)]
pub trait Interface {
    /// The interface's own name.
    const NAME: &'static str;
    /// Its methods, including inherited ones: each with the id of its interface, its ordinal, and a
    /// name such as `Counter.read`.
    const METHODS: &'static [Named];
    /// The interface's id.
    const ID: u64;
    /// Its schema, with all that it speaks of: the `CodeGeneratorRequest` of the tool `capnp`, by
    /// which programs call methods that they have no code for.
    const SCHEMA: &'static [u8];
}

/// The methods with these names in the interface `C` or in those that every object answers.
///
/// # Errors
/// As for [`find`].
pub(crate) fn named<'a, C: Interface>(
    names: impl IntoIterator<Item = &'a str>,
) -> crate::Result<Vec<Method>> {
    let known = with_every_objects(C::METHODS);
    names.into_iter().map(|name| find(C::NAME, &known, name)).collect()
}

/// These methods, and those that every object and namespace answers besides.
pub fn with_every_objects(methods: &[Named]) -> Vec<Named> {
    let of_all = facet::Client::METHODS.iter().chain(persistent::Client::METHODS);
    // An interface that extends one of these already lists its methods.
    let others = of_all.filter(|method| !methods.contains(method));
    methods.iter().chain(others).copied().collect()
}

/// The method with the name `Counter.read`, or `read` where only one method has that name. The
/// error names `of` as the owner of the methods.
///
/// # Errors
/// There is no such method, or more than one; the error lists the methods that exist.
pub fn find(of: &str, known: &[Named], name: &str) -> crate::Result<Method> {
    let is_called = |whole: &str| {
        let last = whole.rsplit_once('.').map_or(whole, |(_, last)| last);
        whole == name || last == name
    };
    let mut found = known.iter().filter(|method| is_called(method.2));
    match (found.next(), found.next()) {
        (Some(&(interface, ordinal, _)), None) => Ok(Method::new(interface, ordinal)),
        (Some(one), Some(other)) => {
            let found = [one, other].into_iter().chain(found);
            let found = found.map(|(id, number, name)| format!("{name} ({id:#x}:{number})"));
            Err(Error::failed(format!(
                "{of} has more than one method {name}: name one of {} with its interface, or by the number if \
                 that is the same",
                found.collect::<Vec<_>>().join(", ")
            )))
        }
        (None, _) => {
            Err(Error::failed(format!("{of} has no method {name}; it has {}", list(known))))
        }
    }
}

/// The names of the methods, for an error.
pub fn list(methods: &[Named]) -> String {
    methods.iter().map(|method| method.2).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restorer_capnp::namespace;

    #[test]
    fn a_method_is_found_by_its_name_with_or_without_the_interface() {
        let all = named::<namespace::Client>(["byName", "Namespace.create", "save"]).unwrap();
        let id = namespace::Client::METHODS[0].0;
        assert_eq!(
            all,
            [(id, 0), (id, 2), (persistent::Client::METHODS[0].0, 0)]
                .map(|(id, n)| Method::new(id, n))
        );
    }

    #[test]
    fn a_name_that_is_not_there_gets_those_that_are() {
        let said = named::<namespace::Client>(["byname"]).unwrap_err().extra;
        assert!(
            said.starts_with("Namespace has no method byname; it has Namespace.byName, "),
            "{said}"
        );
        assert!(said.contains("Facet.revoke"), "{said}");
    }

    #[test]
    fn a_name_of_several_methods_is_refused_with_all_of_them() {
        let known = [(7, 0, "Product.info"), (8, 3, "Shop.info"), (9, 1, "Product.info")];
        assert_eq!(find("X", &known, "Shop.info").unwrap(), Method::new(8, 3));
        let said = find("X", &known, "info").unwrap_err().extra;
        for method in ["Product.info (0x7:0)", "Shop.info (0x8:3)", "Product.info (0x9:1)"] {
            assert!(said.contains(method), "{said}");
        }
        assert!(find("X", &known, "Product.info").unwrap_err().extra.contains("(0x9:1)"));
    }

    #[test]
    fn an_interface_that_extends_what_every_object_answers_has_each_method_once() {
        let all = with_every_objects(facet::Client::METHODS);
        assert_eq!(all.len(), facet::Client::METHODS.len() + persistent::Client::METHODS.len());
    }
}
