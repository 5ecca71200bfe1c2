//! Any bytes as a file of routes, and as a request that looks for its way in it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capstead::fuzzing::routes(bytes));
