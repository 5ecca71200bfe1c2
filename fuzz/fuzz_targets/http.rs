//! Any bytes as all that a client of HTTP says, in either version: the gateway ends with it, and
//! keeps nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capstead::fuzzing::connection(bytes));
