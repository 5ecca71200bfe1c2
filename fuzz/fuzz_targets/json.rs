//! Any bytes as JSON of a call, as a message that becomes JSON, and as the schema of a class.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    capstead::fuzzing::json(bytes);
    capstead::fuzzing::message(bytes);
    capstead::fuzzing::schema(bytes);
});
