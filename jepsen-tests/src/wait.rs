//! Waiting for a condition. Never for a time: the pause between two looks is no part of any promise.

use std::time::Duration;

use tokio::time::Instant;

/// The pause between two looks at a condition, at least: short beside an election.
const PAUSE: Duration = Duration::from_millis(20);

/// The same, at most: nobody looks that rarely but where a look itself takes as long.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How many times as long as a look the pause after it is, so that looking costs little beside what is looked at.
const PAUSE_OF_LOOK: u32 = 3;

/// Looks at a condition until it holds, and returns what it found.
///
/// # Errors
/// If it did not hold within `limit`, with what the last look said. A look that takes longer than what
/// is left of `limit` is cut off.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    let mut last = anyhow::anyhow!("no look at it ever ended");
    loop {
        let began = Instant::now();
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(not_yet)) => last = not_yet,
            Err(_) => {}
        }
        let pause = (began.elapsed() * PAUSE_OF_LOOK).clamp(PAUSE, PAUSE_MAX);
        if Instant::now() + pause >= deadline {
            return Err(last.context(format!("waited {limit:?} for {what}")));
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        let found = until("five", Duration::from_secs(1), async || {
            looks += 1;
            if looks < 5 {
                bail!("only {looks}");
            }
            Ok(looks)
        });
        assert_eq!(found.await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_long_to_look_at_is_looked_at_less_often() {
        for (look, looks) in [(10, 22..=25), (100, 3..=3), (200, 2..=2)] {
            let mut done = 0;
            let never = until("nothing", Duration::from_secs(1), async || {
                tokio::time::sleep(Duration::from_millis(look)).await;
                done += 1;
                anyhow::ensure!(done < 0, "not yet");
                Ok(())
            });
            assert!(never.await.is_err());
            assert!(looks.contains(&done), "{done} of {look} ms each");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn giving_up_tells_the_last_reason() {
        let limit = Duration::from_millis(100);
        let error = until("godot", limit, async || -> anyhow::Result<()> {
            bail!("no tree")
        })
        .await
        .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("godot") && text.contains("no tree"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_cut_off() {
        let limit = Duration::from_millis(100);
        let hang = async || -> anyhow::Result<()> { std::future::pending().await };
        assert!(until("nothing", limit, hang).await.is_err());
    }
}
