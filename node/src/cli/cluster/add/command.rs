//! The command that starts a new peer. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::admin::v1;
use crate::cli::add_args::AddArgs;
use crate::cli::failure::{Exit, Failure};

/// The peer port where a host has one peer; the others have theirs around it.
const PEER: u16 = 7_001;

/// How far the ports of peers on one host are apart.
const STEP: u16 = 100;

/// The highest peer port for which the ports that go with it exist.
const PEER_MAX: u16 = 42_515;

/// A port that goes with a peer port, from those of a first peer.
fn beside(port: u16, of_first: u16) -> u16 {
    let port = i32::from(of_first) + i32::from(port) - i32::from(PEER);
    u16::try_from(port).expect("peer ports are bounded")
}

/// The peers that the new one shall ask to be let in.
fn company(members: &[v1::Member]) -> String {
    let up = members.iter().filter(|member| member.up);
    let addresses: Vec<&str> = up.map(|member| member.peer_address.as_str()).collect();
    addresses.join(",")
}

/// An address that no peer has.
fn free(members: &[v1::Member]) -> Result<SocketAddr, Failure> {
    let addresses: Option<Vec<SocketAddr>> = members
        .iter()
        .map(|member| member.peer_address.parse().ok())
        .collect();
    let highest = addresses
        .into_iter()
        .flatten()
        .max_by_key(SocketAddr::port)
        .filter(|address| address.ip().is_loopback());
    let free = highest.and_then(|highest| {
        let port = highest.port().checked_add(STEP)?;
        Some(SocketAddr::new(highest.ip(), port))
    });
    free.ok_or_else(|| {
        Failure::usage("say with --peer-addr IP:PORT where the others will reach the new peer")
    })
}

/// Where the new peer is to be.
///
/// # Errors
/// If nobody says so, and it cannot be guessed.
pub(super) fn address(members: &[v1::Member], args: &AddArgs) -> Result<SocketAddr, Failure> {
    args.peer_addr.map_or_else(|| free(members), Ok)
}

/// Whether no member that is up has an address that the new peer is given. One that is at --peer-addr itself may be waited
/// for; for the place of one that is down, a command may be had.
///
/// # Errors
/// Which member has which.
pub(super) fn must_be_free(members: &[v1::Member], args: &AddArgs) -> Result<(), Failure> {
    let has = |own: &str, given: Option<SocketAddr>| given.is_some_and(|it| it.to_string() == own);
    for member in members.iter().filter(|member| member.up) {
        let is_peer = has(&member.peer_address, args.peer_addr);
        let taken = match is_peer {
            true => &member.peer_address,
            false if has(&member.admin_address, args.admin_addr) => &member.admin_address,
            false => continue,
        };
        if args.no_wait || !is_peer {
            let message = format!("peer {} has {taken}, and is up", member.id);
            return Err(Failure::new(Exit::Refused, message)
                .remedy("choose another address for the new peer; `raftserve cluster members` shows who has which"));
        }
    }
    Ok(())
}

/// Where Linux takes the ports of clients from: one in there may be in use at any moment.
const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

/// How many ports services have of their own.
const SERVICE_PORTS: u16 = 20;

/// The first port of services that goes with a peer port: none of them is one of [`EPHEMERAL`].
fn service_port_base(port: u16) -> u16 {
    let usual = beside(port, 30_001);
    // Between the ports of this peer and those of the next, or below both.
    let among = [usual, port + 10, port.saturating_sub(20_000)];
    let fits = |base: &u16| base + SERVICE_PORTS <= *EPHEMERAL.start() || base > EPHEMERAL.end();
    among.into_iter().find(fits).unwrap_or(usual)
}

/// The program and its arguments.
///
/// # Errors
/// If no ports go with the address, or it lacks protection.
pub(super) fn join_command(
    known: &v1::MembersResponse,
    args: &AddArgs,
    address: SocketAddr,
) -> Result<Vec<String>, Failure> {
    let members = &known.members;
    let port = address.port();
    if !guessed(args).is_empty() && !(2..=PEER_MAX).contains(&port) {
        return Err(Failure::usage(format!(
            "the new peer's address would be {address}, and no ports go with that"
        ))
        .remedy(format!(
            "choose a free port from 2 to {PEER_MAX} with --peer-addr, or say all of --admin-addr, --ops-addr, --proxy-addr \
             and --service-port-base"
        )));
    }
    let protection = [
        ("--cert-dir", &args.cert_dir),
        ("--credentials-dir", &args.credentials_dir),
    ];
    let is_protected = protection.iter().all(|(_, directory)| directory.is_some());
    if !address.ip().is_loopback() && !is_protected {
        return Err(Failure::usage(format!(
            "{address} is reached from other hosts, where a peer needs certificates and credentials"
        ))
        .remedy("say with --cert-dir and --credentials-dir where they will be"));
    }
    let data_dir = args
        .data_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("/var/lib/raftserve/{port}")));
    let own = |given: Option<SocketAddr>, of_first| {
        given.unwrap_or_else(|| SocketAddr::new(address.ip(), beside(port, of_first)))
    };
    let proxy = args.proxy_addr.unwrap_or_else(|| {
        let everywhere = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let host = Some(address.ip()).filter(IpAddr::is_loopback);
        SocketAddr::new(host.unwrap_or(everywhere), beside(port, 8_080))
    });
    let base = args
        .service_port_base
        .unwrap_or_else(|| service_port_base(port));
    let flags = [
        ("--data-dir", data_dir.display().to_string()),
        ("--join", company(members)),
        ("--peer-addr", address.to_string()),
        ("--admin-addr", own(args.admin_addr, 7_000).to_string()),
        ("--ops-addr", own(args.ops_addr, 7_002).to_string()),
        ("--proxy-addr", proxy.to_string()),
        ("--service-port-base", base.to_string()),
    ];
    let mut argv = ["raftserve", "node"].map(str::to_owned).to_vec();
    argv.extend(
        flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]),
    );
    for (flag, directory) in protection {
        if let Some(directory) = directory {
            argv.extend([flag.to_owned(), directory.display().to_string()]);
        }
    }
    // Where it would lead without it, it would find no replica.
    if !known.replica_root.is_empty() {
        argv.extend(["--replica-root".to_owned(), known.replica_root.clone()]);
    }
    if args.learner {
        argv.push("--learner".to_owned());
    }
    Ok(argv)
}

/// The flags of the command whose values nobody has given.
pub(super) fn guessed(args: &AddArgs) -> Vec<&'static str> {
    let given = [
        ("--peer-addr", args.peer_addr.is_some()),
        ("--admin-addr", args.admin_addr.is_some()),
        ("--ops-addr", args.ops_addr.is_some()),
        ("--proxy-addr", args.proxy_addr.is_some()),
        ("--service-port-base", args.service_port_base.is_some()),
    ];
    let missing = given.into_iter().filter(|(_, is_given)| !is_given);
    missing.map(|(flag, _)| flag).collect()
}

/// As a shell reads it.
pub(super) fn shell(argv: &[String]) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:,[]".contains(letter);
    let word = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::node_args::NodeArgs;
    use crate::config::NodeConfig;

    #[derive(Debug, Parser)]
    struct Add {
        #[command(flatten)]
        args: AddArgs,
    }

    #[derive(Debug, Parser)]
    struct Node {
        #[command(flatten)]
        args: NodeArgs,
    }

    fn member(id: u64, address: &str, up: bool) -> v1::Member {
        v1::Member {
            id,
            peer_address: address.to_owned(),
            up,
            ..v1::Member::default()
        }
    }

    fn members() -> [v1::Member; 3] {
        [
            member(1, "127.0.0.1:7001", true),
            member(2, "127.0.0.1:7101", false),
            member(3, "127.0.0.1:7201", true),
        ]
    }

    fn asked(members: &[v1::Member], flags: &[&str]) -> Result<Vec<String>, Failure> {
        let words = ["add"].iter().chain(flags);
        let known = v1::MembersResponse {
            members: members.to_vec(),
            replica_root: "/srv/replicas".to_owned(),
            ..v1::MembersResponse::default()
        };
        let args = Add::try_parse_from(words).unwrap().args;
        join_command(&known, &args, address(members, &args)?)
    }

    #[test]
    fn the_command_names_the_living_and_has_ports_of_its_own() {
        let argv = asked(&members(), &[]).unwrap();
        assert_eq!(
            shell(&argv),
            "raftserve node --data-dir /var/lib/raftserve/7301 --join 127.0.0.1:7001,127.0.0.1:7201 --peer-addr \
             127.0.0.1:7301 --admin-addr 127.0.0.1:7300 --ops-addr 127.0.0.1:7302 --proxy-addr 127.0.0.1:8380 \
             --service-port-base 30301 --replica-root /srv/replicas"
        );
        let flags = [
            "--peer-addr",
            "[::1]:42515",
            "--learner",
            "--data-dir",
            "a b",
        ];
        let argv = asked(&members(), &flags).unwrap();
        let text = shell(&argv);
        for part in [
            "--data-dir 'a b' ",
            " [::1]:42514 ",
            " 65515 --replica-root /srv/replicas --learner",
        ] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
    }

    #[test]
    fn what_is_given_is_not_guessed() {
        let flags = [
            "--peer-addr=127.0.0.1:60000",
            "--admin-addr=127.0.0.1:1",
            "--ops-addr=127.0.0.1:2",
            "--proxy-addr=0.0.0.0:3",
            "--service-port-base=4",
        ];
        let text = shell(&asked(&members(), &flags).unwrap());
        let said = "--peer-addr 127.0.0.1:60000 --admin-addr 127.0.0.1:1 --ops-addr 127.0.0.1:2 --proxy-addr 0.0.0.0:3 \
                    --service-port-base 4 ";
        assert!(text.contains(said), "{text}");
        let guessed = |flags: &[&str]| {
            let words = ["add"].iter().chain(flags);
            guessed(&Add::try_parse_from(words).unwrap().args)
        };
        assert!(guessed(&flags).is_empty());
        assert_eq!(guessed(&flags[..4]), ["--service-port-base"]);
        assert_eq!(guessed(&[]).len(), 5);
        // Such a port leaves no room for the others beside it.
        assert!(asked(&members(), &flags[..4]).is_err());
    }

    #[test]
    fn every_command_is_one_that_node_takes() {
        for flags in [
            &[][..],
            &["--peer-addr", "127.0.0.1:2"],
            &["--peer-addr", "127.0.0.1:42515", "--learner"],
            &[
                "--peer-addr",
                "10.0.0.4:7001",
                "--cert-dir",
                "c",
                "--credentials-dir",
                "d",
            ],
        ] {
            let argv = asked(&members(), flags).unwrap();
            let node = Node::try_parse_from(&argv[1..]).unwrap();
            let config = NodeConfig::try_from(node.args).unwrap();
            assert_eq!(config.join, ["127.0.0.1:7001", "127.0.0.1:7201"]);
            assert_eq!(config.replica_root, PathBuf::from("/srv/replicas"));
        }
    }

    #[test]
    fn guessed_ports_are_out_of_reach_of_others_and_of_ports_of_clients() {
        for port in (2..=PEER_MAX).step_by(7) {
            let base = service_port_base(port);
            let own = [port - 1, port, port + 1, beside(port, 8_080)];
            for service in base..=base + (SERVICE_PORTS - 1) {
                assert!(!EPHEMERAL.contains(&service), "{port}: {base}");
                assert!(!own.contains(&service), "{port}: {base}");
            }
        }
        assert_eq!(service_port_base(7_301), 30_301);
        assert_eq!(service_port_base(27_401), 27_411);
        let protection = ["--cert-dir=c", "--credentials-dir=d"];
        let far = [&["--peer-addr=10.0.0.4:7001"], &protection[..]].concat();
        let text = shell(&asked(&members(), &far).unwrap());
        assert!(text.contains("--proxy-addr 0.0.0.0:8080 "), "{text}");
    }

    #[test]
    fn an_address_of_a_member_that_is_up_is_not_given_to_another() {
        let mut members = members();
        members[0].admin_address = "127.0.0.1:7000".to_owned();
        let refused = |flags: &[&str]| {
            let words = ["add"].iter().chain(flags);
            let args = Add::try_parse_from(words).unwrap().args;
            must_be_free(&members, &args).err().map(|it| it.message)
        };
        for flags in [
            &["--no-wait", "--peer-addr=127.0.0.1:7001"][..],
            &["--no-wait", "--admin-addr=127.0.0.1:7000"],
            &["--admin-addr=127.0.0.1:7000"],
        ] {
            let message = refused(flags).unwrap();
            assert!(message.starts_with("peer 1 has 127.0.0.1:700"), "{message}");
        }
        for flags in [
            &["--peer-addr=127.0.0.1:7001", "--admin-addr=127.0.0.1:7000"][..],
            &["--no-wait", "--peer-addr=127.0.0.1:7101"],
            &["--no-wait"],
        ] {
            assert_eq!(refused(flags), None, "{flags:?}");
        }
    }

    #[test]
    fn an_address_that_others_reach_needs_protection() {
        let refused = asked(&members(), &["--peer-addr", "10.0.0.4:7001"]).unwrap_err();
        let remedy = refused.remedy.unwrap();
        assert!(
            remedy.contains("--cert-dir and --credentials-dir"),
            "{remedy}"
        );
    }

    #[test]
    fn an_address_that_cannot_be_guessed_is_asked_for() {
        for members in [
            &[member(1, "peer-1.example:7001", true)][..],
            &[member(1, "10.0.0.1:7001", true)],
            &[member(1, "127.0.0.1:65500", true)],
        ] {
            let refused = asked(members, &[]).unwrap_err();
            assert!(refused.message.contains("--peer-addr"), "{refused:?}");
        }
        let refused = asked(&[member(1, "127.0.0.1:60000", true)], &[]).unwrap_err();
        assert!(refused.message.contains("127.0.0.1:60100"), "{refused:?}");
    }
}
