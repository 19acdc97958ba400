//! What names the host that a request is for.

use std::net::Ipv6Addr;

/// What a name is made of (RFC 3986, 3.2.2), without what two readers may tell differently: a comma, by which lines of a
/// field are joined, and percent-encoding, which one decodes and another does not.
const NAME: [bool; 256] = {
    let mut name = [false; 256];
    let legal = b"-._~!$&'()*+;=";
    let mut at = 0;
    while at < legal.len() {
        name[legal[at] as usize] = true;
        at += 1;
    }
    let mut byte: u8 = 0;
    while byte.is_ascii() {
        name[byte as usize] |= byte.is_ascii_alphanumeric();
        byte += 1;
    }
    name
};

/// The most digits of a port.
const PORT_DIGITS_MAX: usize = 5;

/// Whether this is a host with or without a port, and says so to every reader (RFC 9112, 3.2). It may be empty, as it is
/// where a request's target has none, and names no user.
pub(crate) fn is_legal(host: &[u8]) -> bool {
    let name = host.iter().take_while(|&&byte| NAME[usize::from(byte)]);
    let name_len = name.count();
    match &host[name_len..] {
        [] => true,
        [b':', port @ ..] if name_len > 0 => is_port(port),
        [b'[', literal @ ..] if name_len == 0 => is_literal(literal),
        _ => false,
    }
}

fn is_port(digits: &[u8]) -> bool {
    digits.len() <= PORT_DIGITS_MAX && digits.iter().all(u8::is_ascii_digit)
}

/// Whether this is an address of IPv6 behind its opening bracket, with or without a port.
fn is_literal(rest: &[u8]) -> bool {
    let Some(end) = rest.iter().position(|&byte| byte == b']') else {
        return false;
    };
    let address = std::str::from_utf8(&rest[..end]).ok();
    let port = match &rest[end + 1..] {
        [] => true,
        [b':', port @ ..] => is_port(port),
        _ => false,
    };
    port && address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for legal in [
            "",
            "h",
            "a-b_c.example.",
            "SVC:8080",
            "h:",
            "1.2.3.4:80",
            "[::1]",
            "[2001:db8::1]:8080",
            "[::ffff:1.2.3.4]",
            "a!$&'()*+;=~",
        ] {
            assert!(is_legal(legal.as_bytes()), "{legal:?}");
        }
    }

    #[test]
    fn what_two_readers_may_take_for_different_hosts_is_none() {
        for bad in [
            "svc@evil",
            "@",
            "u:p@h",
            "svc/x",
            "svc?x",
            "svc#x",
            "svc\\x",
            "a b",
            "a, b",
            "a,b",
            "a\tb",
            ":80",
            "h:80:90",
            "h:8x",
            "h:+80",
            "h:123456",
            "h%2e",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[::1%25eth0]",
            "[h]",
            "x[::1]",
            "[]",
            "[v1.x]",
            "h\0",
            "h\u{e4}",
            "\"h\"",
            "<h>",
            "h|",
            "{h}",
            "^",
            "`",
        ] {
            assert!(!is_legal(bad.as_bytes()), "{bad:?}");
        }
    }
}
