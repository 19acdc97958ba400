//! Colours, for terminals only.

use std::io::IsTerminal;

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    on: bool,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
    Faint,
    Strong,
}

impl Paint {
    /// For what is written to `stream`: colours if it is a terminal, `NO_COLOR` is not set
    /// (<https://no-color.org>) and the terminal understands them.
    #[expect(
        clippy::disallowed_methods,
        reason = "what terminals agree on, not configuration"
    )]
    pub(super) fn of(stream: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            on: stream.is_terminal() && !unwanted && !dumb,
        }
    }

    #[cfg(test)]
    pub(super) fn fixed(on: bool) -> Self {
        Self { on }
    }

    pub(super) fn tone(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => 32,
            Tone::Busy => 33,
            Tone::Bad => 31,
            Tone::Faint => 2,
            Tone::Strong => 1,
        };
        match self.on {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// The tone of a status, of a service or a replica.
pub(super) fn status_tone(status: &str) -> Tone {
    match status {
        "READY" => Tone::Good,
        "NO_REPLICA" => Tone::Faint,
        failed if failed.starts_with("FAILED") => Tone::Bad,
        _ => Tone::Busy,
    }
}
