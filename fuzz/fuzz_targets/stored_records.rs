//! Bytes that are read from the disk or from an archive, into everything that decodes them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    capstead::fuzzing::layout(bytes);
    capstead::fuzzing::write_set(bytes);
    capstead::fuzzing::host_records(bytes);
    capstead::fuzzing::archive(bytes);
});
