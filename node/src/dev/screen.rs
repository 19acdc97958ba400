//! Where `raftserve dev` writes: lines that stay, and on a terminal a frame below them that is drawn
//! again and again. Without a terminal there are only lines.

use std::io::{self, IsTerminal, Write};

use tokio::time::Instant;

use crate::cli::paint::Tone;

/// A line of the frame: pieces with a tone each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line(pub(super) Vec<(Tone, String)>);

impl Line {
    /// A line of one piece.
    pub(super) fn of(tone: Tone, text: impl Into<String>) -> Self {
        Self(vec![(tone, text.into())])
    }

    /// The line, cut to `width` characters, so that it stays one line on the terminal. An ellipsis
    /// marks the cut.
    pub(super) fn render(&self, width: usize, colours: bool) -> String {
        let length: usize = self.0.iter().map(|(_, piece)| piece.chars().count()).sum();
        let is_cut = length > width;
        let mut room = width.saturating_sub(usize::from(is_cut));
        let mut text = String::new();
        for (tone, piece) in &self.0 {
            let piece: String = piece.chars().take(room).collect();
            room -= piece.chars().count();
            match tone.code().filter(|_| colours) {
                Some(code) => text.push_str(&format!("\x1b[{code}m{piece}\x1b[0m")),
                None => text.push_str(&piece),
            }
            if room == 0 {
                break;
            }
        }
        if is_cut && width > 0 {
            text.push('…');
        }
        text
    }
}

/// What the terminal is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No terminal, or one that cannot move its cursor.
    Lines,
    /// A terminal.
    Live { colours: bool },
}

/// Standard output.
pub(super) struct Screen<W = io::Stdout> {
    out: W,
    kind: Kind,
    start: Instant,
    frame: Vec<Line>,
    /// How many lines of the frame stand above the cursor now.
    drawn: usize,
}

impl Screen {
    /// Standard output, as a terminal if it is one.
    pub(super) fn stdout() -> Self {
        let out = io::stdout();
        let kind = match out.is_terminal() && !wants(Wish::Dumb) {
            true => Kind::Live {
                colours: !wants(Wish::NoColour),
            },
            false => Kind::Lines,
        };
        Self::new(out, kind)
    }
}

impl<W: Write> Screen<W> {
    fn new(out: W, kind: Kind) -> Self {
        Self {
            out,
            kind,
            start: Instant::now(),
            frame: Vec::new(),
            drawn: 0,
        }
    }

    /// Whether frames are drawn.
    pub(super) fn is_live(&self) -> bool {
        self.kind != Kind::Lines
    }

    /// Writes a line that stays. Each line of a longer text is written under the one before; what
    /// would command the terminal is left out.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.erase()?;
        let harmless = |letter: &char| *letter == '\n' || !letter.is_control();
        let text: String = text.chars().filter(harmless).collect();
        writeln!(self.out, "{text}")?;
        self.redraw()
    }

    /// Writes a line that stays, after the time since the start.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn tell(&mut self, text: &str) -> io::Result<()> {
        let elapsed = self.start.elapsed().as_secs_f64();
        self.say(&format!("[{elapsed:7.1}s] {text}"))
    }

    /// Draws this frame in place of the one before. Does nothing without a terminal.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn draw(&mut self, frame: Vec<Line>) -> io::Result<()> {
        if !self.is_live() {
            return Ok(());
        }
        self.frame = frame;
        self.erase()?;
        self.redraw()
    }

    /// Takes the frame away.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.frame.clear();
        self.erase()?;
        self.out.flush()
    }

    fn erase(&mut self) -> io::Result<()> {
        if self.drawn > 0 {
            write!(self.out, "\x1b[{}F\x1b[0J", self.drawn)?;
            self.drawn = 0;
        }
        Ok(())
    }

    fn redraw(&mut self) -> io::Result<()> {
        if let Kind::Live { colours } = self.kind {
            let (rows, columns) = terminal_size();
            // A frame of more lines than the terminal has could not be erased.
            let shown = self.frame.len().min(rows.saturating_sub(1));
            for line in &self.frame[..shown] {
                writeln!(self.out, "{}", line.render(columns, colours))?;
            }
            self.drawn = shown;
        }
        self.out.flush()
    }
}

/// What the user's environment says about terminals.
enum Wish {
    /// No colours: <https://no-color.org>.
    NoColour,
    /// The terminal understands no escape sequences.
    Dumb,
}

#[expect(
    clippy::disallowed_methods,
    reason = "these two variables are conventions about the terminal, and no configuration"
)]
fn wants(wish: Wish) -> bool {
    match wish {
        Wish::NoColour => std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
        Wish::Dumb => std::env::var_os("TERM").is_none_or(|value| value == "dumb"),
    }
}

/// Rows and columns; those of the first terminals where the kernel does not know.
fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 1 && size.ws_col > 1 => {
            (usize::from(size.ws_row), usize::from(size.ws_col))
        }
        _ => (24, 80),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(screen: &Screen<Vec<u8>>) -> &str {
        std::str::from_utf8(&screen.out).unwrap()
    }

    #[test]
    fn without_a_terminal_there_are_only_lines() {
        let mut screen = Screen::new(Vec::new(), Kind::Lines);
        screen.draw(vec![Line::of(Tone::Good, "frame")]).unwrap();
        screen.tell("peer 2 leads").unwrap();
        screen.clear().unwrap();
        assert!(text(&screen).starts_with('['));
        assert!(text(&screen).ends_with("s] peer 2 leads\n"));
        assert_eq!(text(&screen).lines().count(), 1);
    }

    #[test]
    fn frame_is_erased_before_a_line_and_drawn_again_below() {
        let mut screen = Screen::new(Vec::new(), Kind::Live { colours: false });
        let frame = vec![Line::of(Tone::Good, "a"), Line::of(Tone::Bad, "b")];
        screen.draw(frame).unwrap();
        screen.say("said").unwrap();
        assert_eq!(text(&screen), "a\nb\n\x1b[2F\x1b[0Jsaid\na\nb\n");
        screen.clear().unwrap();
        assert!(text(&screen).ends_with("a\nb\n\x1b[2F\x1b[0J"));
    }

    #[test]
    fn lines_are_cut_to_the_width_whatever_their_colours() {
        let line = Line(vec![
            (Tone::Plain, "ab·".to_owned()),
            (Tone::Bad, "cdef".to_owned()),
        ]);
        assert_eq!(line.render(7, false), "ab·cdef");
        assert_eq!(line.render(6, false), "ab·cd…");
        assert_eq!(line.render(6, true), "ab·\x1b[31mcd\x1b[0m…");
        assert_eq!(line.render(2, false), "a…");
        assert_eq!(line.render(1, false), "…");
        assert_eq!(line.render(0, false), "");
    }
}
