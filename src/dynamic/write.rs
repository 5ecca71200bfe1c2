//! JSON as messages.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use capnp::introspect::Introspect;
use capnp::primitive_list;
use capnp::private::capability::ClientHook;
use capnp::private::layout::{PointerBuilder, PrimitiveElement, StructBuilder, StructSize};
use capnp::traits::FromPointerBuilder;

use super::DEPTH_MAX;
use super::error::Unfit;
use super::parse::Json;
use super::raw::{PointersBuilder, RootBuilder, StructsBuilder};
use super::scalar::{self, wrong};
use super::table::{Field, FieldPlace, StructLayout, StructType, Table};
use super::types::{Brand, Type};

const WORD: usize = 8;

/// With or without the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Makes capabilities of the texts in JSON.
pub(crate) trait CapSource {
    /// # Errors
    /// When there is to be no message at all.
    fn capability(&mut self, text: &str) -> Result<Box<dyn ClientHook>, Unfit>;
}

/// Makes none.
#[cfg(any(test, fuzzing))]
pub(crate) struct NoCapSource;

#[cfg(any(test, fuzzing))]
impl CapSource for NoCapSource {
    fn capability(&mut self, _: &str) -> Result<Box<dyn ClientHook>, Unfit> {
        Err(Unfit::new("no capability can be given here"))
    }
}

impl Table {
    /// Writes a struct, in at most so many bytes.
    ///
    /// # Errors
    /// The JSON isn't what the schema wants, or nests too deeply. Part of the message may have been
    /// written.
    pub(crate) fn write(
        &self,
        of: &StructType,
        json: &Json<'_>,
        root: RootBuilder<'_>,
        bytes_max: usize,
        capabilities: &mut dyn CapSource,
    ) -> Result<(), Unfit> {
        let mut writer = Writer { table: self, bytes_left: bytes_max, capabilities };
        writer.structure(of.id, &of.brand, json, root.0, 0)
    }
}

struct Writer<'t, 'c> {
    table: &'t Table,
    bytes_left: usize,
    capabilities: &'c mut dyn CapSource,
}

impl<'t> Writer<'t, '_> {
    fn take(&mut self, bytes: Option<usize>) -> Result<(), Unfit> {
        let left = bytes.and_then(|bytes| self.bytes_left.checked_sub(bytes));
        self.bytes_left = left.ok_or_else(Unfit::too_large)?;
        Ok(())
    }

    /// The words of so many structs, and one more of a list.
    fn take_structs(&mut self, size: StructSize, count: usize) -> Result<(), Unfit> {
        let words = (size.total() as usize).checked_mul(count).and_then(|all| all.checked_add(1));
        self.take(words.and_then(|words| words.checked_mul(WORD)))
    }

    fn structure(
        &mut self,
        id: u64,
        brand: &Brand,
        json: &Json<'_>,
        pointer: PointerBuilder<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        let of = self.table.structure(id)?;
        self.take_structs(of.size, 1)?;
        self.fields(of, brand, json, pointer.init_struct(of.size), depth)
    }

    fn fields(
        &mut self,
        of: &'t StructLayout,
        brand: &Brand,
        json: &Json<'_>,
        mut data: StructBuilder<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        if depth >= DEPTH_MAX {
            return Err(Unfit::too_deep());
        }
        let Json::Object(entries) = json else { return Err(wrong("an object", json)) };
        let mut member: Option<&str> = None;
        for (key, json) in entries {
            let Some(field) = of.field(key) else { return Err(of.unknown(key)) };
            if let (Some(number), Some(at)) = (field.member, of.discriminant) {
                if let Some(other) = member.replace(&field.name) {
                    let why = format!("only one of {other} and {key} can be set");
                    return Err(Unfit::new(why));
                }
                data.set_data_field(at as usize, number);
            }
            self.field(field, brand, json, data.reborrow(), depth)
                .map_err(|error| error.in_field(key))?;
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &'t Field,
        brand: &Brand,
        json: &Json<'_>,
        data: StructBuilder<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        let (slot, of) = match &field.place {
            FieldPlace::Group(id) => {
                return self.fields(self.table.structure(*id)?, brand, json, data, depth + 1);
            }
            FieldPlace::Slot(slot) => (slot, slot.of(brand)),
        };
        if of.bits().is_some() {
            scalar::set(&data, &of, slot.offset, self.scalar(&of, json)? ^ slot.bits);
            return Ok(());
        }
        self.pointer(&of, json, data.get_pointer_field(slot.offset as usize), depth)
    }

    fn scalar(&self, of: &Type, json: &Json<'_>) -> Result<u64, Unfit> {
        let Type::Enum(id) = of else { return scalar::read(of, json) };
        let names = self.table.enumerants(*id)?;
        match json {
            Json::Text(name) => match names.iter().position(|known| **known == **name) {
                Some(ordinal) => Ok(ordinal as u64),
                None => {
                    Err(Unfit::new(format!("there is no {name}; there are {}", names.join(", "))))
                }
            },
            Json::Number(_) => scalar::ordinal(json),
            other => Err(wrong("the name of an enumerant", other)),
        }
    }

    /// A pointer of that type, which speaks of no parameters.
    fn pointer(
        &mut self,
        of: &Type,
        json: &Json<'_>,
        mut pointer: PointerBuilder<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        match (of, json) {
            (_, Json::Null) => Ok(()),
            (Type::Text, Json::Text(text)) => {
                self.take(Some(text.len().next_multiple_of(WORD) + WORD))?;
                pointer.set_text((&**text).into());
                Ok(())
            }
            (Type::Data, Json::Text(text)) => {
                self.take(Some(text.len()))?;
                let data = BASE64.decode(&**text);
                let data = data.map_err(|_| Unfit::new("the text must be the base64 of bytes"))?;
                pointer.set_data(&data);
                Ok(())
            }
            (Type::Struct(id, inner), json) => self.structure(*id, inner, json, pointer, depth + 1),
            (Type::List(of), Json::List(elements)) => self.list(of, elements, pointer, depth + 1),
            (Type::Interface(_), Json::Text(text)) => {
                pointer.set_capability(self.capabilities.capability(text)?);
                Ok(())
            }
            (Type::Text, other) => Err(wrong("a text", other)),
            (Type::Data, other) => Err(wrong("a text, the base64 of bytes", other)),
            (Type::List(_), other) => Err(wrong("an array", other)),
            (Type::Interface(_), other) => Err(wrong("the text of a reference", other)),
            _ => Err(Unfit::new("it is an AnyPointer, which has no form in JSON: leave it out")),
        }
    }

    fn list(
        &mut self,
        of: &Type,
        elements: &[Json<'_>],
        pointer: PointerBuilder<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        if depth >= DEPTH_MAX {
            return Err(Unfit::too_deep());
        }
        match of.bits() {
            Some(0) => self.scalars::<()>(of, elements, pointer, |_| ()),
            Some(1) => self.scalars::<bool>(of, elements, pointer, |bits| bits == 1),
            Some(8) => self.scalars::<u8>(of, elements, pointer, |bits| bits as u8),
            Some(16) => self.scalars::<u16>(of, elements, pointer, |bits| bits as u16),
            Some(32) => self.scalars::<u32>(of, elements, pointer, |bits| bits as u32),
            Some(_) => self.scalars::<u64>(of, elements, pointer, |bits| bits),
            None => match of {
                Type::Struct(id, inner) => {
                    let of = self.table.structure(*id)?;
                    self.take_structs(of.size, elements.len())?;
                    let mut list = StructsBuilder::new(pointer, elements.len() as u32, of.size)?;
                    each(elements, |index, json| {
                        self.fields(of, inner, json, list.get(index), depth + 1)
                    })
                }
                of => {
                    self.take(elements.len().checked_mul(WORD))?;
                    let mut list = PointersBuilder::new(pointer, elements.len() as u32);
                    each(elements, |index, json| self.pointer(of, json, list.get(index)?, depth))
                }
            },
        }
    }

    fn scalars<T: PrimitiveElement + Introspect>(
        &mut self,
        of: &Type,
        elements: &[Json<'_>],
        pointer: PointerBuilder<'_>,
        value: impl Fn(u64) -> T,
    ) -> Result<(), Unfit> {
        // Bits take less, and are counted as bytes.
        let bytes = elements.len().checked_mul(size_of::<T>());
        self.take(bytes.and_then(|bytes| bytes.checked_next_multiple_of(WORD)))?;
        let count = elements.len() as u32;
        let mut list = primitive_list::Builder::<T>::init_pointer(pointer, count);
        each(elements, |index, json| {
            list.set(index, value(self.scalar(of, json)?));
            Ok(())
        })
    }
}

/// Each element with its number, which the size of the JSON keeps far below what a list can have.
fn each<'a, 'j>(
    elements: &'a [Json<'j>],
    mut write: impl FnMut(u32, &'a Json<'j>) -> Result<(), Unfit>,
) -> Result<(), Unfit> {
    for (index, json) in elements.iter().enumerate() {
        write(index as u32, json).map_err(|error| error.in_element(index))?;
    }
    Ok(())
}
