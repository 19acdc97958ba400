//! Whatever is given, the parser answers.

use proptest::prelude::*;

use super::*;

const WHOLE: &str = include_str!("../../../../examples/sessions.yaml");

/// Bits of YAML that are likely to meet a special case.
const PIECES: &[&str] = &[
    "\n",
    "  ",
    "\t",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "| ",
    "> ",
    "'",
    "\"",
    "#",
    "---\n",
    "...\n",
    "!!str ",
    "!x ",
    "%TAG ! x\n",
    "~",
    "yes",
    "1e9",
    ".nan",
    "-1",
    "0x",
    "service",
    "replicas",
    "$A",
    "${",
    "ports",
    "8080",
    "\u{0}",
    "\u{feff}",
    "ä",
    "\r",
    "\u{2028}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gets_an_answer(text in any::<String>()) {
        let _ = ServiceSpec::parse(&text, ParseOptions::default());
    }

    #[test]
    fn any_heap_of_yaml_gets_an_answer(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..60)) {
        let _ = ServiceSpec::parse(&pieces.concat(), ParseOptions::default());
    }

    #[test]
    fn a_mutated_service_gets_an_answer_and_places_within_it(
        mutations in prop::collection::vec(
            (any::<prop::sample::Index>(), 0_usize..20, prop::sample::select(PIECES)),
            1..8,
        )
    ) {
        let mut text: Vec<char> = WHOLE.chars().collect();
        for (at, removed, piece) in mutations {
            let start = at.index(text.len() + 1);
            let end = (start + removed).min(text.len());
            text.splice(start..end, piece.chars());
        }
        let text: String = text.into_iter().collect();
        match ServiceSpec::parse(&text, ParseOptions::default()) {
            Ok(parsed) => {
                let _ = (parsed.spec.source_masked(), parsed.spec.render());
            }
            Err(errors) => {
                let lines = text.lines().count().max(1) + 1;
                prop_assert!(!errors.as_slice().is_empty());
                for error in errors.as_slice() {
                    prop_assert!(error.line as usize <= lines, "{error} of {lines} lines");
                    prop_assert!(!error.problem.is_empty());
                }
            }
        }
    }
}
