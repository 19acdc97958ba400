//! `raftserve cluster add`: the command that starts a new peer, and waiting until it has arrived.

mod arrival;
mod command;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use self::arrival::{Lookout, Stage, outcome};
use crate::admin::v1;
use crate::admin::v1::cluster_client::ClusterClient;
use crate::cli::add_args::AddArgs;
use crate::cli::args::Format;
use crate::cli::connect::Servers;
use crate::cli::counted::counted;
use crate::cli::durations::brief;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output;

/// How often the members are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Runs the verb.
pub(super) async fn run(args: AddArgs) -> Result<(), Failure> {
    let mut servers = Servers::new(&args.target)?;
    let known = servers
        .ask(|channel| async move {
            ClusterClient::new(channel)
                .members(v1::MembersRequest {})
                .await
        })
        .await?;
    let address = command::address(&known.members, &args)?;
    command::must_be_free(&known.members, &args)?;
    let argv = command::join_command(&known, &args, address)?;
    let command = command::shell(&argv);
    let value = |peer: Value| json!({ "command": command, "argv": argv, "peer": peer });
    let format = args.output.output;
    let guessed = command::guessed(&args);
    if !guessed.is_empty() {
        eprintln!(
            "{} below {} guessed, and nobody was asked whether the ports are free: say others with the same flags here.",
            guessed.join(", "),
            if guessed.len() == 1 { "is" } else { "are" }
        );
    }
    if args.no_wait {
        return output::print(format, &value(Value::Null), || format!("{command}\n"));
    }
    let told = format!("Run this where the new peer shall be:\n\n  {command}\n\n");
    match format {
        Format::Table => output::write(told.as_bytes())?,
        Format::Json | Format::Yaml => eprint!("{told}"),
    }
    let before = known.members.iter().map(|member| member.id).collect();
    let mut wait = Wait {
        lookout: Lookout::new(before, address.to_string(), args.peer_addr.is_some()),
        begun: Instant::now(),
        timeout: args.timeout,
        display: Display::new(),
    };
    let (member, voters) = wait.run(&mut servers).await?;
    let peer = json!({
        "id": member.id,
        "peer_address": member.peer_address,
        "voter": member.voter,
        "vote": super::vote(&member),
    });
    output::print(format, &value(peer), || {
        outcome(&member, voters, wait.lookout.was_before(member.id))
    })
}

/// A wait for a new peer.
struct Wait {
    lookout: Lookout,
    begun: Instant,
    timeout: Duration,
    display: Display,
}

impl Wait {
    /// Waits until the peer has arrived. Returns how it is, and how many voters there are.
    async fn run(&mut self, servers: &mut Servers) -> Result<(v1::MemberHealth, usize), Failure> {
        loop {
            let waits_for = match self.look(servers).await {
                Ok((Stage::Arrived(member), voters)) => {
                    self.display.end();
                    return Ok((member, voters));
                }
                Ok((Stage::Leaving { id }, _)) => {
                    let message = format!("peer {id} has joined, and was then removed");
                    return Err(Failure::failed(message));
                }
                Ok((stage, _)) => {
                    let text = stage.waits_for(self.lookout.address());
                    let lag = match stage {
                        Stage::Behind { lag: Some(lag), .. } => {
                            format!(", {} behind", counted(lag, "entry", "entries"))
                        }
                        _ => String::new(),
                    };
                    self.display.show(&text, &lag, self.begun.elapsed());
                    text
                }
                // As long as the cluster elects a leader, or has no quorum, nobody can join.
                Err(failure) if failure.exit == Exit::Unavailable => {
                    let text = format!("waiting for a leader ({})", failure.message);
                    self.display.show(&text, "", self.begun.elapsed());
                    text
                }
                Err(failure) => return Err(failure),
            };
            if self.begun.elapsed() >= self.timeout {
                self.display.end();
                let message = format!("not done after {}: {waits_for}", brief(self.timeout));
                let remedy = match self.lookout.has_found() {
                    true => "it goes on: the new peer's own log and `raftserve cluster health` show how far it is".to_owned(),
                    false => format!(
                        "nobody has joined there: the new peer's own log shows why, if the command was run; to wait for it \
                         again, name it: --peer-addr {}",
                        self.lookout.address()
                    ),
                };
                return Err(Failure::new(Exit::Timeout, message).remedy(remedy));
            }
            sleep_until(Instant::now() + LOOK_EVERY).await;
        }
    }

    async fn look(&mut self, servers: &mut Servers) -> Result<(Stage, usize), Failure> {
        let found = servers
            .ask(|channel| async move {
                ClusterClient::new(channel)
                    .health(v1::HealthRequest {})
                    .await
            })
            .await?;
        let voters = found.members.iter().filter(|member| member.voter).count();
        Ok((self.lookout.look(&found.members), voters))
    }
}

/// What has been shown: a line that is drawn again on a terminal, a line per change elsewhere.
struct Display {
    redraw: bool,
    said: String,
}

impl Display {
    fn new() -> Self {
        Self {
            redraw: std::io::stderr().is_terminal(),
            said: String::new(),
        }
    }

    fn show(&mut self, text: &str, detail: &str, elapsed: Duration) {
        let line = match self.redraw {
            true => format!("\r\x1b[2K[{}] {text}{detail}", brief(elapsed)),
            false if self.said == text => return,
            false => format!("[{}] {text}{detail}\n", brief(elapsed)),
        };
        text.clone_into(&mut self.said);
        // Progress that cannot be shown is no reason to stop waiting.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn end(&self) {
        if self.redraw {
            eprintln!();
        }
    }
}
