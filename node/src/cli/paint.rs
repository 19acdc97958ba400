//! Colours, for terminals only.

use std::io::IsTerminal;

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    on: bool,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
    Faint,
    Strong,
}

impl Tone {
    /// The number of its escape sequence (SGR); none where the text is left alone.
    pub(crate) fn code(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Good => Some(32),
            Self::Busy => Some(33),
            Self::Bad => Some(31),
            Self::Faint => Some(2),
            Self::Strong => Some(1),
        }
    }
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
        match tone.code().filter(|_| self.on) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

/// The tone of a status, of a service or a replica.
pub(crate) fn status_tone(status: &str) -> Tone {
    match status {
        "READY" => Tone::Good,
        "NO_REPLICA" => Tone::Faint,
        failed if failed.starts_with("FAILED") => Tone::Bad,
        _ => Tone::Busy,
    }
}
