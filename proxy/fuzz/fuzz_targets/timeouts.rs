#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| raftserve_proxy::fuzzing::timeouts(input));
