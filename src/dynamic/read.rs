//! Messages as JSON.
//!
//! The text is written as the message is read, so that it takes the memory that the text has, and
//! never more than its limit: one message can show the same bytes many times, and elements without
//! bytes by the million.

use capnp::introspect::Introspect;
use capnp::primitive_list;
use capnp::private::capability::ClientHook;
use capnp::private::layout::{PointerReader, PrimitiveElement, StructReader};
use capnp::traits::FromPointerReader;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::DEPTH_MAX;
use super::error::Unfit;
use super::raw::{Pointers, Root, Structs};
use super::scalar;
use super::table::{Field, FieldPlace, StructLayout, StructType, Table};
use super::types::{Brand, Type};

/// Takes the capabilities of a message that becomes JSON.
pub(crate) trait CapSink {
    /// The text for a capability, or none if it is only to be named. `path` has the names of the
    /// fields that lead to it, and nothing of lists.
    ///
    /// # Errors
    /// When there is to be no JSON at all.
    fn capability(
        &mut self,
        path: &[&str],
        capability: Box<dyn ClientHook>,
    ) -> Result<Option<String>, Unfit>;
}

/// Has a text for none.
pub(crate) struct NoCapSink;

impl CapSink for NoCapSink {
    fn capability(&mut self, _: &[&str], _: Box<dyn ClientHook>) -> Result<Option<String>, Unfit> {
        Ok(None)
    }
}

impl Table {
    /// The JSON of a struct, in at most so many bytes.
    ///
    /// # Errors
    /// The message is malformed, too deep or too large, or has something in it that has no form in
    /// JSON.
    pub(crate) fn read(
        &self,
        of: &StructType,
        root: Root<'_>,
        bytes_max: usize,
        capabilities: &mut dyn CapSink,
    ) -> Result<Vec<u8>, Unfit> {
        let (out, path) = (Vec::new(), Vec::new());
        let mut reader = Reader { table: self, out, bytes_max, capabilities, path };
        reader.structure(of.id, &of.brand, root.0, 0)?;
        Ok(reader.out)
    }

    /// The JSON of a pointer's default.
    pub(super) fn read_default(&self, of: &Type, root: Root<'_>) -> Result<Vec<u8>, Unfit> {
        const BYTES_MAX: usize = 1 << 20;
        let (out, path, capabilities) = (Vec::new(), Vec::new(), &mut NoCapSink);
        let mut reader = Reader { table: self, out, bytes_max: BYTES_MAX, capabilities, path };
        reader.pointer(of, root.0, 0)?;
        Ok(reader.out)
    }
}

struct Reader<'t, 'c> {
    table: &'t Table,
    out: Vec<u8>,
    bytes_max: usize,
    capabilities: &'c mut dyn CapSink,
    path: Vec<&'t str>,
}

impl<'t> Reader<'t, '_> {
    fn put(&mut self, text: &[u8]) -> Result<(), Unfit> {
        if self.out.len() + text.len() > self.bytes_max {
            return Err(Unfit::new(format!("as JSON it has more than {} bytes", self.bytes_max)));
        }
        self.out.extend_from_slice(text);
        Ok(())
    }

    /// Escaped, which makes it at most six times as long.
    fn put_text(&mut self, text: &str) -> Result<(), Unfit> {
        self.put(b"")?;
        if text.len() > self.bytes_max {
            self.put(text.as_bytes())?;
        }
        serde_json::to_writer(&mut self.out, text)
            .map_err(|error| Unfit::new(error.to_string()))?;
        self.put(b"")
    }

    fn structure(
        &mut self,
        id: u64,
        brand: &Brand,
        pointer: PointerReader<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        let of = self.table.structure(id)?;
        self.fields(of, brand, &pointer.get_struct(None)?, depth)
    }

    fn fields(
        &mut self,
        of: &'t StructLayout,
        brand: &Brand,
        data: &StructReader<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        if depth >= DEPTH_MAX {
            return Err(Unfit::too_deep());
        }
        let active = of.discriminant.map(|at| data.get_data_field::<u16>(at as usize));
        let mut before: &[u8] = b"{";
        for field in &of.fields {
            if field.member.is_some() && field.member != active {
                continue;
            }
            if field.member.is_none() && field.is_unset(data) {
                continue;
            }
            self.put(before)?;
            before = b",";
            self.put_text(&field.name)?;
            self.put(b":")?;
            self.path.push(&field.name);
            self.field(field, brand, data, depth).map_err(|error| error.in_field(&field.name))?;
            self.path.pop();
        }
        self.put(if before == b"{" { b"{}" } else { b"}" })
    }

    fn field(
        &mut self,
        field: &'t Field,
        brand: &Brand,
        data: &StructReader<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        let (slot, of) = match &field.place {
            FieldPlace::Group(id) => {
                return self.fields(self.table.structure(*id)?, brand, data, depth + 1);
            }
            FieldPlace::Slot(slot) => (slot, slot.of(brand)),
        };
        if of.bits().is_some() {
            return self.scalar(&of, scalar::get(data, &of, slot.offset) ^ slot.bits);
        }
        let pointer = data.get_pointer_field(slot.offset as usize);
        match &slot.default {
            Some(default) if pointer.is_null() => self.put(default),
            _ => self.pointer(&of, pointer, depth),
        }
    }

    fn scalar(&mut self, of: &Type, bits: u64) -> Result<(), Unfit> {
        if let Type::Enum(id) = of
            && let Some(name) = self.table.enumerants(*id)?.get(bits as usize)
        {
            return self.put_text(name);
        }
        scalar::print(of, bits, &mut self.out);
        self.put(b"")
    }

    /// A pointer of that type, which speaks of no parameters.
    fn pointer(
        &mut self,
        of: &Type,
        pointer: PointerReader<'_>,
        depth: usize,
    ) -> Result<(), Unfit> {
        if pointer.is_null() {
            return self.put(b"null");
        }
        match of {
            Type::Text => {
                let text = pointer.get_text(None)?;
                let text = text.to_str().map_err(|_| Unfit::new("the text is not UTF-8"))?;
                self.put_text(text)
            }
            Type::Data => {
                let data = pointer.get_data(None)?;
                if data.len() > self.bytes_max {
                    self.put(data)?;
                }
                self.put(format!("\"{}\"", STANDARD.encode(data)).as_bytes())
            }
            Type::Struct(id, inner) => self.structure(*id, inner, pointer, depth + 1),
            Type::List(of) => self.list(of, pointer, depth + 1),
            Type::Interface(id) => self.capability(*id, &pointer),
            _ => Err(Unfit::new("it is an AnyPointer, which has no form in JSON")),
        }
    }

    fn capability(&mut self, id: Option<u64>, pointer: &PointerReader<'_>) -> Result<(), Unfit> {
        let capability = pointer.get_capability()?;
        if let Some(text) = self.capabilities.capability(&self.path, capability)? {
            return self.put_text(&text);
        }
        let name = id.and_then(|id| self.table.interface_name(id)).unwrap_or("Capability");
        self.put(b"{\"capability\":")?;
        self.put_text(name)?;
        self.put(b"}")
    }

    fn list(&mut self, of: &Type, pointer: PointerReader<'_>, depth: usize) -> Result<(), Unfit> {
        if depth >= DEPTH_MAX {
            return Err(Unfit::too_deep());
        }
        match of.bits() {
            Some(0) => self.scalars::<()>(of, &pointer, |()| 0),
            Some(1) => self.scalars::<bool>(of, &pointer, u64::from),
            Some(8) => self.scalars::<u8>(of, &pointer, u64::from),
            Some(16) => self.scalars::<u16>(of, &pointer, u64::from),
            Some(32) => self.scalars::<u32>(of, &pointer, u64::from),
            Some(_) => self.scalars::<u64>(of, &pointer, |bits| bits),
            None => match of {
                Type::Struct(id, inner) => {
                    let of = self.table.structure(*id)?;
                    let list = Structs::of(&pointer)?;
                    self.elements(list.len(), |reader, index| {
                        reader.fields(of, inner, &list.get(index), depth + 1)
                    })
                }
                of => {
                    let list = Pointers::of(&pointer)?;
                    self.elements(list.len(), |reader, index| {
                        reader.pointer(of, list.get(index)?, depth)
                    })
                }
            },
        }
    }

    fn scalars<T: PrimitiveElement + Introspect + Copy>(
        &mut self,
        of: &Type,
        pointer: &PointerReader<'_>,
        bits: impl Fn(T) -> u64,
    ) -> Result<(), Unfit> {
        let list = primitive_list::Reader::<T>::get_from_pointer(pointer, None)?;
        self.elements(list.len(), |reader, index| reader.scalar(of, bits(list.get(index))))
    }

    fn elements(
        &mut self,
        count: u32,
        mut element: impl FnMut(&mut Self, u32) -> Result<(), Unfit>,
    ) -> Result<(), Unfit> {
        self.put(b"[")?;
        for index in 0..count {
            if index > 0 {
                self.put(b",")?;
            }
            element(self, index).map_err(|error| error.in_element(index as usize))?;
        }
        self.put(b"]")
    }
}
