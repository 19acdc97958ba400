//! Waiting for a condition. Never for a time: the pause between two looks is no part of any promise.

use std::time::Duration;

use tokio::time::Instant;

/// The pause between two looks at a condition: short beside an election, long beside what a look costs.
const PAUSE: Duration = Duration::from_millis(20);

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
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(not_yet)) => last = not_yet,
            Err(_) => {}
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(last.context(format!("waited {limit:?} for {what}")));
        }
        tokio::time::sleep(PAUSE).await;
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
