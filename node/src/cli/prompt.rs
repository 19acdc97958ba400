//! Asks for a name and a password. A password is not shown while it is typed.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::failure::Failure;

/// The longest line that is read.
const LINE_BYTES_MAX: u64 = 4 << 10;

/// Keeps the terminal from showing what is typed, until dropped.
struct Silence(Termios);

impl Silence {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing any more.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::failed(format!("cannot read from the terminal: {error}"))
}

fn read_line() -> io::Result<String> {
    let mut line = String::new();
    let mut input = io::Read::take(io::stdin().lock(), LINE_BYTES_MAX);
    input.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks at the terminal. While it is asked in silence, Ctrl-C gives the terminal back first.
async fn ask(question: &str, silent: bool) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(
            Failure::usage(format!("{question} There is no terminal to ask at"))
                .remedy("give --user and --password-stdin, or --token-stdin"),
        );
    }
    let silence = match silent {
        true => Some(Silence::begin().map_err(|error| unreadable(&error))?),
        false => None,
    };
    let mut stderr = io::stderr();
    let asked = write!(stderr, "{question} ").and_then(|()| stderr.flush());
    asked.map_err(|error| unreadable(&error))?;
    let (answer, answered) = tokio::sync::oneshot::channel();
    // A thread of its own, which nobody waits for when the question is given up.
    std::thread::spawn(move || {
        let _ = answer.send(read_line());
    });
    let line = tokio::select! {
        line = answered => line,
        _ = tokio::signal::ctrl_c() => {
            drop(silence);
            eprintln!();
            std::process::exit(130);
        }
    };
    match line {
        Ok(Ok(line)) => Ok(line),
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(_) => Err(Failure::failed("nothing was read from the terminal")),
    }
}

/// Asks for a text, which is shown.
///
/// # Errors
/// Without a terminal.
pub(super) async fn text(question: &str) -> Result<String, Failure> {
    ask(question, false).await
}

/// Asks for a secret, which is not shown.
///
/// # Errors
/// Without a terminal.
pub(super) async fn secret(question: &str) -> Result<String, Failure> {
    ask(question, true).await
}

/// The first line of standard input.
///
/// # Errors
/// If there is none.
pub(super) fn from_stdin(what: &str) -> Result<String, Failure> {
    let line =
        read_line().map_err(|error| Failure::failed(format!("cannot read {what}: {error}")))?;
    match line.is_empty() {
        true => Err(Failure::usage(format!("standard input holds no {what}"))),
        false => Ok(line),
    }
}
