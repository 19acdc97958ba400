//! Peers that know each other by certificates, and clients by credentials.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use jepsen_tests::access::{Authority, Credential, mount, token_line};
use jepsen_tests::admin::{Admin, v1};
use jepsen_tests::cluster::{Cluster, Options, PATIENCE};
use jepsen_tests::program::{Counters, Service};
use jepsen_tests::register::{Workload, check};
use jepsen_tests::wait;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::stage::{self, Share};

/// Tokens, and the password of the user `ann`.
const VIEWER: &str = "viewers-t0ken";
const OPERATOR: &str = "operators-t0ken";
pub(crate) const ADMIN: &str = "admins-t0ken";
pub(crate) const PASSWORD: &str = "anns-s3cret";

/// [`PASSWORD`] as `htpasswd -nB -C 5` hashes it.
const HASH: &str = "$2y$05$bvIG6Nmid91Mu9RcmmWZfOYM2Y4FE97e1LxnbW7Jt1JdXDgibq5Tq";

/// Writes that are enough to have met everything that goes on.
const SOME: u64 = 60;

/// What a protected cluster is given.
pub(crate) struct Protection {
    folder: TempDir,
    authority: Authority,
}

impl Protection {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new()?;
        authority.issue(&folder.path().join("certificates"), &[&authority])?;
        fs::write(folder.path().join("ca.pem"), authority.pem())?;
        let protection = Self { folder, authority };
        protection.set_roles("ann:operator")?;
        Ok(protection)
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn set_roles(&self, roles: &str) -> anyhow::Result<()> {
        let tokens: String = [
            ("look", "viewer", VIEWER),
            ("deploy", "operator", OPERATOR),
            ("root", "admin", ADMIN),
        ]
        .map(|(name, role, token)| token_line(name, role, token))
        .concat();
        mount(
            &self.path("credentials"),
            &[
                ("htpasswd", &format!("ann:{HASH}\n")),
                ("tokens", &tokens),
                ("roles", roles),
            ],
        )
    }

    fn credential(&self, token: &str) -> Credential {
        Credential {
            authorities: self.path("ca.pem"),
            token: Some(token.to_owned()).filter(|token| !token.is_empty()),
            name: None,
        }
    }

    pub(crate) fn options(&self, more: &[&str]) -> Options {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        let flags = [
            "--cert-dir",
            &path("certificates"),
            "--credentials-dir",
            &path("credentials"),
        ];
        Options {
            flags: flags.iter().chain(more).map(|&it| it.to_owned()).collect(),
            credential: Some(self.credential(ADMIN)),
            ..Options::default()
        }
    }

    fn admin(&self, cluster: &Cluster, peer: usize, token: &str) -> Admin {
        let address = cluster.peer(peer).setup.ports.admin;
        Admin::with(address, &self.credential(token))
    }
}

/// What a call was refused with, and the reason in its details.
fn refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    reason: &str,
) -> anyhow::Result<()> {
    let status = answer.err().context("it was not refused")?;
    let details = String::from_utf8_lossy(status.details()).into_owned();
    ensure!(
        status.code() == code && details.contains(reason),
        "{code:?} with {reason} is due: {status:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_do_what_it_may_and_no_more() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let protection = Protection::new()?;
        let cluster = Cluster::start_with(protection.options(&[])).await?;
        let counters = Counters::create(cluster.path("count"))?;
        let yaml = Service::new("web", 1, &counters).yaml();
        let client = |token| protection.admin(&cluster, 1, token);

        for nobody in ["", "another-t0ken", "rsl1.99999999999.616e6e.00"] {
            let reason = if nobody.is_empty() {
                "NO_CREDENTIAL"
            } else {
                "BAD_CREDENTIAL"
            };
            let client = client(nobody);
            refused(client.status().await, Code::Unauthenticated, reason)?;
            refused(client.apply(&yaml).await, Code::Unauthenticated, reason)?;
            refused(client.who_am_i().await, Code::Unauthenticated, reason)?;
        }
        let in_the_clear = Admin::new(cluster.peer(1).setup.ports.admin);
        ensure!(
            in_the_clear.status().await.is_err(),
            "it answers without TLS"
        );

        let viewer = client(VIEWER);
        viewer.status().await?;
        viewer.members().await?;
        ensure!(viewer.services().await?.is_empty(), "there are services");
        refused(
            viewer.apply(&yaml).await,
            Code::PermissionDenied,
            "ROLE_TOO_LOW",
        )?;
        refused(
            viewer.put_key("k", "v", None, None).await,
            Code::PermissionDenied,
            "ROLE_TOO_LOW",
        )?;

        let operator = client(OPERATOR);
        ensure!(operator.who_am_i().await?.name == "deploy", "another name");
        operator.apply(&yaml).await?;
        operator.put_key("k", "v", None, None).await?;
        refused(
            operator.remove_member(cluster.node_id(2)?).await,
            Code::PermissionDenied,
            "ROLE_TOO_LOW",
        )?;
        cluster.settled("web", stage::SETTLE).await?;
        // Raftserve's own secrets are not among the keys, whoever asks.
        let keys = client(ADMIN).keys("").await?;
        ensure!(keys.len() == 1 && keys[0].key == "k", "{keys:?}");
        let own = client(ADMIN).key(".raftserve/login-secret").await;
        refused(own, Code::InvalidArgument, "INVALID_REQUEST")?;
        operator.delete("web").await?;
        cluster.gone("web", stage::SETTLE).await?;

        // Which takes until the peer's lease is over: longer than a call may take here.
        let id = cluster.node_id(2)?;
        let remove = ["cluster", "remove", &id.to_string(), "-y"];
        let removed = cluster.cli(1).json(&remove).await?;
        ensure!(removed["removed"] == id, "{removed}");
        ensure!(
            cluster
                .metric(1, "raftserve_admin_denied_total{reason=\"role\"}")
                .await?
                == 3,
            "three were"
        );
        let log = cluster.peer(1).log_text();
        ensure!(log.contains("subject=\"deploy\""), "who did it is not told");
        for secret in [VIEWER, OPERATOR, ADMIN, "another-t0ken"] {
            ensure!(!log.contains(secret), "{secret} is in the log");
        }
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_good_at_every_peer_until_it_ends() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let protection = Protection::new()?;
        let options = protection.options(&["--login-lifetime", "30s"]);
        let mut cluster = Cluster::start_with(options).await?;
        let wrong = protection
            .admin(&cluster, 0, "")
            .log_in("ann", "guess")
            .await;
        refused(wrong, Code::Unauthenticated, "BAD_CREDENTIAL")?;
        let nobody = protection
            .admin(&cluster, 0, "")
            .log_in("bob", PASSWORD)
            .await;
        refused(nobody, Code::Unauthenticated, "BAD_CREDENTIAL")?;
        let login = protection
            .admin(&cluster, 0, "")
            .log_in("ann", PASSWORD)
            .await?;
        ensure!(login.role == "operator", "{login:?}");

        // At every peer, also at one that was not there when the token was given, and without the one that gave it.
        cluster.kill(2)?;
        cluster.restart(2).await?;
        cluster.kill(0)?;
        for peer in [1, 2] {
            let me = protection
                .admin(&cluster, peer, &login.token)
                .who_am_i()
                .await?;
            ensure!(me.name == "ann" && me.role == "operator", "{me:?}");
        }
        // What the user may do is looked up with each call.
        protection.set_roles("ann:viewer")?;
        let client = protection.admin(&cluster, 1, &login.token);
        wait::until("another role", PATIENCE, async || {
            let me = client.who_am_i().await?;
            ensure!(me.role == "viewer", "{me:?}");
            Ok(())
        })
        .await?;
        let mut watched = client.events(None).await?;
        wait::until("the end of the login", 2 * PATIENCE, async || {
            refused(
                client.who_am_i().await,
                Code::Unauthenticated,
                "CREDENTIAL_EXPIRED",
            )
        })
        .await?;
        // What was begun with it ends with it, though nobody calls again.
        let ended = async {
            loop {
                if let Err(error) = watched.next().await {
                    return error;
                }
            }
        };
        let ended = tokio::time::timeout(2 * PATIENCE, ended).await;
        let ended = ended.context("the stream of events goes on")?;
        let status = ended.downcast::<Status>()?;
        refused(
            Err::<(), _>(status),
            Code::Unauthenticated,
            "CREDENTIAL_EXPIRED",
        )?;
        for peer in 0..3 {
            let log = cluster.peer(peer).log_text();
            for secret in [PASSWORD, "guess", &login.token, HASH] {
                ensure!(
                    !log.contains(secret),
                    "{secret} is in the log of peer {peer}"
                );
            }
        }
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_logs_in_and_keeps_what_it_got_to_itself() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let protection = Protection::new()?;
        let options = Options {
            peers: 1,
            ..protection.options(&[])
        };
        let cluster = Cluster::start_with(options).await?;
        let cli = cluster.cli(0);
        let (home, input) = (cluster.path("home"), cluster.path("input"));
        let server = format!("https://{}", cluster.peer(0).setup.ports.admin);
        let authorities = protection.path("ca.pem");
        let authorities = authorities.to_str().context("a path in UTF-8")?;
        let run = async |args: &[&str]| cli.run_at_home(args, &home, &input).await;

        fs::write(&input, format!("{PASSWORD}\n"))?;
        let ran = run(&["status", "--server", &server, "--ca-file", authorities]).await?;
        ensure!(
            ran.code == Some(6) && ran.stderr.contains("raftserve login"),
            "{ran:?}"
        );
        let ran = run(&["status", "--server", &server]).await?;
        ensure!(
            ran.code == Some(4) && ran.stderr.contains("--ca-file"),
            "{ran:?}"
        );

        let login = [
            "login",
            "--server",
            &server,
            "--user",
            "ann",
            "--password-stdin",
        ];
        let ran =
            run(&[&login[..], &["--ca-file", authorities, "--name", "prod"]].concat()).await?;
        ensure!(ran.code == Some(0), "{ran:?}");
        ensure!(
            ran.stdout.starts_with("Logged in as ann (operator)"),
            "{ran:?}"
        );
        // From now on nothing need be said.
        for args in [
            vec!["status"],
            vec!["status", "--context", "prod"],
            vec!["status", "--server", &server],
            vec!["kv", "put", "a", "b"],
        ] {
            let ran = run(&args).await?;
            ensure!(ran.code == Some(0), "{args:?}: {ran:?}");
        }
        let ran = run(&["cluster", "remove", "1", "-y"]).await?;
        ensure!(
            ran.code == Some(6) && ran.stderr.contains("needs the role admin"),
            "{ran:?}"
        );
        let ran = run(&["context", "list", "--output", "json"]).await?;
        let listed: serde_json::Value = serde_json::from_str(&ran.stdout)?;
        ensure!(
            listed[0]["name"] == "prod" && listed[0]["user"] == "ann",
            "{listed}"
        );

        fs::write(&input, format!("{ADMIN}\n"))?;
        let ran = run(&["login", "--token-stdin", "--name", "root"]).await?;
        ensure!(
            ran.stdout.starts_with("Logged in as root (admin)"),
            "{ran:?}"
        );
        let ran = run(&["context", "use", "prod"]).await?;
        ensure!(ran.code == Some(0), "{ran:?}");
        let ran = run(&["logout"]).await?;
        ensure!(
            ran.code == Some(0) && ran.stdout.starts_with("Logged out of context prod"),
            "{ran:?}"
        );
        let ran = run(&["status", "--output", "json"]).await?;
        let told: serde_json::Value = serde_json::from_str(&ran.stderr)?;
        ensure!(
            ran.code == Some(6) && told["error"]["reason"] == "NO_CREDENTIAL",
            "{ran:?}"
        );
        fs::write(&input, "another\n")?;
        let ran = run(&["login", "--user", "ann", "--password-stdin"]).await?;
        ensure!(
            ran.code == Some(6) && ran.stderr.contains("htpasswd"),
            "{ran:?}"
        );
        let ran = run(&["context", "remove", "root"]).await?;
        ensure!(ran.code == Some(0), "{ran:?}");
        let ran = run(&["status", "--context", "root"]).await?;
        ensure!(
            ran.code == Some(3) && ran.stderr.contains("there are: prod"),
            "{ran:?}"
        );
        check_private(&home.join("raftserve"))?;
        cluster.pass();
        Ok(())
    })
    .await
}

/// The only file is readable by its owner only, and holds no password.
fn check_private(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{} has mode {mode:o}", path.display());
        let text = fs::read_to_string(&path)?;
        ensure!(!text.contains(PASSWORD) && !text.contains(ADMIN), "{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_replaced_under_clients_without_a_lost_write() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let protection = Protection::new()?;
        let new = Authority::new()?;
        let old = &protection.authority;
        fs::write(protection.path("ca.pem"), old.pem() + &new.pem())?;
        let mut cluster = Cluster::start_with(protection.options(&[])).await?;
        let admins: Vec<Admin> = (0..3).map(|peer| cluster.admin(peer)).collect();
        let names = stage::keys(6);
        let mut running = Workload::new(admins.clone(), 7, "rotation/").start(&names);
        running.progress(SOME).await?;
        let steps: [(&Authority, &[&Authority]); 3] =
            [(old, &[old, &new]), (&new, &[old, &new]), (&new, &[&new])];
        for (at, (own, believed)) in steps.into_iter().enumerate() {
            let used = "raftserve_peer_tls_reloads_total{outcome=\"used\"}";
            let mut before = Vec::new();
            for peer in 0..3 {
                before.push(cluster.metric(peer, used).await?);
            }
            own.issue(&protection.path("certificates"), believed)?;
            for (peer, before) in before.into_iter().enumerate() {
                wait::until("new certificates", PATIENCE, async || {
                    let reloads = cluster.metric(peer, used).await?;
                    ensure!(reloads > before, "none yet");
                    Ok(())
                })
                .await?;
            }
            running.progress(SOME).await?;
            // A peer that is killed meets the others, and its clients, with what is new.
            cluster.kill(at)?;
            running.progress(SOME).await?;
            cluster.restart(at).await?;
            running.progress(SOME).await?;
        }
        let seen = running.stop().await?;
        check(seen, &admins).await?;
        let refused = "raftserve_peer_tls_reloads_total{outcome=\"refused\"}";
        for peer in 0..3 {
            ensure!(
                cluster.metric(peer, refused).await? == 0,
                "peer {peer} refused some"
            );
        }
        cluster.pass();
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_authority_is_not_let_in() -> anyhow::Result<()> {
    stage::run(Share::Half, async {
        let protection = Protection::new()?;
        let mut cluster = Cluster::start_with(protection.options(&[])).await?;
        let stranger = cluster.newcomer(&[0])?;
        let elsewhere = protection.path("elsewhere");
        let theirs = Authority::new()?;
        // It believes us, so that only we can turn it away.
        theirs.issue(&elsewhere, &[&theirs, &protection.authority])?;
        let setup = &mut cluster.peer_mut(stranger).setup;
        setup.flags[1] = elsewhere.to_string_lossy().into_owned();
        cluster.peer_mut(stranger).start()?;
        wait::until("refusals", PATIENCE, async || {
            let name = "raftserve_peer_tls_handshakes_refused_total";
            let refused = cluster.metric(0, name).await?;
            ensure!(refused >= 5, "{refused}");
            Ok(())
        })
        .await?;
        let members = cluster.admin(0).members().await?;
        ensure!(members.len() == 3, "{members:?}");
        let told = cluster.peer(0).log_text();
        ensure!(
            told.contains("no handshake with a peer"),
            "it is not told why"
        );
        // With a certificate of ours, and nothing else changed, it is let in.
        cluster
            .peer_mut(stranger)
            .stop(Duration::from_secs(20))
            .await?;
        protection
            .authority
            .issue(&elsewhere, &[&protection.authority])?;
        cluster.restart(stranger).await?;
        wait::until("four members", PATIENCE, async || {
            let members: Vec<v1::Member> = cluster.admin(0).members().await?;
            ensure!(members.len() == 4, "{members:?}");
            Ok(())
        })
        .await?;
        cluster.pass();
        Ok(())
    })
    .await
}
