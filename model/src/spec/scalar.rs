//! What an unquoted YAML scalar stands for.
//!
//! SkyServe reads its files with PyYAML, which follows YAML 1.1: `yes` and `off` are booleans, `010`
//! is eight and `1e3` is text. The same file has to mean the same here. One rule is left out:
//! numbers to base 60, which would turn the text `22:22` into 1342.

use super::yaml::Value;

/// The value of the plain scalar `text`.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ => whole(text)
            .map(Value::Int)
            .or_else(|| float(text).map(Value::Float))
            .unwrap_or_else(|| Value::Str(text.to_owned())),
    }
}

fn whole(text: &str) -> Option<i128> {
    let (negative, digits) = sign(text);
    let (radix, digits) = if let Some(digits) = digits.strip_prefix("0b") {
        (2, digits)
    } else if let Some(digits) = digits.strip_prefix("0x") {
        (16, digits)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, &digits[1..])
    } else if digits.starts_with(|first: char| first.is_ascii_digit()) {
        (10, digits)
    } else {
        return None;
    };
    let digits = digits.replace('_', "");
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits, radix).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

fn float(text: &str) -> Option<f64> {
    let (negative, body) = sign(text);
    let magnitude = match body {
        ".inf" | ".Inf" | ".INF" => f64::INFINITY,
        ".nan" | ".NaN" | ".NAN" if body.len() == text.len() => f64::NAN,
        _ => decimal(body)?,
    };
    Some(if negative { -magnitude } else { magnitude })
}

/// Digits with a point, and an exponent only with its sign: the form that YAML 1.1 asks for.
fn decimal(body: &str) -> Option<f64> {
    let (mantissa, exponent) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    let (before, after) = mantissa.split_once('.')?;
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let starts_right = before.starts_with(|c: char| c.is_ascii_digit())
        || (before.is_empty() && after.starts_with(|c: char| c.is_ascii_digit()));
    let exponent_right = exponent.is_none_or(|exponent| {
        exponent
            .strip_prefix(['+', '-'])
            .is_some_and(|power| !power.is_empty() && power.bytes().all(|b| b.is_ascii_digit()))
    });
    if !(starts_right && exponent_right && digits(before) && digits(after)) {
        return None;
    }
    body.replace('_', "").parse().ok()
}

fn sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

/// A float as Python writes it, which is what SkyServe puts into the environment.
pub(super) fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, power)) => {
            let mantissa = mantissa.strip_suffix(".0").unwrap_or(mantissa);
            match power.strip_prefix('-') {
                Some(power) => format!("{mantissa}e-{power:0>2}"),
                None => format!("{mantissa}e+{power:0>2}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_pyyaml_says() {
        for (text, value) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("yes", Value::Bool(true)),
            ("OFF", Value::Bool(false)),
            ("0", Value::Int(0)),
            ("8080", Value::Int(8080)),
            ("+1_000", Value::Int(1000)),
            ("-7", Value::Int(-7)),
            ("010", Value::Int(8)),
            ("0x1F", Value::Int(31)),
            ("0b101", Value::Int(5)),
            ("1.5", Value::Float(1.5)),
            ("1.", Value::Float(1.0)),
            (".5", Value::Float(0.5)),
            ("1.5e+3", Value::Float(1500.0)),
            ("-.inf", Value::Float(f64::NEG_INFINITY)),
        ] {
            assert_eq!(resolve(text), value, "{text}");
        }
        assert!(matches!(resolve(".nan"), Value::Float(value) if value.is_nan()));
        for text in [
            "two", "1e3", "1.5e3", "08", "22:22", "--1", "+-1", "0x", "0b", "_1", ".", "-", "+",
            "1.2.3", "y", "n", "8080/tcp", "-.nan", "0x-1", "٣",
        ] {
            assert_eq!(resolve(text), Value::Str(text.to_owned()), "{text}");
        }
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [
            (1.5, "1.5"),
            (1.0, "1.0"),
            (1e16, "1e+16"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
