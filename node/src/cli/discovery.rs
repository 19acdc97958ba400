//! Finds peers where nobody has said where they are: on this host, or in the Kubernetes cluster that the user works with.
//!
//! Whoever listens on this host gets no credential, unless its certificate is of authorities that were named.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use super::args::Target;
use super::connect::{CONNECT_TIMEOUT, DEFAULT_PORT, Errand, Reached};
use super::contexts::{Context, Contexts, Home};
use super::failure::{Exit, Failure};
use super::kubectl::{self, Release, Sought};

/// How a client begins HTTP/2: the preface, and SETTINGS without any (RFC 9113, 3.4).
const HTTP2_CLIENT: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The length of the head of a frame of HTTP/2 (RFC 9113, 4.1).
const FRAME_HEAD: usize = 9;

/// The type of the frame that a server of HTTP/2 begins with, SETTINGS.
const SETTINGS: u8 = 4;

/// The type of a record of TLS that is an alert (RFC 8446, 5.1).
const ALERT: u8 = 21;

/// Who listens at an address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    Nobody,
    /// Somebody who speaks HTTP/2 without TLS, as a peer without certificates does.
    Plain,
    /// Somebody who speaks TLS.
    Tls,
    /// Somebody else.
    Stranger,
}

impl Here {
    /// Begins HTTP/2 with whoever is there.
    fn look(address: SocketAddr) -> Self {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) else {
            return Self::Nobody;
        };
        let mut head = [0; FRAME_HEAD];
        let mut exchange = || -> io::Result<usize> {
            stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
            stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
            stream.write_all(HTTP2_CLIENT)?;
            let mut filled = 0;
            while filled < FRAME_HEAD {
                match stream.read(&mut head[filled..]) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => filled += count,
                }
            }
            Ok(filled)
        };
        let filled = exchange().unwrap_or(0);
        match head[..filled] {
            [_, _, _, SETTINGS, 0, 0, 0, 0, 0] => Self::Plain,
            [ALERT, 3, ..] => Self::Tls,
            _ => Self::Stranger,
        }
    }
}

/// Finds peers. What was `given` by flags and the environment counts first.
///
/// # Errors
/// If it is not clear whom to ask, if a context was named that is for others than those found, or if there is no
/// credential for them.
pub(super) fn find(
    target: &Target,
    errand: Errand,
    contexts: &Contexts,
    given: Context,
) -> Result<Reached, Failure> {
    let search = Search {
        named: target.context.as_deref(),
        errand,
        contexts,
        given,
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
    };
    search.run(&kubectl::find)
}

/// What `kubectl` said, as the end of a sentence.
pub(super) fn told(unfound: Option<&str>) -> String {
    unfound.map_or_else(String::new, |said| {
        format!("; and kubectl finds no release: {said}")
    })
}

/// What is known before anybody is looked for.
struct Search<'a> {
    /// The context that was named; it has no servers.
    named: Option<&'a str>,
    errand: Errand,
    contexts: &'a Contexts,
    given: Context,
    /// Where a peer may be on this host.
    address: SocketAddr,
}

impl Search<'_> {
    fn run(self, kubectl: &dyn Fn() -> Sought) -> Result<Reached, Failure> {
        let here = Here::look(self.address);
        if self.is_asked_first(here) {
            let token = self.given.token.is_some();
            return Ok(self.ask_here(here, None, token));
        }
        match kubectl() {
            Sought::Release(release) => self.through(release),
            Sought::Several(failure) if self.has_credential() || !self.may_ask_here(here) => {
                Err(failure)
            }
            Sought::Several(_) => Ok(self.ask_here(here, None, false)),
            Sought::Nothing(unfound) => {
                self.must_not_insist(here, unfound.as_deref())?;
                match &unfound {
                    Some(said) if here != Here::Nobody && self.has_credential() => {
                        return Err(self.doubt(said));
                    }
                    _ => {}
                }
                Ok(self.ask_here(here, unfound, false))
            }
        }
    }

    /// Whether a credential is there, or is about to be, that is for somebody.
    fn has_credential(&self) -> bool {
        self.errand == Errand::Login || self.given.token.is_some() || self.has_login()
    }

    /// Whether the context in use is a login to a release.
    fn has_login(&self) -> bool {
        let current = self.contexts.current();
        current.is_some_and(|context| context.token.is_some())
    }

    /// Whether whoever is on this host is asked before `kubectl` is.
    fn is_asked_first(&self, here: Here) -> bool {
        match here {
            Here::Plain => self.may_ask_here(here) && !self.has_credential(),
            // Its certificate shows whether it is who is meant.
            Here::Tls => {
                self.named.is_none() && self.given.authorities.is_some() && !self.has_login()
            }
            Here::Nobody | Here::Stranger => false,
        }
    }

    /// Whether this host may be what the user means, where a release is not clear.
    fn may_ask_here(&self, here: Here) -> bool {
        here == Here::Plain
            && self.errand == Errand::Call
            && self.named.is_none()
            && self.given.authorities.is_none()
    }

    /// Asks whoever is on this host.
    fn ask_here(self, here: Here, unfound: Option<String>, with_token: bool) -> Reached {
        let address = self.address;
        let without = match self.given.token.is_some() && !with_token {
            true => ", without the token: --server did not name it",
            false => "",
        };
        if here != Here::Nobody {
            eprintln!("Asking {address}{without}.");
        }
        Reached {
            context: Context {
                servers: vec![address.to_string()],
                token: self.given.token.filter(|_| with_token),
                ..self.given
            },
            name: None,
            forward: None,
            unfound,
        }
    }

    /// # Errors
    /// If there is no release, and nobody else will do.
    fn must_not_insist(&self, here: Here, unfound: Option<&str>) -> Result<(), Failure> {
        let address = self.address;
        if let Some(name) = self.named {
            let said = unfound.map_or_else(String::new, |said| format!(": {said}"));
            return Err(Failure::new(
                Exit::Unavailable,
                format!("context {name} names no servers, and kubectl finds no release{said}"),
            )
            .remedy(
                "choose its Kubernetes cluster with `kubectl config use-context`, or name peers with --server",
            ));
        }
        if self.errand == Errand::Call {
            return Ok(());
        }
        let why = match here {
            Here::Nobody => format!("no peer answers at {address}"),
            Here::Plain | Here::Tls | Here::Stranger => {
                format!("no credential is sent to {address}, which nobody named")
            }
        };
        let failure = Failure::new(Exit::Unavailable, format!("{why}{}", told(unfound)));
        Err(failure.remedy(
            "name the cluster's peers with --server, and the authorities of their certificates with --ca-file",
        ))
    }

    /// Why a peer on this host is not asked by who has a credential, which is for a release: there may be one.
    fn doubt(&self, said: &str) -> Failure {
        let address = self.address;
        let failure = Failure::new(
            Exit::Unavailable,
            format!("kubectl cannot tell whether there is a release: {said}"),
        );
        failure.remedy(format!(
            "mend what it says, or name the peer on this host with --server {address}, which gets the token if there is one: without \
             RAFTSERVE_TOKEN and --context if those are for a release"
        ))
    }

    /// Asks a release.
    fn through(self, release: Release) -> Result<Reached, Failure> {
        eprintln!("Asking release {} through kubectl.", release.home);
        let asks = release.asks_for_credentials();
        let (found, forward) = release.reach()?;
        let (context, name) = self.with_login(found, asks)?;
        Ok(Reached {
            context,
            name,
            forward: Some(forward),
            unfound: None,
        })
    }

    /// What was found, with what was given, and the login that was kept for it; and the name of its context.
    fn with_login(
        self,
        found: Context,
        asks_for_credentials: bool,
    ) -> Result<(Context, Option<String>), Failure> {
        let home = found.release.clone().unwrap_or_default();
        // Who cannot read them from the release may have been told.
        let seen = home.authorities.clone();
        let seen = Home {
            authorities: seen.or_else(|| self.given.authorities.clone()),
            ..home.clone()
        };
        let kept = match self.named {
            Some(name) => {
                let context = self.contexts.named(name)?;
                self.must_be_for(name, context, &seen)?;
                Some((name, context)).filter(|(_, context)| context.is_for(&seen))
            }
            None => self.contexts.of_release(&seen),
        };
        let name = kept.map(|(name, _)| name).or(self.named).map(str::to_owned);
        let mut context = match kept {
            // The authorities are those of the login: its token is for nobody else.
            Some((_, kept)) => found.overridden(Context {
                servers: Vec::new(),
                release: None,
                authorities: (kept.authorities.clone())
                    .or_else(|| kept.release.as_ref()?.authorities.clone()),
                ..kept.clone()
            }),
            None => found,
        };
        context = context.overridden(self.given);
        context.release = Some(home);
        if context.token.is_none() && asks_for_credentials && self.errand == Errand::Call {
            return Err(not_logged_in(&seen, self.contexts));
        }
        Ok((context, name))
    }

    /// # Errors
    /// If the context that was named is for another release, or for one that has other authorities by now. A login may
    /// set the latter right.
    fn must_be_for(&self, name: &str, context: &Context, found: &Home) -> Result<(), Failure> {
        if context.is_for(found) {
            return Ok(());
        }
        match &context.release {
            Some(release) if !release.is_at(found) => Err(Failure::usage(format!(
                "context {name} is a login to release {release}, and kubectl finds release {found}"
            ))
            .remedy("choose the cluster with `kubectl config use-context`, or leave out --context")),
            _ if self.errand == Errand::Login => Ok(()),
            _ => Err(Failure::new(
                Exit::Refused,
                format!(
                    "context {name} is a login to peers with certificates of other authorities than those of release {found}"
                ),
            )
            .remedy(format!("if they were replaced, log in again with `raftserve login --context {name}`"))),
        }
    }
}

fn not_logged_in(found: &Home, contexts: &Contexts) -> Failure {
    let others = contexts.current().filter(|it| !it.is_for(found));
    let other = match others.and_then(|it| it.release.as_ref()) {
        Some(release) if release.is_at(found) => {
            ": its certificates are of other authorities than at the login".to_owned()
        }
        Some(release) => format!(": the login in use is for release {release}"),
        None => String::new(),
    };
    Failure::new(
        Exit::Refused,
        format!("not logged in to release {found}{other}"),
    )
    .remedy("`raftserve login` gets a credential for it; RAFTSERVE_TOKEN gives one for a single command")
}

#[cfg(test)]
mod tests;
