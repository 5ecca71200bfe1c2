//! Numbers, bools and enums: as bits in a message, and as text in JSON.

use std::io::Write as _;

use capnp::private::layout::{StructBuilder, StructReader};

use super::error::Unfit;
use super::parse::Json;
use super::types::Type;

/// More zeros than a body has room for.
const MANY: i64 = 1 << 40;

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
        Type::Float32 => float32(json).map(|value| u64::from(value.to_bits())),
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
    exactly(number).ok_or_else(|| {
        Unfit::new(format!("it must be a whole number, and {} is none", shortened(number)))
    })
}

/// The value of a number in JSON, if that is whole: as it is written, not as a float has it. One
/// that is beyond any type becomes the nearest that there is.
fn exactly(number: &str) -> Option<i128> {
    let (number, is_negative) = match number.strip_prefix('-') {
        Some(number) => (number, true),
        None => (number, false),
    };
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (before, behind) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [before, behind].concat();
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let is_tiny = exponent.starts_with('-');
    let exponent = exponent.parse::<i64>().unwrap_or(if is_tiny { -MANY } else { MANY });
    let length = |text: &str| i64::try_from(text.len()).unwrap_or(MANY);
    let zeros = exponent.clamp(-MANY, MANY) + length(digits) - length(significant) - length(behind);
    let power = u64::try_from(zeros).ok()?.min(u32::MAX.into()) as u32;
    let value = significant.parse::<i128>().ok();
    let scaled = value.and_then(|value| value.checked_mul(10_i128.checked_pow(power)?));
    let value = scaled.unwrap_or(i128::MAX);
    Some(if is_negative { -value } else { value })
}

/// A number for a sentence.
fn shortened(number: &str) -> String {
    const LONGEST: usize = 40;
    match number.get(..LONGEST) {
        Some(begin) if number.len() > LONGEST => format!("{begin}..."),
        _ => number.to_owned(),
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
        Json::Number(number) => finite(number).ok_or_else(|| range("Float64")),
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

fn float32(json: &Json<'_>) -> Result<f32, Unfit> {
    match json {
        Json::Number(number) => {
            let short: Option<f32> = number.parse().ok();
            short.filter(|short| short.is_finite()).ok_or_else(|| range("Float32"))
        }
        // Those that have names are the same in both.
        other => float(other).map(|named| named as f32),
    }
}

/// The float that is the nearest to a number.
fn finite(number: &str) -> Option<f64> {
    number.parse().ok().filter(|value: &f64| value.is_finite())
}

fn range(of: &str) -> Unfit {
    Unfit::new(format!("the number is out of the range of {of}"))
}

pub(super) fn wrong(expected: &str, found: &Json<'_>) -> Unfit {
    Unfit::new(format!("it must be {expected}, and is {}", found.kind()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_whole_if_what_is_written_is() {
        let whole = [
            ("0", 0),
            ("-0", 0),
            ("1.0", 1),
            ("1e2", 100),
            ("1E+2", 100),
            ("0.1e1", 1),
            ("-1.50e1", -15),
            ("1200e-2", 12),
            ("0e-400", 0),
            ("0.000e999999999999999999999", 0),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("18446744073709551615", 18_446_744_073_709_551_615),
        ];
        for (number, value) in whole {
            assert_eq!(exactly(number), Some(value), "{number}");
        }
        for number in [
            "1e-400",
            "0.5",
            "1e-1",
            "-1200e-3",
            "1.00000000000000000000000001",
            "5e-324",
            "1e-999999999999999999999",
        ] {
            assert_eq!(exactly(number), None, "{number}");
        }
        for (number, nearest) in [("1e400", i128::MAX), ("-1e99999999999999999999", -i128::MAX)] {
            assert_eq!(exactly(number), Some(nearest));
            let json = Json::Number(number);
            assert!(
                read(&Type::Int64, &json).unwrap_err().to_string().contains("out of the range")
            );
        }
        let exact = |of| read(&of, &Json::Number("9007199254740993.0")).unwrap();
        assert_eq!(exact(Type::UInt64), 9_007_199_254_740_993);
        assert_eq!(exact(Type::Float64), 9_007_199_254_740_992_f64.to_bits());
    }

    proptest! {
        /// However a number is written, it is itself; and none that has a fraction is whole.
        #[test]
        fn each_way_to_write_a_number_means_the_same(
            value: i64, zeros in 0_usize..30, shift in 0_usize..40, upper: bool, plus: bool,
        ) {
            let (sign, digits) = (if value < 0 { "-" } else { "" }, value.unsigned_abs().to_string());
            let e = if upper { 'E' } else { 'e' };
            let point = digits.len().saturating_sub(shift);
            let padded = format!("{}{digits}", "0".repeat(shift.saturating_sub(digits.len())));
            let (before, behind) = padded.split_at(padded.len() - shift.min(padded.len()));
            let before = if before.is_empty() { "0" } else { before };
            let up = if plus { "+" } else { "" };
            let zeros = "0".repeat(zeros);
            let mut ways = vec![format!("{sign}{digits}"), format!("{sign}{digits}.0{zeros}")];
            ways.push(format!("{sign}{before}.{behind}0{zeros}{e}{up}{shift}"));
            if value != 0 {
                ways.push(format!("{sign}{digits}{zeros}{e}-{}", zeros.len()));
            }
            for way in ways {
                prop_assert_eq!(exactly(&way), Some(value.into()), "{}", way);
                prop_assert!(serde_json::from_str::<f64>(&way).is_ok(), "{}", way);
            }
            // The least fraction makes it none.
            prop_assert_eq!(exactly(&format!("{sign}{digits}.{zeros}1")), None);
            prop_assert_eq!(exactly(&format!("{sign}{digits}{e}-{}", 20 + point)).is_some(), value == 0);
        }
    }
}
