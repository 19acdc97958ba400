//! The declared port put in place by each replica's own.

/// `text` with each occurrence of `declared` as a whole word replaced by `own`.
///
/// A whole word has no ASCII letter, digit or `_` next to it, and is not part of a decimal number or
/// a dotted version: `8080` is found in `--port=8080`, `0.0.0.0:8080`, `"8080"` and at the end of a
/// sentence, and not in `18080`, `v8080`, `-p8080`, `8080.5` or `1.8080`.
pub(super) fn replace(text: &str, declared: u16, own: u16) -> String {
    let declared = declared.to_string();
    let bytes = text.as_bytes();
    let mut replaced = String::with_capacity(text.len());
    let mut copied = 0;
    for (start, word) in text.match_indices(&declared) {
        let end = start + word.len();
        if joined(bytes[..start].iter().rev()) || joined(bytes[end..].iter()) {
            continue;
        }
        replaced.push_str(&text[copied..start]);
        replaced.push_str(&own.to_string());
        copied = end;
    }
    replaced.push_str(&text[copied..]);
    replaced
}

/// Whether what stands beside a number, read away from it, belongs to the same word.
fn joined<'b>(mut beside: impl Iterator<Item = &'b u8>) -> bool {
    match beside.next() {
        Some(b'.') => beside.next().is_some_and(u8::is_ascii_digit),
        Some(byte) => byte.is_ascii_alphanumeric() || *byte == b'_',
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_are_replaced() {
        for (text, answer) in [
            ("8080", "20001"),
            (
                "serve --port=8080 --bind 0.0.0.0:8080",
                "serve --port=20001 --bind 0.0.0.0:20001",
            ),
            (
                "echo \"8080\" '8080' (8080)",
                "echo \"20001\" '20001' (20001)",
            ),
            ("on 8080. And 8080\n", "on 20001. And 20001\n"),
            (
                "http://localhost:8080/8080?x=8080",
                "http://localhost:20001/20001?x=20001",
            ),
            ("8080-8090", "20001-8090"),
            ("ä8080ä", "ä20001ä"),
            (
                "18080 80800 v8080 -p8080 PORT_8080 8080_x",
                "18080 80800 v8080 -p8080 PORT_8080 8080_x",
            ),
            ("8080.5 1.8080", "8080.5 1.8080"),
            ("80808080", "80808080"),
            ("", ""),
        ] {
            assert_eq!(replace(text, 8080, 20001), answer, "{text}");
        }
    }
}
