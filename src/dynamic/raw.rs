//! Access to the layout of messages without a type: what generated code reaches by its own types.
//!
//! `capnp` gives out pointers, structs and lists of its layout only through traits that generated
//! code implements, so the few types here implement them too. Its builders don't check where a
//! field lies: the writer must have checked that against the size of the struct, which
//! [`Table`](super::Table) does once.

use capnp::introspect::{Introspect, Type, TypeVariant};
use capnp::private::layout::{
    PointerBuilder, PointerReader, StructBuilder, StructReader, StructSize,
};
use capnp::traits::{
    FromPointerBuilder, FromPointerReader, HasStructSize, IntoInternalStructReader, OwnedStruct,
    SetterInput,
};
use capnp::{any_pointer, any_pointer_list, struct_list};

/// A pointer that is read.
pub(crate) struct Root<'a>(pub(super) PointerReader<'a>);

/// A pointer that is written.
pub(crate) struct RootBuilder<'a>(pub(super) PointerBuilder<'a>);

impl<'a> Root<'a> {
    /// # Errors
    /// None that `capnp` has today.
    pub(crate) fn of(pointer: any_pointer::Reader<'a>) -> capnp::Result<Self> {
        pointer.get_as()
    }
}

impl<'a> RootBuilder<'a> {
    /// Begins anew: nothing is left of an earlier value.
    pub(crate) fn of(pointer: any_pointer::Builder<'a>) -> Self {
        pointer.init_as()
    }
}

impl<'a> FromPointerReader<'a> for Root<'a> {
    fn get_from_pointer(
        reader: &PointerReader<'a>,
        _: Option<&'a [capnp::Word]>,
    ) -> capnp::Result<Self> {
        Ok(Self(*reader))
    }
}

impl<'a> FromPointerBuilder<'a> for RootBuilder<'a> {
    fn init_pointer(mut builder: PointerBuilder<'a>, _: u32) -> Self {
        if !builder.is_null() {
            builder.clear();
        }
        Self(builder)
    }

    fn get_from_pointer(
        builder: PointerBuilder<'a>,
        _: Option<&'a [capnp::Word]>,
    ) -> capnp::Result<Self> {
        Ok(Self(builder))
    }
}

/// Any struct, as an element of a list.
struct AnyStruct;

/// One that is read.
struct Fields<'a>(StructReader<'a>);

/// One that is written.
struct FieldsBuilder<'a>(StructBuilder<'a>);

impl Introspect for AnyStruct {
    fn introspect() -> Type {
        TypeVariant::AnyPointer.into()
    }
}

impl OwnedStruct for AnyStruct {
    type Reader<'a> = Fields<'a>;
    type Builder<'a> = FieldsBuilder<'a>;
}

impl<'a> From<StructReader<'a>> for Fields<'a> {
    fn from(reader: StructReader<'a>) -> Self {
        Self(reader)
    }
}

impl<'a> IntoInternalStructReader<'a> for Fields<'a> {
    fn into_internal_struct_reader(self) -> StructReader<'a> {
        self.0
    }
}

impl SetterInput<AnyStruct> for Fields<'_> {
    fn set_pointer_builder(
        mut builder: PointerBuilder<'_>,
        input: Self,
        canonicalize: bool,
    ) -> capnp::Result<()> {
        builder.set_struct(&input.0, canonicalize)
    }
}

impl<'a> From<StructBuilder<'a>> for FieldsBuilder<'a> {
    fn from(builder: StructBuilder<'a>) -> Self {
        Self(builder)
    }
}

impl HasStructSize for FieldsBuilder<'_> {
    /// The least, so that a list whose structs are larger is taken as it is.
    const STRUCT_SIZE: StructSize = StructSize { data: 0, pointers: 0 };
}

/// The structs of a list.
pub(super) struct Structs<'a>(struct_list::Reader<'a, AnyStruct>);

impl<'a> Structs<'a> {
    pub(super) fn of(list: &PointerReader<'a>) -> capnp::Result<Self> {
        FromPointerReader::get_from_pointer(list, None).map(Self)
    }

    pub(super) fn len(&self) -> u32 {
        self.0.len()
    }

    pub(super) fn get(&self, index: u32) -> StructReader<'a> {
        self.0.get(index).0
    }
}

/// The structs of a new list.
pub(super) struct StructsBuilder<'a>(struct_list::Builder<'a, AnyStruct>);

impl<'a> StructsBuilder<'a> {
    pub(super) fn new(
        mut pointer: PointerBuilder<'a>,
        count: u32,
        size: StructSize,
    ) -> capnp::Result<Self> {
        pointer.reborrow().init_struct_list(count, size);
        // The list that is there already has structs that are at least as large as these.
        FromPointerBuilder::get_from_pointer(pointer, None).map(Self)
    }

    pub(super) fn get(&mut self, index: u32) -> StructBuilder<'_> {
        self.0.reborrow().get(index).0
    }
}

/// The pointers of a list.
pub(super) struct Pointers<'a>(any_pointer_list::Reader<'a>);

impl<'a> Pointers<'a> {
    pub(super) fn of(list: &PointerReader<'a>) -> capnp::Result<Self> {
        FromPointerReader::get_from_pointer(list, None).map(Self)
    }

    pub(super) fn len(&self) -> u32 {
        self.0.len()
    }

    pub(super) fn get(&self, index: u32) -> capnp::Result<PointerReader<'a>> {
        self.0.get(index).get_as::<Root<'a>>().map(|root| root.0)
    }
}

/// The pointers of a new list.
pub(super) struct PointersBuilder<'a>(any_pointer_list::Builder<'a>);

impl<'a> PointersBuilder<'a> {
    pub(super) fn new(pointer: PointerBuilder<'a>, count: u32) -> Self {
        Self(FromPointerBuilder::init_pointer(pointer, count))
    }

    pub(super) fn get(&mut self, index: u32) -> capnp::Result<PointerBuilder<'_>> {
        self.0.reborrow().get(index).get_as::<RootBuilder<'_>>().map(|root| root.0)
    }
}
