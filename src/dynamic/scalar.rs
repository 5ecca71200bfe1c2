//! Numbers, bools and enums: as bits in a message, and as text in JSON.

use std::io::Write as _;

use capnp::private::layout::{StructBuilder, StructReader};

use super::error::Unfit;
use super::parse::Json;
use super::types::Type;

/// Up to here every whole number is a float of its own.
const EXACT_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;

/// The bits of a field, without its default.
pub(super) fn get(data: &StructReader<'_>, of: &Type, offset: u32) -> u64 {
    let offset = offset as usize;
    match of.bits() {
        Some(1) => data.get_bool_field(offset).into(),
        Some(8) => data.get_data_field::<u8>(offset).into(),
        Some(16) => data.get_data_field::<u16>(offset).into(),
        Some(32) => data.get_data_field::<u32>(offset).into(),
        Some(64) => data.get_data_field::<u64>(offset),
        _ => 0,
    }
}

/// Sets the bits of a field that lies within the struct.
pub(super) fn set(data: &StructBuilder<'_>, of: &Type, offset: u32, bits: u64) {
    let offset = offset as usize;
    match of.bits() {
        Some(1) => data.set_bool_field(offset, bits == 1),
        Some(8) => data.set_data_field(offset, bits as u8),
        Some(16) => data.set_data_field(offset, bits as u16),
        Some(32) => data.set_data_field(offset, bits as u32),
        Some(64) => data.set_data_field(offset, bits),
        _ => {}
    }
}

/// Writes JSON of a value that isn't an enum's.
pub(super) fn print(of: &Type, bits: u64, out: &mut Vec<u8>) {
    // Writing to a `Vec` never fails.
    let _ = match of {
        Type::Bool => write!(out, "{}", bits == 1),
        Type::Int8 => write!(out, "{}", (bits as u8).cast_signed()),
        Type::Int16 => write!(out, "{}", (bits as u16).cast_signed()),
        Type::Int32 => write!(out, "{}", (bits as u32).cast_signed()),
        Type::Int64 => write!(out, "\"{}\"", bits.cast_signed()),
        Type::UInt64 => write!(out, "\"{bits}\""),
        Type::UInt8 | Type::UInt16 | Type::UInt32 | Type::Enum(_) => write!(out, "{bits}"),
        Type::Float32 => print_float32(f32::from_bits(bits as u32), out),
        Type::Float64 => print_float(f64::from_bits(bits), out),
        _ => write!(out, "null"),
    };
}

/// With no more digits than it has.
fn print_float32(value: f32, out: &mut Vec<u8>) -> std::io::Result<()> {
    let short = value.to_string().parse().unwrap_or(f64::NAN);
    #[expect(clippy::float_cmp, reason = "the same number must come back, bit for bit")]
    let is_same = short as f32 == value;
    print_float(if is_same { short } else { value.into() }, out)
}

fn print_float(value: f64, out: &mut Vec<u8>) -> std::io::Result<()> {
    if value.is_nan() {
        out.write_all(b"\"NaN\"")
    } else if value.is_infinite() {
        out.write_all(if value > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" })
    } else {
        serde_json::to_writer(out, &value).map_err(Into::into)
    }
}

/// The bits of a value in JSON that isn't an enum's.
pub(super) fn read(of: &Type, json: &Json<'_>) -> Result<u64, Unfit> {
    match of {
        Type::Void => match json {
            Json::Null => Ok(0),
            other => Err(wrong("null", other)),
        },
        Type::Bool => match json {
            Json::Bool(value) => Ok(u64::from(*value)),
            other => Err(wrong("true or false", other)),
        },
        Type::Int8 => {
            let value = i8::try_from(whole(json)?).map_err(|_| range("Int8"))?;
            Ok(value.cast_unsigned().into())
        }
        Type::Int16 => {
            let value = i16::try_from(whole(json)?).map_err(|_| range("Int16"))?;
            Ok(value.cast_unsigned().into())
        }
        Type::Int32 => {
            let value = i32::try_from(whole(json)?).map_err(|_| range("Int32"))?;
            Ok(value.cast_unsigned().into())
        }
        Type::Int64 => {
            let value = i64::try_from(long(json)?).map_err(|_| range("Int64"))?;
            Ok(value.cast_unsigned())
        }
        Type::UInt8 => u8::try_from(whole(json)?).map(u64::from).map_err(|_| range("UInt8")),
        Type::UInt16 => u16::try_from(whole(json)?).map(u64::from).map_err(|_| range("UInt16")),
        Type::UInt32 => u32::try_from(whole(json)?).map(u64::from).map_err(|_| range("UInt32")),
        Type::UInt64 => u64::try_from(long(json)?).map_err(|_| range("UInt64")),
        Type::Float32 => float(json).and_then(float32).map(|value| u64::from(value.to_bits())),
        Type::Float64 => float(json).map(f64::to_bits),
        _ => Err(Unfit::new("the schema is not understood")),
    }
}

/// The number of an enum that has no name for it.
pub(super) fn ordinal(json: &Json<'_>) -> Result<u64, Unfit> {
    u16::try_from(whole(json)?).map(u64::from).map_err(|_| range("enum"))
}

fn whole(json: &Json<'_>) -> Result<i128, Unfit> {
    let Json::Number(number) = json else { return Err(wrong("a whole number", json)) };
    if let Some(value) = number.as_i128() {
        return Ok(value);
    }
    match number.as_f64() {
        Some(value) if value.fract() == 0.0 && value.abs() <= EXACT_FLOAT_MAX => Ok(value as i128),
        _ => Err(Unfit::new(format!("it must be a whole number, and {number} is none"))),
    }
}

/// As [`whole`], or its digits as a text.
fn long(json: &Json<'_>) -> Result<i128, Unfit> {
    let Json::Text(text) = json else { return whole(json) };
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(value) if is_decimal => Ok(value),
        _ => Err(Unfit::new("it must be a whole number, or a text of its decimal digits")),
    }
}

fn float(json: &Json<'_>) -> Result<f64, Unfit> {
    match json {
        Json::Number(number) => number.as_f64().ok_or_else(|| range("Float64")),
        Json::Text(text) => match &**text {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            _ => Err(Unfit::new(
                "it must be a number, or one of \"NaN\", \"Infinity\" and \"-Infinity\"",
            )),
        },
        other => Err(wrong("a number", other)),
    }
}

fn float32(value: f64) -> Result<f32, Unfit> {
    let short = value as f32;
    if short.is_infinite() && value.is_finite() {
        return Err(range("Float32"));
    }
    Ok(short)
}

fn range(of: &str) -> Unfit {
    Unfit::new(format!("the number is out of the range of {of}"))
}

pub(super) fn wrong(expected: &str, found: &Json<'_>) -> Unfit {
    Unfit::new(format!("it must be {expected}, and is {}", found.kind()))
}
