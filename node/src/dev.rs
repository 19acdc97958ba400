//! `raftserve dev`: a whole cluster on this machine, for as long as it runs.
//!
//! Three peers are started as processes of their own, a service is brought up on them, and what goes
//! on is shown until Ctrl-C. What holds, however it ends: nothing that it started runs on. Peers and
//! the keepers of replicas hold on to its `lifeline`; with SIGKILL too the kernel closes that.
//! State stays only where `--data-dir` names a place for it.
//!
//! Everything goes through public surfaces: the peers are `raftserve node` with flags, and services
//! are applied by the admin API, as anyone would.

mod admin_client;
mod chaos;
mod fleet;
mod frame;
mod home;
mod leftovers;
mod lifeline;
mod observation;
mod peer_process;
mod ports;
mod screen;
mod service_file;
mod session_watch;
mod story;
mod tally;
mod traffic;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::admin::v1::IfExists;
use crate::cli::dev_args::DevArgs;
use admin_client::PeerAdmin;
use fleet::{Fleet, PeerNews};
use home::{Home, Keep};
use lifeline::Lifeline;
use observation::{Observation, Observer};
use peer_process::PeerLaunch;
use ports::Block;
use screen::Screen;
use service_file::ServiceFile;
use story::Story;
use tally::Tally;

/// How many peers there are: the fewest that get over the loss of any one.
const PEERS: u16 = 3;

/// How often the frame is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(500);

/// How often the counts are written where no frame is drawn.
const COUNTS_INTERVAL: Duration = Duration::from_secs(10);

/// How many lines may wait to be written. Whoever has more waits.
const LINES_MAX: usize = 64;

/// The shortest pause between two kills: a peer needs about that long to come back.
const CHAOS_MIN: Duration = Duration::from_secs(1);

/// The exit code for wrong usage, or a service YAML with errors.
const USAGE: u8 = 2;

/// Runs a cluster until Ctrl-C, SIGTERM, or something that makes it pointless.
#[must_use]
pub fn run(args: DevArgs) -> ExitCode {
    let file = match preflight(&args) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("raftserve dev: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run_in_home(args, file)),
        Err(error) => Err(anyhow!("cannot start: {error}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raftserve dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Checks all that can be checked before anything is made or started.
fn preflight(args: &DevArgs) -> Result<Option<ServiceFile>> {
    if args.chaos.is_some() && args.service.is_none() && args.data_dir.is_none() {
        bail!("--chaos needs a service to send traffic to: name a SERVICE.yaml");
    }
    if args.chaos.is_some_and(|every| every < CHAOS_MIN) {
        bail!("--chaos is at least {CHAOS_MIN:?}: a killed peer has to come back before the next");
    }
    let read = |path: &PathBuf| ServiceFile::read(path, args.name.as_deref());
    args.service.as_ref().map(read).transpose()
}

async fn run_in_home(args: DevArgs, file: Option<ServiceFile>) -> Result<()> {
    // Before anything is started: from here on a signal means an orderly end.
    let mut signals = Signals::new()?;
    let home = match &args.data_dir {
        Some(path) => Home::at(path)?,
        None => Home::fresh()?,
    };
    let mut screen = Screen::stdout();
    let ended = run_cluster(&home, args.chaos, file, &mut screen, &mut signals).await;
    let farewell = farewell(home.keep(), home.path(), &program());
    let closed = home.close();
    let ended = ended.and(closed);
    if ended.is_ok() {
        // Whether anybody reads it decides nothing any more.
        let _ = screen.say(&farewell);
    }
    ended
}

/// What is left once all is stopped, and how to go on with it.
fn farewell(keep: Keep, home: &Path, program: &Path) -> String {
    let (data_dir, program) = (shell_word(home), shell_word(program));
    let home = home.display();
    let stopped = "stopped: the peers, and every replica that they ran";
    match keep {
        Keep::Remove => format!(
            "{stopped}; nothing stays, {home} is removed\n`{program} dev` starts afresh; with --data-dir DIR the data stays"
        ),
        Keep::Stay => format!(
            "{stopped}; the data stays in {home}\n`{program} dev --data-dir {data_dir}` goes on with it; remove the directory to \
             forget it"
        ),
    }
}

/// Starts everything, and sees to it that nothing is left of it afterwards.
async fn run_cluster(
    home: &Home,
    chaos: Option<Duration>,
    file: Option<ServiceFile>,
    screen: &mut Screen,
    signals: &mut Signals,
) -> Result<()> {
    let claims = claim_ports(home, screen)?;
    let blocks: Vec<Block> = claims.iter().map(|claim| claim.block).collect();
    let resumed = home.settings().is_some();
    home.remember(blocks.clone())?;
    let lifeline = Lifeline::hold(home.lifeline())?;
    let launches: Vec<PeerLaunch> = (1..=PEERS)
        .map(|number| PeerLaunch::new(home, number, &blocks))
        .collect();
    let ended = match introduce(home, &launches, resumed, screen) {
        Ok(()) => live(launches, chaos, file, resumed, screen, signals).await,
        Err(error) => Err(error.into()),
    };
    // The peers are gone; now what outlived them.
    lifeline.cut().await;
    let left = leftovers::clear(home.path(), &home.replicas()).await;
    if !left.killed.is_empty() {
        let _ = screen.tell(&format!(
            "processes {:?} did not end by themselves, and were killed",
            left.killed
        ));
    }
    if !left.remaining.is_empty() {
        let error = anyhow!(
            "processes {:?} still run, and could not be killed",
            left.remaining
        );
        return ended.and(Err(error));
    }
    ended
}

fn claim_ports(home: &Home, screen: &mut Screen) -> Result<Vec<ports::Claim>> {
    let mut claims = Vec::new();
    for number in 1..=PEERS {
        let remembered = home
            .settings()
            .and_then(|settings| settings.blocks.get(usize::from(number - 1)))
            .copied();
        let claim = ports::claim(number, remembered).context("cannot find ports")?;
        if let Some(taken) = claim.moved_because {
            let block = claim.block;
            screen.say(&format!(
                "{taken}: peer {number} moves to ports {} (proxy), {} (admin), {} (peer), {} (ops) and {} to {} (services)",
                block.proxy().port(),
                block.admin().port(),
                block.peer().port(),
                block.ops().port(),
                block.service_base(),
                block.service_last(),
            ))?;
        }
        claims.push(claim);
    }
    Ok(claims)
}

fn introduce(
    home: &Home,
    launches: &[PeerLaunch],
    resumed: bool,
    screen: &mut Screen,
) -> io::Result<()> {
    let fate = match (home.keep(), resumed) {
        (Keep::Remove, _) => "fresh, removed at exit",
        (Keep::Stay, false) => "new, kept",
        (Keep::Stay, true) => "resumed, kept",
    };
    screen.say(&format!(
        "data directory {} ({fate})",
        home.path().display()
    ))?;
    for launch in launches {
        screen.say(&format!(
            "peer {} logs to {}",
            launch.number,
            launch.log.display()
        ))?;
    }
    Ok(())
}

/// Runs the peers until the end, and stops them.
async fn live(
    launches: Vec<PeerLaunch>,
    chaos: Option<Duration>,
    file: Option<ServiceFile>,
    resumed: bool,
    screen: &mut Screen,
    signals: &mut Signals,
) -> Result<()> {
    let blocks: Vec<Block> = launches.iter().map(|launch| launch.block).collect();
    let mut fleet = Fleet::start(launches).await?;
    let peers: Vec<PeerAdmin> = blocks.iter().copied().map(PeerAdmin::new).collect();
    let (see, seen) = watch::channel(Observation::default());
    let observer = Observer::new(peers.clone(), fleet.phases());
    let observing = tokio::spawn(observer.run(see));
    let (lines, said) = mpsc::channel(LINES_MAX);
    let answered = watch::Sender::new(false);
    let tally = watch::Sender::new(Tally::default());
    let story = Story {
        peers,
        blocks: blocks.clone(),
        seen: seen.clone(),
        lines,
        answered: answered.clone(),
        file,
        if_exists: match resumed {
            true => IfExists::Update,
            false => IfExists::Unspecified,
        },
        chaos,
        kills: fleet.kills(),
        tally: tally.clone(),
        program: program(),
        former: BTreeSet::new(),
    };
    let mut show = Show {
        screen,
        blocks,
        seen,
        shown: Observation::default(),
        said,
        answered: answered.subscribe(),
        tally: chaos.map(|_| tally.subscribe()),
    };
    let ended = tokio::select! {
        biased;
        () = signals.stop() => Ok(()),
        ended = show.run(&mut fleet) => ended.map(|never| match never {}),
        ended = story.run() => ended.map(|never| match never {}),
    };
    show.stop(&mut fleet, signals).await;
    observing.abort();
    ended
}

/// What to call this program in commands to try: as short as it can be found from here.
fn program() -> PathBuf {
    let Ok(path) = std::env::current_exe() else {
        return PathBuf::from("raftserve");
    };
    let below = std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(PathBuf::from));
    below.unwrap_or(path)
}

/// A path as a shell takes it for one word.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+,:@%=".contains(letter);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// What holds the screen.
struct Show<'a> {
    screen: &'a mut Screen,
    blocks: Vec<Block>,
    seen: watch::Receiver<Observation>,
    /// What was last shown of what was seen.
    shown: Observation,
    said: mpsc::Receiver<String>,
    answered: watch::Receiver<bool>,
    tally: Option<watch::Receiver<Tally>>,
}

impl Show<'_> {
    /// Shows what happens, for ever.
    ///
    /// # Errors
    /// If nobody reads any more, or a peer ended before the cluster ever answered.
    async fn run(&mut self, fleet: &mut Fleet) -> Result<Infallible> {
        let mut draw = interval(DRAW_INTERVAL);
        draw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut counts = interval(COUNTS_INTERVAL);
        loop {
            tokio::select! {
                biased;
                Some(news) = fleet.news() => self.show_news(&news)?,
                Ok(()) = self.seen.changed() => self.show_changes()?,
                Some(line) = self.said.recv() => self.screen.say(&line)?,
                _ = draw.tick() => self.draw(false)?,
                _ = counts.tick() => self.show_counts()?,
            }
        }
    }

    fn show_news(&mut self, news: &PeerNews) -> Result<()> {
        match news {
            PeerNews::Ended { .. } if !*self.answered.borrow() => bail!("{news}"),
            _ => Ok(self.screen.tell(&news.to_string())?),
        }
    }

    fn show_changes(&mut self) -> io::Result<()> {
        let seen = self.seen.borrow_and_update().clone();
        for line in observation::changes(&self.shown, &seen) {
            self.screen.tell(&line)?;
        }
        self.shown = seen;
        self.draw(false)
    }

    fn draw(&mut self, stopping: bool) -> io::Result<()> {
        let tally = self.tally.as_ref().map(|tally| tally.borrow().clone());
        let frame = frame::frame(&self.shown, &self.blocks, tally.as_ref(), stopping);
        self.screen.draw(frame)
    }

    /// Writes the counts as a line, if there is no frame that shows them and anything was counted.
    fn show_counts(&mut self) -> io::Result<()> {
        match &self.tally {
            Some(tally) if !self.screen.is_live() && tally.borrow().plain.sent > 0 => {
                let line = tally.borrow().to_string();
                self.screen.tell(&line)
            }
            _ => Ok(()),
        }
    }

    /// Stops the peers: in good order, or at once when asked again.
    async fn stop(mut self, fleet: &mut Fleet, signals: &mut Signals) {
        // Whether anybody reads what is written here decides nothing any more.
        let _ = self.draw(true);
        let _ = self.screen.clear();
        if let Some(tally) = &self.tally {
            let line = tally.borrow().to_string();
            let _ = self.screen.tell(&line);
        }
        let _ = self.screen.tell("stopping");
        let hurry = CancellationToken::new();
        let hurrying = async {
            signals.stop().await;
            hurry.cancel();
            std::future::pending::<Infallible>().await
        };
        let forced = tokio::select! {
            forced = fleet.stop(&hurry) => forced,
            never = hurrying => match never {},
        };
        for news in forced {
            let _ = self.screen.tell(&news.to_string());
        }
    }
}

/// The signals that ask for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel safe.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_stays_and_how_to_go_on() {
        let said = |keep| farewell(keep, Path::new("/data"), Path::new("raftserve"));
        let kept = said(Keep::Stay);
        assert!(kept.contains("the data stays in /data"), "{kept}");
        assert!(kept.contains("`raftserve dev --data-dir /data`"), "{kept}");
        let removed = said(Keep::Remove);
        assert!(removed.contains("/data is removed"), "{removed}");
    }

    #[test]
    fn a_command_to_try_can_be_pasted_whatever_its_paths() {
        let said = farewell(Keep::Stay, Path::new("/my data"), Path::new("/a b/it's"));
        let command = r"`'/a b/it'\''s' dev --data-dir '/my data'`";
        assert!(said.contains(command), "{said}");
        assert!(said.contains("stays in /my data\n"), "{said}");
    }
}
