//! The structs, enums, interfaces and methods of a schema.
//!
//! Invariant: each field of a struct lies within it, and each group within the struct around it.
//! The builders of `capnp` rely on that and don't check it.

use std::borrow::Cow;

use capnp::private::layout::StructSize;
use capnp::schema_capnp::{code_generator_request, field, node, value};
use rustc_hash::{FxHashMap, FxHashSet};

use super::error::Unfit;
use super::raw::Root;
use super::types::{Brand, Type};

/// The times that all of a schema may be read, on the average: one of the `capnp` tool takes three.
const READ_TIMES_MAX: usize = 8;

/// All that is known of a class, and of the types that its interface speaks of.
#[derive(Debug, Default)]
pub(crate) struct Table {
    structs: FxHashMap<u64, StructLayout>,
    enums: FxHashMap<u64, Enum>,
    interfaces: FxHashMap<u64, Interface>,
}

/// A struct, or a group of one.
#[derive(Debug)]
pub(super) struct StructLayout {
    /// Such as `Every.Inner`.
    pub(super) name: String,
    pub(super) about: String,
    pub(super) size: StructSize,
    is_group: bool,
    /// The place of the number of the union's member that is set; none without a union.
    pub(super) discriminant: Option<u32>,
    pub(super) fields: Vec<Field>,
    by_name: FxHashMap<String, usize>,
}

/// A field of a struct.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) place: FieldPlace,
    /// Its number in the union of the struct, if it is of that.
    pub(super) member: Option<u16>,
}

#[derive(Debug)]
pub(super) enum FieldPlace {
    Slot(FieldSlot),
    Group(u64),
}

#[derive(Debug)]
pub(super) struct FieldSlot {
    pub(super) offset: u32,
    of: Type,
    is_open: bool,
    /// The default of what isn't a pointer.
    pub(super) bits: u64,
    /// The JSON of a pointer's default, if it has one.
    pub(super) default: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Enum {
    pub(super) about: String,
    pub(super) names: Vec<String>,
}

#[derive(Debug)]
struct Interface {
    /// With those around it, such as `Outer.Inner`.
    whole_name: String,
    about: String,
    methods: Vec<MethodShape>,
    extends: Vec<(u64, Brand)>,
}

/// A struct with the arguments of its parameters.
#[derive(Clone, Debug)]
pub(crate) struct StructType {
    pub(super) id: u64,
    pub(super) brand: Brand,
}

/// A method of an interface.
#[derive(Clone, Debug)]
pub(crate) struct MethodShape {
    /// The id of the interface that has it.
    pub(crate) interface: u64,
    pub(crate) number: u16,
    /// Such as `Counter.read`; with more of the interface's name, or its id, if that is another
    /// method's name too.
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) params: StructType,
    pub(crate) results: StructType,
}

impl MethodShape {
    /// The name without that of the interface.
    pub(crate) fn short_name(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(_, name)| name)
    }
}

impl FieldSlot {
    /// The type of the field in a struct with these arguments.
    pub(super) fn of(&self, brand: &Brand) -> Cow<'_, Type> {
        if self.is_open { Cow::Owned(self.of.within(brand)) } else { Cow::Borrowed(&self.of) }
    }
}

impl Field {
    /// True of a pointer that leads nowhere, not even to a default.
    pub(super) fn is_unset(&self, data: &capnp::private::layout::StructReader<'_>) -> bool {
        match &self.place {
            FieldPlace::Slot(slot) if slot.of.bits().is_none() => {
                slot.default.is_none() && data.is_pointer_field_null(slot.offset as usize)
            }
            _ => false,
        }
    }
}

impl StructLayout {
    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).map(|&at| &self.fields[at])
    }

    /// The error for a key that is no field.
    pub(super) fn unknown(&self, key: &str) -> Unfit {
        let names: Vec<_> = self.fields.iter().map(|field| field.name.as_str()).collect();
        if names.is_empty() {
            return Unfit::new(format!("there is no field {key:?}, nor any other"));
        }
        Unfit::new(format!("there is no field {key:?}; there are {}", names.join(", ")))
    }
}

/// The comments on a node and on its parts, in their order.
type About = FxHashMap<u64, (String, Vec<String>)>;

impl Table {
    /// Reads a request of the `capnp` tool to code generators, as `capstead_build` embeds them.
    ///
    /// # Errors
    /// When it is none, or contradicts itself.
    pub(crate) fn new(request: &[u8]) -> Result<Self, Unfit> {
        let mut options = capnp::message::ReaderOptions::new();
        // Else a few bytes would be lists of millions of parts that have none.
        options.traversal_limit_in_words(Some(READ_TIMES_MAX * request.len().div_ceil(8)));
        let message = capnp::serialize::read_message(request, options)?;
        let request = message.get_root::<code_generator_request::Reader<'_>>()?;
        let mut about = About::default();
        for info in request.get_source_info()? {
            let members = info.get_members()?.iter();
            let members = members.map(|member| Ok(text(member.get_doc_comment()?)?.trim().into()));
            let members = members.collect::<capnp::Result<_>>()?;
            about.insert(info.get_id(), (text(info.get_doc_comment()?)?.trim().into(), members));
        }
        let mut table = Self::default();
        for node in request.get_nodes()? {
            table.add(node, about.remove(&node.get_id()).unwrap_or_default())?;
        }
        table.check()?;
        for node in request.get_nodes()? {
            table.add_defaults(node)?;
        }
        Ok(table)
    }

    fn add(
        &mut self,
        node: node::Reader<'_>,
        (about, members): (String, Vec<String>),
    ) -> Result<(), Unfit> {
        let id = node.get_id();
        let mut members = members.into_iter().chain(std::iter::repeat_with(String::new));
        match node.which()? {
            node::Which::Struct(of) => {
                let fields = of.get_fields()?.iter().zip(members);
                let fields = fields.map(|(field, about)| Field::of(field, about));
                let fields = fields.collect::<Result<Vec<_>, Unfit>>()?;
                let names = fields.iter().enumerate();
                let by_name = names.map(|(at, field)| (field.name.clone(), at)).collect();
                let (data, pointers) = (of.get_data_word_count(), of.get_pointer_count());
                let discriminant =
                    (of.get_discriminant_count() > 0).then(|| of.get_discriminant_offset());
                let (name, size) = (whole_name(node)?, StructSize { data, pointers });
                let is_group = of.get_is_group();
                let of =
                    StructLayout { name, about, size, is_group, discriminant, fields, by_name };
                self.structs.insert(id, of);
            }
            node::Which::Enum(of) => {
                let names = of.get_enumerants()?.iter();
                let names = names.map(|enumerant| Ok(text(enumerant.get_name()?)?.to_owned()));
                let names = names.collect::<capnp::Result<_>>()?;
                self.enums.insert(id, Enum { about, names });
            }
            node::Which::Interface(of) => {
                let whole_name = whole_name(node)?;
                let last = last_name(&whole_name);
                let mut methods = Vec::new();
                for (number, method) in of.get_methods()?.iter().enumerate() {
                    let number = number.try_into();
                    let number = number.map_err(|_| Unfit::new("it has too many methods"))?;
                    methods.push(MethodShape {
                        interface: id,
                        number,
                        name: format!("{last}.{}", text(method.get_name()?)?),
                        about: members.next().unwrap_or_default(),
                        params: StructType {
                            id: method.get_param_struct_type(),
                            brand: Brand::of(method.get_param_brand()?)?,
                        },
                        results: StructType {
                            id: method.get_result_struct_type(),
                            brand: Brand::of(method.get_result_brand()?)?,
                        },
                    });
                }
                let extends = of.get_superclasses()?.iter();
                let extends =
                    extends.map(|above| Ok((above.get_id(), Brand::of(above.get_brand()?)?)));
                let extends = extends.collect::<capnp::Result<_>>()?;
                self.interfaces.insert(id, Interface { whole_name, about, methods, extends });
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that nothing lies outside of the struct that has it.
    fn check(&self) -> Result<(), Unfit> {
        for of in self.structs.values() {
            let bits = u64::from(of.size.data) * 64;
            let is_within = |offset: u32, width: u32| {
                (u64::from(offset) + 1) * u64::from(width) <= bits || width == 0
            };
            let fits = |field: &Field| match &field.place {
                FieldPlace::Slot(slot) => match slot.of.bits() {
                    Some(width) => is_within(slot.offset, width),
                    None => slot.offset < u32::from(of.size.pointers),
                },
                FieldPlace::Group(id) => self.structs.get(id).is_some_and(|group| {
                    group.is_group
                        && group.size.data <= of.size.data
                        && group.size.pointers <= of.size.pointers
                }),
            };
            let wrong = of.fields.iter().find(|field| !fits(field)).map(|field| &field.name);
            if wrong.is_some() || !of.discriminant.is_none_or(|at| is_within(at, 16)) {
                let what = wrong.map_or("union", String::as_str);
                return Err(Unfit::new(format!("in the schema, {what} is outside of {}", of.name)));
            }
        }
        Ok(())
    }

    fn add_defaults(&mut self, node: node::Reader<'_>) -> Result<(), Unfit> {
        let node::Which::Struct(of) = node.which()? else { return Ok(()) };
        for (at, field) in of.get_fields()?.iter().enumerate() {
            let field::Which::Slot(slot) = field.which()? else { continue };
            let root = match slot.get_default_value()?.which()? {
                _ if !slot.get_had_explicit_default() => continue,
                value::Which::List(list) => Root::of(list)?,
                value::Which::Struct(of) => Root::of(of)?,
                value::Which::Text(text) => {
                    let text = text?.to_str().map_err(capnp::Error::from)?;
                    self.set_default(node.get_id(), at, quoted(text));
                    continue;
                }
                value::Which::Data(data) => {
                    use base64::Engine as _;
                    let text = base64::engine::general_purpose::STANDARD.encode(data?);
                    self.set_default(node.get_id(), at, quoted(&text));
                    continue;
                }
                _ => continue,
            };
            let of = Type::of(slot.get_type()?)?.within(&Brand::default());
            let default = self.read_default(&of, root)?;
            if default != b"null" {
                self.set_default(node.get_id(), at, default);
            }
        }
        Ok(())
    }

    fn set_default(&mut self, id: u64, at: usize, default: Vec<u8>) {
        let field = self.structs.get_mut(&id).and_then(|of| of.fields.get_mut(at));
        if let Some(Field { place: FieldPlace::Slot(slot), .. }) = field {
            slot.default = Some(default);
        }
    }

    /// Checks that names of fields, with dots between them, lead from a struct to a capability.
    /// Lists on the way count for nothing.
    ///
    /// # Errors
    /// When a name is none of a field, or the last one none of a capability.
    pub(crate) fn check_capability(&self, of: &StructType, path: &str) -> Result<(), Unfit> {
        let (mut at, mut brand) = (self.structure(of.id)?, of.brand.clone());
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let field = at.field(name).ok_or_else(|| at.unknown(name))?;
            let slot = match &field.place {
                FieldPlace::Group(id) => {
                    at = self.structure(*id)?;
                    continue;
                }
                FieldPlace::Slot(slot) => slot,
            };
            match slot.of(&brand).element().clone() {
                Type::Interface(_) if names.peek().is_none() => return Ok(()),
                Type::Struct(id, inner) => (at, brand) = (self.structure(id)?, inner),
                _ => break,
            }
        }
        Err(Unfit::new(format!("no capability is at {path:?}")))
    }

    pub(super) fn structure(&self, id: u64) -> Result<&StructLayout, Unfit> {
        self.structs.get(&id).ok_or_else(|| absent(id))
    }

    pub(super) fn enumeration(&self, id: u64) -> Result<&Enum, Unfit> {
        self.enums.get(&id).ok_or_else(|| absent(id))
    }

    pub(super) fn enumerants(&self, id: u64) -> Result<&[String], Unfit> {
        self.enumeration(id).map(|of| of.names.as_slice())
    }

    /// The name of an interface without those around it.
    pub(crate) fn interface_name(&self, id: u64) -> Option<&str> {
        self.interfaces.get(&id).map(|of| last_name(&of.whole_name))
    }

    /// The comment on an interface.
    pub(crate) fn about_interface(&self, id: u64) -> &str {
        self.interfaces.get(&id).map_or("", |of| of.about.as_str())
    }

    /// The methods of an interface, and then those that it inherits; each one once, and with a name
    /// of its own.
    pub(crate) fn methods(&self, interface: u64) -> Vec<MethodShape> {
        let (mut seen, mut methods) = (FxHashSet::default(), Vec::new());
        let mut next = vec![(interface, Brand::default())];
        while let Some((id, brand)) = next.pop() {
            let Some(of) = self.interfaces.get(&id) else { continue };
            if !seen.insert(id) {
                continue;
            }
            methods.extend(of.methods.iter().map(|method| {
                let within = |of: &StructType| StructType {
                    id: of.id,
                    brand: of.brand.within(&brand).or(&brand),
                };
                let (params, results) = (within(&method.params), within(&method.results));
                MethodShape { params, results, ..method.clone() }
            }));
            let above = of.extends.iter().rev();
            next.extend(above.map(|(id, inner)| (*id, inner.within(&brand))));
        }
        self.set_apart(&mut methods, |of, _| of.whole_name.clone());
        // In other files there may be the same names.
        self.set_apart(&mut methods, |_, id| format!("{id:#x}"));
        methods
    }

    /// Methods with the same name get that of their interface before them.
    fn set_apart(&self, methods: &mut [MethodShape], named: impl Fn(&Interface, u64) -> String) {
        let mut count = FxHashMap::<String, u32>::default();
        for method in methods.iter() {
            *count.entry(method.name.clone()).or_default() += 1;
        }
        for method in methods.iter_mut().filter(|method| count[&method.name] > 1) {
            if let Some(of) = self.interfaces.get(&method.interface) {
                let interface = named(of, method.interface);
                method.name = format!("{interface}.{}", method.short_name());
            }
        }
    }

    /// The struct of that name, for tests.
    #[cfg(test)]
    pub(super) fn struct_named(&self, name: &str) -> StructType {
        let found = self.structs.iter().find(|(_, of)| of.name == name);
        let (&id, _) = found.unwrap_or_else(|| panic!("there is no struct {name}"));
        StructType { id, brand: Brand::default() }
    }
}

impl Field {
    fn of(field: field::Reader<'_>, about: String) -> Result<Self, Unfit> {
        let number = field.get_discriminant_value();
        let member = (number != field::NO_DISCRIMINANT).then_some(number);
        let place = match field.which()? {
            field::Which::Group(group) => FieldPlace::Group(group.get_type_id()),
            field::Which::Slot(slot) => {
                let of = Type::of(slot.get_type()?)?;
                let (offset, is_open) = (slot.get_offset(), of.is_open());
                let bits = default_bits(slot.get_default_value()?)?;
                FieldPlace::Slot(FieldSlot { offset, of, is_open, bits, default: None })
            }
        };
        Ok(Self { name: text(field.get_name()?)?.to_owned(), about, place, member })
    }
}

fn default_bits(of: value::Reader<'_>) -> capnp::Result<u64> {
    Ok(match of.which()? {
        value::Which::Bool(value) => value.into(),
        value::Which::Int8(value) => value.cast_unsigned().into(),
        value::Which::Int16(value) => value.cast_unsigned().into(),
        value::Which::Int32(value) => value.cast_unsigned().into(),
        value::Which::Int64(value) => value.cast_unsigned(),
        value::Which::Uint8(value) => value.into(),
        value::Which::Uint16(value) | value::Which::Enum(value) => value.into(),
        value::Which::Uint32(value) => value.into(),
        value::Which::Uint64(value) => value,
        value::Which::Float32(value) => value.to_bits().into(),
        value::Which::Float64(value) => value.to_bits(),
        _ => 0,
    })
}

/// The name in its file: `every.capnp:Every.Inner` without what stands before the colon.
fn whole_name(node: node::Reader<'_>) -> capnp::Result<String> {
    let name = text(node.get_display_name()?)?;
    Ok(name.rsplit_once(':').map_or(name, |(_, name)| name).to_owned())
}

/// The name without those around it.
fn last_name(whole_name: &str) -> &str {
    whole_name.rsplit_once('.').map_or(whole_name, |(_, last)| last)
}

fn text(text: capnp::text::Reader<'_>) -> capnp::Result<&str> {
    text.to_str().map_err(Into::into)
}

fn quoted(text: &str) -> Vec<u8> {
    serde_json::Value::from(text).to_string().into_bytes()
}

fn absent(id: u64) -> Unfit {
    Unfit::new(format!("the schema lacks the type {id:#x}"))
}
