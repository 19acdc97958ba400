//! The properties of the parsers as targets of `cargo fuzz` (`proxy/fuzz`), which finds inputs by the code that they reach. It
//! compiles this crate with `--cfg fuzzing`; nothing else does.

use std::cell::Cell;

use rand::SeedableRng;
use rand::rngs::StdRng;

thread_local! {
    /// What the fuzzer gives to the next property.
    static INPUT: Cell<Option<Vec<u8>>> = const { Cell::new(None) };
}

/// In place of inputs made from `seeds`: the fuzzer's own, put into one of them, or as it is. Its first byte says which, its
/// second where.
pub(crate) fn each(seeds: &[&str], property: impl Fn(&[u8], &mut StdRng)) {
    let Some(given) = INPUT.take() else {
        return;
    };
    let [which, place, bytes @ ..] = &given[..] else {
        return;
    };
    let mut input = match usize::from(*which) % (seeds.len() + 1) {
        0 => Vec::new(),
        number => seeds[number - 1].as_bytes().to_vec(),
    };
    let place = usize::from(*place) % (input.len() + 1);
    input.splice(place..place, bytes.iter().copied());
    let mut random = StdRng::seed_from_u64(u64::from(hash(&given)));
    property(&input, &mut random);
}

/// Inputs that are made by a grammar know nothing of the code that they reach.
pub(crate) fn each_made<T>(_: impl Fn(&mut StdRng) -> T, _: impl Fn(&T, &mut StdRng)) {}

/// By FNV-1a: what is drawn beside an input is always the same with it.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

macro_rules! targets {
    ($($(#[$meta:meta])* $name:ident: $property:path;)*) => {
        $(
            $(#[$meta])*
            ///
            /// # Panics
            /// If the property does not hold.
            pub fn $name(input: &[u8]) {
                INPUT.set(Some(input.to_vec()));
                $property();
            }
        )*
    };
}

targets! {
    /// Requests on the short path.
    requests: crate::fast::fuzz::what_is_forwarded_says_one_thing_to_every_reader;
    /// Answers on the short path.
    answers: crate::fast::fuzz::an_answer_is_passed_on_with_one_framing;
    /// Chunked bodies.
    chunks: crate::fast::fuzz::a_chunked_body_ends_where_a_second_reader_says_however_it_is_cut;
    /// Streams of requests on the general path.
    guard: crate::guard::fuzz::what_makes_two_claims_is_refused_and_no_other;
    /// Fields that end at this hop.
    hop: crate::fuzz::what_ends_at_this_hop_is_gone_and_nothing_else_is;
    /// Contexts of traces.
    traces: crate::fuzz::a_trace_goes_on_if_it_is_valid_and_begins_otherwise;
    /// Deadlines of calls.
    deadlines: crate::fuzz::the_time_of_a_call_is_read_as_it_is_written_and_never_grows;
    /// Cookies.
    cookies: crate::fuzz::a_cookie_is_the_first_of_its_name;
    /// Hosts and paths.
    targets: crate::fuzz::a_service_is_found_by_a_whole_label_or_a_whole_segment;
    /// Paths that are rewritten.
    rewrites: crate::fuzz::a_rewritten_target_keeps_all_but_the_prefix;
    /// The first bytes of a connection.
    protocols: crate::fuzz::the_protocol_is_told_by_the_whole_preface_and_no_byte_is_lost;
    /// Keys in bodies of JSON.
    json_keys: crate::fuzz::a_key_in_a_body_is_the_same_however_much_of_the_body_is_there;
    /// Frames of HTTP/2 that are counted.
    frames: crate::fuzz::frames_are_counted_the_same_however_they_are_cut;
    /// Keys in queries.
    queries: crate::fuzz::a_key_in_a_query_is_the_first_of_its_name;
    /// Hosts.
    hosts: crate::fuzz::a_host_is_legal_if_every_reader_takes_it_for_the_same;
    /// Protocols to switch to.
    upgrades: crate::fuzz::a_switch_of_protocols_is_to_what_was_asked_for_and_never_to_cleartext_http_2;
    /// How long a client says that it waits.
    timeouts: crate::fuzz::what_a_client_waits_for_is_told_on_and_never_grows;
    /// Names that read like others.
    aliases: crate::fuzz::nothing_is_left_that_reads_like_what_the_proxy_says;
}
