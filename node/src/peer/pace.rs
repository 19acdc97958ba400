//! News at a pace: the first is told at once, and what follows it closely is told together.
//!
//! Routing, control and sessions look at the applied state whenever it changes. Under thousands of small writes
//! that do not concern them, each of those looks would cost a wake of another thread.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// The pause after each telling: little beside what is done with the news, long beside a group of writes.
const PAUSE: Duration = Duration::from_millis(4);

/// Follows `source` from now on until it is gone, or nobody listens any more. The newest value is always told in the end.
pub(crate) fn paced<T: Clone + PartialEq + Send + Sync + 'static>(
    mut source: watch::Receiver<T>,
) -> watch::Receiver<T> {
    let (told, paced) = watch::channel(source.borrow_and_update().clone());
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                changed = source.changed() => changed,
                () = told.closed() => return,
            };
            if changed.is_err() {
                return;
            }
            let newest = source.borrow_and_update().clone();
            if told.send(newest).is_err() {
                return;
            }
            sleep(PAUSE).await;
        }
    });
    paced
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_and_the_last_are_told_and_few_between() {
        let (source, follow) = watch::channel(0);
        let mut paced = paced(follow);
        let begun = Instant::now();
        source.send(1).unwrap();
        paced.changed().await.unwrap();
        assert_eq!(
            (*paced.borrow_and_update(), begun.elapsed()),
            (1, Duration::ZERO)
        );
        for value in 2..=100 {
            source.send(value).unwrap();
        }
        let told = timeout(PAUSE * 10, paced.changed()).await;
        told.expect("it is told").unwrap();
        assert_eq!(*paced.borrow_and_update(), 100);
        assert_eq!(begun.elapsed(), PAUSE);
        drop(source);
        assert!(paced.changed().await.is_err());
    }
}
