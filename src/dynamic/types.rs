//! The types of fields, with the parameters of generic structs and interfaces.

use std::rc::Rc;

use capnp::schema_capnp::{brand, type_};

/// The type of a field or of an element.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Type {
    Void,
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Float32,
    Float64,
    Text,
    Data,
    List(Rc<Type>),
    Enum(u64),
    Struct(u64, Brand),
    /// None: any interface.
    Interface(Option<u64>),
    /// Anything, about which nothing is known.
    Any,
    /// A parameter of the struct or interface with that id.
    Parameter {
        scope: u64,
        index: usize,
    },
}

/// The arguments of generic structs and interfaces: by the id of whose parameters they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Brand(Option<Rc<Vec<(u64, Arguments)>>>);

#[derive(Clone, Debug, PartialEq)]
enum Arguments {
    /// Those of where the type stands.
    Inherited,
    Types(Vec<Type>),
}

impl Type {
    pub(super) fn of(schema: type_::Reader<'_>) -> capnp::Result<Self> {
        use type_::Which;
        Ok(match schema.which()? {
            Which::Void(()) => Self::Void,
            Which::Bool(()) => Self::Bool,
            Which::Int8(()) => Self::Int8,
            Which::Int16(()) => Self::Int16,
            Which::Int32(()) => Self::Int32,
            Which::Int64(()) => Self::Int64,
            Which::Uint8(()) => Self::UInt8,
            Which::Uint16(()) => Self::UInt16,
            Which::Uint32(()) => Self::UInt32,
            Which::Uint64(()) => Self::UInt64,
            Which::Float32(()) => Self::Float32,
            Which::Float64(()) => Self::Float64,
            Which::Text(()) => Self::Text,
            Which::Data(()) => Self::Data,
            Which::List(list) => Self::List(Rc::new(Self::of(list.get_element_type()?)?)),
            Which::Enum(of) => Self::Enum(of.get_type_id()),
            Which::Struct(of) => Self::Struct(of.get_type_id(), Brand::of(of.get_brand()?)?),
            Which::Interface(of) => Self::Interface(Some(of.get_type_id())),
            Which::AnyPointer(any) => Self::of_any(any)?,
        })
    }

    fn of_any(any: type_::any_pointer::Reader<'_>) -> capnp::Result<Self> {
        use type_::any_pointer::{Which, unconstrained};
        Ok(match any.which()? {
            Which::Unconstrained(kind) => match kind.which()? {
                unconstrained::Which::Capability(()) => Self::Interface(None),
                _ => Self::Any,
            },
            Which::Parameter(parameter) => Self::Parameter {
                scope: parameter.get_scope_id(),
                index: usize::from(parameter.get_parameter_index()),
            },
            // The caller chooses it, and can't say it.
            Which::ImplicitMethodParameter(_) => Self::Any,
        })
    }

    /// The type of what stands in a list, or in lists of lists; itself if it is no list.
    pub(super) fn element(&self) -> &Self {
        match self {
            Self::List(of) => of.element(),
            other => other,
        }
    }

    /// True if it speaks of parameters of where it stands.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Parameter { .. } => true,
            Self::List(of) => of.is_open(),
            Self::Struct(_, brand) => brand.is_open(),
            _ => false,
        }
    }

    /// The same where the parameters are these.
    pub(super) fn within(&self, brand: &Brand) -> Self {
        match self {
            Self::Parameter { scope, index } => brand.argument(*scope, *index),
            Self::List(of) => Self::List(Rc::new(of.within(brand))),
            Self::Struct(id, inner) => Self::Struct(*id, inner.within(brand)),
            other => other.clone(),
        }
    }

    /// The bits that it takes in the data of a struct; none for a pointer.
    pub(super) fn bits(&self) -> Option<u32> {
        Some(match self {
            Self::Void => 0,
            Self::Bool => 1,
            Self::Int8 | Self::UInt8 => 8,
            Self::Int16 | Self::UInt16 | Self::Enum(_) => 16,
            Self::Int32 | Self::UInt32 | Self::Float32 => 32,
            Self::Int64 | Self::UInt64 | Self::Float64 => 64,
            _ => return None,
        })
    }
}

impl Brand {
    pub(super) fn of(schema: brand::Reader<'_>) -> capnp::Result<Self> {
        let mut scopes = Vec::new();
        for scope in schema.get_scopes()? {
            let arguments = match scope.which()? {
                brand::scope::Which::Inherit(()) => Arguments::Inherited,
                brand::scope::Which::Bind(bound) => {
                    let bound = bound?.iter().map(|argument| match argument.which()? {
                        brand::binding::Which::Unbound(()) => Ok(Type::Any),
                        brand::binding::Which::Type(of) => Type::of(of?),
                    });
                    Arguments::Types(bound.collect::<capnp::Result<_>>()?)
                }
            };
            scopes.push((scope.get_scope_id(), arguments));
        }
        Ok(if scopes.is_empty() { Self(None) } else { Self(Some(Rc::new(scopes))) })
    }

    fn is_open(&self) -> bool {
        self.0.iter().flat_map(|scopes| scopes.iter()).any(|(_, arguments)| match arguments {
            Arguments::Inherited => true,
            Arguments::Types(types) => types.iter().any(Type::is_open),
        })
    }

    /// The same where the parameters are these.
    pub(super) fn within(&self, outer: &Self) -> Self {
        let Some(scopes) = &self.0 else { return Self(None) };
        let closed = scopes.iter().filter_map(|(id, arguments)| match arguments {
            Arguments::Inherited => outer.arguments(*id).map(|found| (*id, found.clone())),
            Arguments::Types(types) => {
                let types = types.iter().map(|of| of.within(outer)).collect();
                Some((*id, Arguments::Types(types)))
            }
        });
        Self(Some(Rc::new(closed.collect())))
    }

    /// These arguments, and those of `outer` where there are none here.
    pub(super) fn or(&self, outer: &Self) -> Self {
        let (Some(here), Some(there)) = (&self.0, &outer.0) else {
            return if self.0.is_some() { self.clone() } else { outer.clone() };
        };
        let others = there.iter().filter(|(id, _)| self.arguments(*id).is_none());
        Self(Some(Rc::new(here.iter().chain(others).cloned().collect())))
    }

    fn arguments(&self, scope: u64) -> Option<&Arguments> {
        self.0.as_ref()?.iter().find(|(id, _)| *id == scope).map(|(_, arguments)| arguments)
    }

    /// An argument that nobody gave is anything.
    fn argument(&self, scope: u64, index: usize) -> Type {
        match self.arguments(scope) {
            Some(Arguments::Types(types)) => types.get(index).cloned().unwrap_or(Type::Any),
            _ => Type::Any,
        }
    }
}
