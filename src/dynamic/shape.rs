//! The form of JSON that a schema wants, as JSON Schema.

use serde_json::{Map, Value, json};

use super::error::Unfit;
use super::table::{FieldPlace, StructLayout, StructType, Table};
use super::types::{Brand, Type};

/// Structs that are described by a name of their own; types that grow without end have no more.
const NAMED_MAX: usize = 1024;

/// The structs that were spoken of, each described once under its name.
pub(crate) struct Shapes<'t> {
    table: &'t Table,
    /// Those that are known, and the names that they got, in the order in which they were met.
    named: Vec<(StructType, String)>,
}

impl<'t> Shapes<'t> {
    pub(crate) fn new(table: &'t Table) -> Self {
        Self { table, named: Vec::new() }
    }

    /// The form of a struct, as a reference to its description.
    ///
    /// # Errors
    /// When the schema lacks a type.
    pub(crate) fn of(&mut self, of: &StructType) -> Result<Value, Unfit> {
        let known =
            self.named.iter().find(|(known, _)| known.id == of.id && known.brand == of.brand);
        let name = match known {
            Some((_, name)) => name.clone(),
            None if self.named.len() >= NAMED_MAX => return Ok(json!({"type": "object"})),
            None => {
                let name = self.free_name(&self.table.structure(of.id)?.name);
                self.named.push((of.clone(), name.clone()));
                name
            }
        };
        Ok(json!({ "$ref": format!("#/components/schemas/{name}") }))
    }

    /// Such as `Every.Inner`, with a number for those that are called so as well.
    fn free_name(&self, name: &str) -> String {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let plain: String = name.chars().map(|of| if is_plain(of) { of } else { '-' }).collect();
        let is_taken = |name: &String| self.named.iter().any(|(_, taken)| taken == name);
        let numbered = (2..).map(|number| format!("{plain}-{number}"));
        std::iter::once(plain.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(plain)
    }

    /// The descriptions of all structs that were spoken of, by name.
    ///
    /// # Errors
    /// As for [`of`](Self::of).
    pub(crate) fn describe(mut self) -> Result<Map<String, Value>, Unfit> {
        let (mut at, mut all) = (0, Map::new());
        // Each may lead to further ones.
        while let Some((of, name)) = self.named.get(at).cloned() {
            let described = self.structure(self.table.structure(of.id)?, &of.brand, 0)?;
            all.insert(name, described);
            at += 1;
        }
        Ok(all)
    }

    fn structure(
        &mut self,
        of: &StructLayout,
        brand: &Brand,
        depth: usize,
    ) -> Result<Value, Unfit> {
        if depth >= super::DEPTH_MAX {
            return Err(Unfit::too_deep());
        }
        let mut properties = Map::new();
        for field in &of.fields {
            let mut shape = match &field.place {
                FieldPlace::Group(id) => {
                    self.structure(self.table.structure(*id)?, brand, depth + 1)?
                }
                FieldPlace::Slot(slot) => self.value(&slot.of(brand))?,
            };
            if !field.about.is_empty() {
                shape["description"] = field.about.as_str().into();
            }
            properties.insert(field.name.clone(), shape);
        }
        let mut shape = json!({
            "type": "object", "properties": properties, "additionalProperties": false,
        });
        if !of.about.is_empty() {
            shape["description"] = of.about.as_str().into();
        }
        let members = of.fields.iter().filter(|field| field.member.is_some());
        let members: Vec<_> = members.map(|field| json!({"required": [&field.name]})).collect();
        if !members.is_empty() {
            // One of them, or none for the first one as it is by default.
            let none = json!({"not": {"anyOf": &members}});
            shape["oneOf"] = members.into_iter().chain([none]).collect();
        }
        Ok(shape)
    }

    fn value(&mut self, of: &Type) -> Result<Value, Unfit> {
        let whole =
            |least: i64, most: i64| json!({"type": "integer", "minimum": least, "maximum": most});
        let long = |format| json!({"type": ["string", "integer"], "format": format, "pattern": "^-?[0-9]+$"});
        Ok(match of {
            Type::Bool => json!({"type": "boolean"}),
            Type::Int8 => whole(i8::MIN.into(), i8::MAX.into()),
            Type::Int16 => whole(i16::MIN.into(), i16::MAX.into()),
            Type::Int32 => whole(i32::MIN.into(), i32::MAX.into()),
            Type::UInt8 => whole(0, u8::MAX.into()),
            Type::UInt16 => whole(0, u16::MAX.into()),
            Type::UInt32 => whole(0, u32::MAX.into()),
            Type::Int64 => long("int64"),
            Type::UInt64 => long("uint64"),
            Type::Float32 | Type::Float64 => json!({
                "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
            }),
            Type::Text => json!({"type": ["string", "null"]}),
            Type::Data => json!({"type": ["string", "null"], "contentEncoding": "base64"}),
            Type::Enum(id) => {
                let of = self.table.enumeration(*id)?;
                let mut shape = json!({"anyOf": [{"enum": of.names}, {"type": "integer"}]});
                if !of.about.is_empty() {
                    shape["description"] = of.about.as_str().into();
                }
                shape
            }
            Type::List(of) => json!({"type": ["array", "null"], "items": self.value(of)?}),
            Type::Struct(id, brand) => {
                let of = self.of(&StructType { id: *id, brand: brand.clone() })?;
                json!({"anyOf": [of, {"type": "null"}]})
            }
            Type::Interface(id) => {
                let name = id.and_then(|id| self.table.interface_name(id));
                let name = name.unwrap_or("Capability");
                json!({
                    "type": ["string", "object", "null"],
                    "description": format!("A reference of the interface {name}."),
                })
            }
            Type::Void | Type::Any | Type::Parameter { .. } => json!({"type": "null"}),
        })
    }
}
