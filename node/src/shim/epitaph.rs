//! What to tell people about a replica's end, in one line.

use crate::provider::{End, Exit, Step};

/// The longest quotation of the replica's own words: a line of a terminal or two.
const QUOTE_CHARS_MAX: usize = 200;

/// How shells end the line in which they name a program that is not there.
const NOT_FOUND_ENDINGS: [&str; 3] = [
    ": command not found",
    ": not found",
    ": No such file or directory",
];

/// Describes how `step` ended, with the last of what it said.
pub(super) fn describe(step: Step, end: End, last_words: &str) -> Exit {
    let message = match end {
        End::Code(127) => match missing_program(last_words) {
            Some(program) => format!("{step}: program not found: {program} (exit code 127)"),
            None => quoting(format!("{step} exited with code 127"), last_words),
        },
        End::Code(code) => quoting(format!("{step} exited with code {code}"), last_words),
        End::Signal(signal) => {
            let text = format!("{step} was killed by signal {signal}{}", name_of(signal));
            quoting(text, last_words)
        }
        End::NotStarted => format!("{step} could not be started"),
        End::Lost => format!("{step} was lost"),
        End::Preempted => format!("{step} was preempted"),
    };
    Exit { step, end, message }
}

fn quoting(text: String, last_words: &str) -> String {
    let last = last_words
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    match last {
        Some(line) => format!("{text}: {}", shorten(line)),
        None => text,
    }
}

fn shorten(line: &str) -> String {
    let mut short: String = line
        .chars()
        .filter(|char| !char.is_control())
        .take(QUOTE_CHARS_MAX)
        .collect();
    if line.chars().count() > QUOTE_CHARS_MAX {
        short.push('…');
    }
    short
}

/// The program that a shell complained about last: `bash: line 1: NAME: command not found`.
fn missing_program(last_words: &str) -> Option<String> {
    last_words.lines().rev().find_map(|line| {
        let line = line.trim();
        let before = NOT_FOUND_ENDINGS
            .iter()
            .find_map(|ending| line.strip_suffix(ending))?;
        let name = before.rsplit(": ").next()?;
        (!name.is_empty()).then(|| shorten(name))
    })
}

fn name_of(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL; the kernel does this when memory runs out)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(end: End, words: &str) -> String {
        describe(Step::Run, end, words).message
    }

    #[test]
    fn missing_program_is_named_as_each_shell_says_it() {
        for words in [
            "/bin/bash: line 1: python3x: command not found\n",
            "/bin/sh: 1: python3x: not found\n",
            "bash: python3x: No such file or directory\n\n",
        ] {
            assert_eq!(
                message(End::Code(127), words),
                "run: program not found: python3x (exit code 127)"
            );
        }
        assert_eq!(
            message(End::Code(127), "odd"),
            "run exited with code 127: odd"
        );
    }

    #[test]
    fn last_line_is_quoted_and_bounded() {
        assert_eq!(
            message(End::Code(1), "a\nout of luck\n \n"),
            "run exited with code 1: out of luck"
        );
        assert_eq!(message(End::Code(0), ""), "run exited with code 0");
        assert!(message(End::Signal(11), "").ends_with("signal 11 (SIGSEGV)"));
        let long = message(End::Code(1), &"ä".repeat(10_000));
        assert!(long.chars().count() < QUOTE_CHARS_MAX + 40);
    }
}
