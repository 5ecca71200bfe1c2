//! The methods that the operator names in a grant. A grant of a method that isn't there would let
//! nobody do anything, so such names are refused.

use std::rc::Rc;

use capnp::{text_list, traits::HasTypeId};
use capstead_client::sturdyref::{Caveats, Method};
use capstead_client::{Interface, find, list, with_every_objects};

use crate::error::{Result, failed};
use crate::host::state::class::Class;
use crate::host::state::vat::Vat;
use crate::id::{ObjectId, Pool};
use crate::schema::restorer_capnp::namespace;

/// A method as [`Interface::METHODS`] lists it: the id of its interface, its ordinal, and its name.
type NamedMethod = (u64, u16, &'static str);

const OF_OBJECTS: &str = "; methods of its objects are named with --object-method";

/// The names of methods that the operator gave.
pub(in crate::host) struct Words {
    pub(in crate::host) methods: Vec<String>,
    pub(in crate::host) object_methods: Vec<String>,
}

impl Words {
    /// # Errors
    /// When they are no text.
    pub(in crate::host) fn read(
        methods: text_list::Reader<'_>,
        object_methods: text_list::Reader<'_>,
    ) -> Result<Self> {
        let read = |list: text_list::Reader<'_>| {
            list.iter().map(|word| Ok(word?.to_string()?)).collect::<Result<_>>()
        };
        Ok(Self { methods: read(methods)?, object_methods: read(object_methods)? })
    }
}

/// The restrictions that these words are, in a grant of the namespace.
///
/// # Errors
/// When one is a method that isn't there, or none by which an object is reached.
pub(in crate::host) fn of_namespace(vat: &Vat, id: ObjectId, words: &Words) -> Result<Caveats> {
    let mut caveats = Caveats::none();
    if !words.methods.is_empty() {
        let known = with_every_objects(namespace::Client::METHODS);
        let of = MethodsOf { name: "the namespace", known: Some(known), hint: OF_OBJECTS };
        let methods = of.find(&words.methods)?;
        if !methods.iter().any(|method| method.interface == namespace::Client::TYPE_ID) {
            return Err(failed(format!(
                "with these methods nobody could reach an object by the namespace: allow one of {}{OF_OBJECTS}",
                list(namespace::Client::METHODS)
            )));
        }
        caveats = caveats.with_methods(methods)?;
    }
    if !words.object_methods.is_empty() {
        let class = class_of_namespace(vat, id);
        let (name, known) =
            class.map_or(("the class", None), |class| (class.name, Some(class.methods)));
        let of = MethodsOf { name, known: known.map(with_every_objects), hint: "" };
        caveats = caveats.with_object_methods(of.find(&words.object_methods)?)?;
    }
    Ok(caveats)
}

/// The class whose namespace this is, if this program has it.
fn class_of_namespace(vat: &Vat, id: ObjectId) -> Option<&Rc<Class>> {
    vat.objects.classes().find(|class| ObjectId::namespace(Pool::default(), class.name) == id)
}

/// The methods that grants may speak of: those of an object of `class`, or those of the namespace
/// `id` and of its objects.
pub(in crate::host) fn all_of(vat: &Vat, id: ObjectId, class: Option<&str>) -> Vec<NamedMethod> {
    let class = match class {
        Some(name) => vat.objects.class(name).ok(),
        None => class_of_namespace(vat, id).cloned(),
    };
    let methods = class.map_or(&[][..], |class| class.methods);
    with_every_objects(&[methods, namespace::Client::METHODS].concat())
}

/// The restrictions that these words are, in a grant of an object of that class.
///
/// # Errors
/// When one is a method that isn't there.
pub(in crate::host) fn of_object(vat: &Vat, class: &str, words: &Words) -> Result<Caveats> {
    if !words.object_methods.is_empty() {
        return Err(failed(
            "--object-method is for the objects of a namespace: name those of one object with --method",
        ));
    }
    if words.methods.is_empty() {
        return Ok(Caveats::none());
    }
    let known = vat.objects.class(class).ok().map(|class| with_every_objects(class.methods));
    Caveats::none().with_methods(MethodsOf { name: class, known, hint: "" }.find(&words.methods)?)
}

/// The holder of the methods, which is asked for one by its name.
struct MethodsOf<'a> {
    name: &'a str,
    /// None if this program doesn't have the class.
    known: Option<Vec<NamedMethod>>,
    hint: &'a str,
}

impl MethodsOf<'_> {
    fn find(&self, words: &[String]) -> Result<Vec<Method>> {
        words.iter().map(|word| self.find_one(word)).collect()
    }

    fn find_one(&self, word: &str) -> Result<Method> {
        let Self { name, known, hint } = self;
        match (parse_number(word), known) {
            (Some(number), None) => Ok(number),
            (Some(number), Some(known)) => {
                if known.iter().any(|method| Method::new(method.0, method.1) == number) {
                    return Ok(number);
                }
                Err(failed(format!("{name} has no method {word}; it has {}{hint}", list(known))))
            }
            (None, None) => Err(failed(format!(
                "this program doesn't have {name}, and so not the names of its methods: do this while the program \
                 that has it serves, or with that program itself, or name the method {word} by its number, such as \
                 0xdc0f9593bdd2956b:2"
            ))),
            (None, Some(known)) => {
                find(name, known, word).map_err(|error| failed(format!("{}{hint}", error.extra)))
            }
        }
    }
}

/// A method by the id of its interface and its number: `0xdc0f9593bdd2956b:2`.
pub(crate) fn parse_number(word: &str) -> Option<Method> {
    let (interface, ordinal) = word.strip_prefix("0x")?.split_once(':')?;
    Some(Method::new(u64::from_str_radix(interface, 16).ok()?, ordinal.parse().ok()?))
}
