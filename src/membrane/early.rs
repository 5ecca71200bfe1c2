//! Results that are written a second time, after capabilities in them were offered early.
//!
//! capnp panics when a pointer is overwritten that leads to a capability, at whatever depth. So the
//! offered results are overwritten field by field: data by data, and capabilities, which can be
//! overwritten themselves, by capabilities. None is removed, and the shape of the results stays.

use capnp::any_pointer;
use capnp::private::capability::ParamsHook;
use capnp::private::layout::{
    PointerBuilder, PointerReader, StructBuilder, StructReader, StructSize,
};
use capnp::traits::{FromPointerBuilder, FromPointerReader};

use super::body::Body;
use crate::error::{Result, failed};

/// Writes `results` over those in `to`, which `offered` was copied to.
pub(super) fn write_over(
    to: any_pointer::Builder<'_>,
    offered: StructSize,
    results: &Body,
) -> Result<()> {
    let changed = || failed("results that were offered early may not change their shape");
    let size = results.size().filter(|size| is_same(*size, offered)).ok_or_else(changed)?;
    let mut to: StructTarget<'_> = to.get_as()?;
    let from: StructSource<'_> = results.get()?.get_as()?;
    for word in 0..size.data {
        to.0.set_data_field::<u64>(word.into(), from.0.get_data_field(word.into()));
    }
    for field in 0..size.pointers {
        let from = any_pointer::Reader::new(from.0.get_pointer_field(field.into()));
        let mut to = any_pointer::Builder::new(to.0.reborrow().get_pointer_field(field.into()));
        if to.target_size()?.cap_count == 0 {
            to.set_as(from)?;
        } else {
            to.set_as_capability(from.get_as_capability::<capnp::capability::Client>()?.hook);
        }
    }
    Ok(())
}

fn is_same(one: StructSize, other: StructSize) -> bool {
    (one.data, one.pointers) == (other.data, other.pointers)
}

/// Any struct, to be read.
struct StructSource<'a>(StructReader<'a>);

impl<'a> FromPointerReader<'a> for StructSource<'a> {
    fn get_from_pointer(
        reader: &PointerReader<'a>,
        default: Option<&'a [capnp::Word]>,
    ) -> Result<Self> {
        // A copy of the reader itself, not of what it reads.
        reader.get_struct(default).map(Self)
    }
}

/// Any struct, to be written as large as it is.
struct StructTarget<'a>(StructBuilder<'a>);

impl<'a> FromPointerBuilder<'a> for StructTarget<'a> {
    fn init_pointer(builder: PointerBuilder<'a>, _: u32) -> Self {
        Self(builder.init_struct(StructSize { data: 0, pointers: 0 }))
    }

    fn get_from_pointer(
        builder: PointerBuilder<'a>,
        default: Option<&'a [capnp::Word]>,
    ) -> Result<Self> {
        builder.get_struct(StructSize { data: 0, pointers: 0 }, default).map(Self)
    }
}
