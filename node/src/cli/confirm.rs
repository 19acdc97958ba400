//! Asks before something is changed.

use std::io::{BufRead, IsTerminal, Write};

use super::failure::Failure;

/// Asks `question`, unless `yes` was given. Returns on a yes.
///
/// # Errors
/// On a no; and without a terminal, since nobody is there to answer.
pub(super) fn confirm(yes: bool, question: &str, default: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(
            Failure::usage(format!("{question} There is no terminal to ask at"))
                .remedy("give -y to go ahead without being asked"),
        );
    }
    let hint = if default { "[Y/n]" } else { "[y/N]" };
    let mut stderr = std::io::stderr();
    let asked = write!(stderr, "{question} {hint}: ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| stdin.lock().read_line(&mut answer));
    match read {
        Ok(length) if means_yes(&answer, default && length > 0) => Ok(()),
        Ok(_) => Err(Failure::failed("not confirmed; nothing was changed")),
        Err(error) => Err(Failure::failed(format!("cannot read the answer: {error}"))),
    }
}

fn means_yes(answer: &str, default: bool) -> bool {
    match answer.trim().to_ascii_lowercase().as_str() {
        "" => default,
        "y" | "yes" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_means_yes() {
        assert!(means_yes("Yes\n", false));
        assert!(means_yes("\n", true));
        assert!(!means_yes("\n", false));
        assert!(!means_yes("no\n", true));
        assert!(!means_yes("yes please\n", true));
    }
}
