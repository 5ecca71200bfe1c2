//! Any bytes as the frames of a WebSocket's client, cut anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capstead::fuzzing::frames(bytes));
