//! Three peers on real files, and what goes wrong with processes and disks: peers that are killed again and
//! again, disks that fail, fill up, are slow, were damaged or are gone, and leaders that stand still; and on peers
//! that come, go, move, and lose their disks for good.
//!
//! Each test has clients that read and write all the while, and checks everything they saw. Whatever the fault,
//! nothing acknowledged is lost or done twice, reads are never stale, and the peers that are well go on.

mod adding;
mod copied_volume;
mod damaged_log;
mod failing_disk;
mod full_disk;
mod growth;
mod hand_over;
mod kill_rounds;
mod members;
mod membership;
mod paused_leader;
mod retries;
mod slow_disk;
mod stage;
mod two_releases;
mod watches;
mod wiped_volume;
