//! The `Date` field of answers that come without one (RFC 9110, 6.6.1).

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::time::Instant;

/// How long a date is good for: its resolution.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// The length of every date ("Sun, 06 Nov 1994 08:49:37 GMT").
pub(super) const DATE_LEN: usize = 29;

/// A worker's date, made once in a second.
#[derive(Debug, Default)]
pub(crate) struct Date {
    text: Cell<Option<(Instant, [u8; DATE_LEN])>>,
    /// The same as a field's value.
    value: RefCell<Option<([u8; DATE_LEN], HeaderValue)>>,
}

impl Date {
    pub(super) fn at(&self, now: Instant) -> [u8; DATE_LEN] {
        match self.text.get() {
            Some((made, text)) if now.saturating_duration_since(made) < GOOD_FOR => text,
            _ => {
                let text = make();
                self.text.set(Some((now, text)));
                text
            }
        }
    }

    /// The date as a field's value.
    pub(crate) fn field(&self, now: Instant) -> HeaderValue {
        let text = self.at(now);
        let mut value = self.value.borrow_mut();
        match &*value {
            Some((of, value)) if *of == text => value.clone(),
            _ => {
                let made = HeaderValue::from_bytes(&text);
                let made = made.expect("a date is made of visible characters");
                *value = Some((text, made.clone()));
                made
            }
        }
    }
}

fn make() -> [u8; DATE_LEN] {
    #[expect(
        clippy::disallowed_methods,
        reason = "the field tells a wall clock's time, and nothing is decided by it"
    )]
    let now = SystemTime::now();
    let mut text = String::with_capacity(DATE_LEN);
    let _ = write!(text, "{}", httpdate::HttpDate::from(now)); // A string takes all.
    text.as_bytes()
        .try_into()
        .expect("every date until the year 10000 has this length")
}
