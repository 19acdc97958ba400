use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use raftserve_model::ClusterId;

use super::super::digest::Digest;
use super::super::login::LoginSecret;
use super::super::role::Role;
use super::*;

/// Of the password "secret", at bcrypt's least cost but one.
const ANN: &str = "ann:$2y$05$bvIG6Nmid91Mu9RcmmWZfOSUJnPNP88kp.Eu9puakB65/9Xoyz6P.";
const NOW: UnixSeconds = UnixSeconds(1_000);

struct Lab(tempfile::TempDir, Credentials);

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let token = format!("ci:viewer:{}\n", Digest::of(b"t0ken"));
        std::fs::write(directory.path().join("htpasswd"), ANN).unwrap();
        std::fs::write(directory.path().join("tokens"), token).unwrap();
        std::fs::write(directory.path().join("roles"), "ann:operator").unwrap();
        let credentials = Credentials::read(directory.path().to_owned(), Duration::from_secs(60));
        Self(directory, credentials.unwrap())
    }

    fn write(&self, file: &str, text: &str) {
        // Another inode, as an editor or Kubernetes makes one.
        let fresh = self.0.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, self.0.path().join(file)).unwrap();
        self.1.refresh();
    }

    fn identify(&self, authorization: &str) -> Result<Role, Unknown> {
        self.identify_at(authorization, NOW)
    }

    fn identify_at(&self, authorization: &str, now: UnixSeconds) -> Result<Role, Unknown> {
        let known = self.1.identify(Some(authorization), || Some(realm(7)), now);
        known.map(|subject| subject.role)
    }

    async fn log_in(&self, user: &str, password: &str) -> Result<Login, Unknown> {
        let password = password.to_owned();
        self.1.log_in(user, password, &realm(7), NOW).await
    }
}

fn realm(cluster: u8) -> Realm {
    Realm {
        cluster: ClusterId([cluster; 16]),
        secret: LoginSecret::read(&[3; 32]).unwrap(),
    }
}

#[test]
fn who_shows_a_token_is_known_by_it() {
    let lab = Lab::new();
    assert_eq!(lab.identify("Bearer t0ken"), Ok(Role::Viewer));
    assert_eq!(lab.identify("bearer t0ken"), Ok(Role::Viewer));
    assert_eq!(lab.identify("Bearer other"), Err(Unknown::Bad));
    assert_eq!(lab.identify("Bearer "), Err(Unknown::Bad));
    assert_eq!(
        lab.identify("Basic YW5uOnNlY3JldA=="),
        Err(Unknown::NoBearer)
    );
    assert_eq!(lab.identify("t0ken"), Err(Unknown::NoBearer));
    let nothing = lab.1.identify(None, || Some(realm(7)), NOW);
    assert_eq!(nothing, Err(Unknown::NoCredential));
}

#[tokio::test]
async fn a_password_is_exchanged_for_a_token_that_ends() {
    let lab = Lab::new();
    let login = lab.log_in("ann", "secret").await.ok().unwrap();
    assert_eq!(login.subject.role, Role::Operator);
    assert_eq!(login.until, UnixSeconds(1_060));
    let bearer = format!("Bearer {}", login.token);
    assert_eq!(lab.identify(&bearer), Ok(Role::Operator));
    assert_eq!(
        lab.identify_at(&bearer, UnixSeconds(1_059)),
        Ok(Role::Operator)
    );
    assert_eq!(
        lab.identify_at(&bearer, UnixSeconds(1_060)),
        Err(Unknown::Expired)
    );
    for (user, password) in [("ann", "Secret"), ("ann", ""), ("bob", ""), ("ci", "t0ken")] {
        assert_eq!(lab.log_in(user, password).await.err(), Some(Unknown::Bad));
    }
    let other = lab.1.identify(Some(&bearer), || Some(realm(8)), NOW);
    assert_eq!(other, Err(Unknown::Bad));
    let none_yet = lab.1.identify(Some(&bearer), || None, NOW);
    assert_eq!(none_yet, Err(Unknown::NotCaughtUp));
}

#[tokio::test]
async fn roles_and_passwords_change_while_tokens_are_out() {
    let lab = Lab::new();
    let bearer = format!(
        "Bearer {}",
        lab.log_in("ann", "secret").await.ok().unwrap().token
    );
    lab.write("roles", "ann:viewer");
    assert_eq!(lab.identify(&bearer), Ok(Role::Viewer));
    let hash = "$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0";
    lab.write("htpasswd", &format!("ann:{hash}"));
    assert_eq!(lab.identify(&bearer), Err(Unknown::Bad));
    // The same password under a new hash: a new login works, the old token does not.
    let again = lab.log_in("ann", "secret").await.ok().unwrap();
    assert_eq!(
        lab.identify(&format!("Bearer {}", again.token)),
        Ok(Role::Viewer)
    );
    lab.write("htpasswd", "");
    assert_eq!(
        lab.identify(&format!("Bearer {}", again.token)),
        Err(Unknown::Bad)
    );
    assert_eq!(lab.identify("Bearer t0ken"), Ok(Role::Viewer));
    assert!(
        lab.1.render().contains("{outcome=\"used\"} 3"),
        "{}",
        lab.1.render()
    );
}

#[test]
fn bad_files_change_nothing_and_are_counted() {
    let lab = Lab::new();
    lab.write("tokens", "ci:boss:x");
    assert_eq!(lab.identify("Bearer t0ken"), Ok(Role::Viewer));
    assert!(
        lab.1.render().contains("{outcome=\"refused\"} 1"),
        "{}",
        lab.1.render()
    );
    let nothing = tempfile::tempdir().unwrap();
    let refused = Credentials::read(nothing.path().to_owned(), LOGIN_LIFETIME).unwrap_err();
    assert!(
        refused.to_string().contains("holds no credential"),
        "{refused}"
    );
}

#[tokio::test]
async fn no_more_passwords_are_checked_than_there_are_places() {
    let lab = Lab::new();
    // No check begins before all have asked, however quick the processor is and whoever else it works for.
    let checks = Arc::clone(&lab.1.checks).acquire_many_owned(CHECKS_MAX as u32);
    let checks = checks.await.unwrap();
    let logins = (0..CHECKS_MAX + WAITING_MAX + 8).map(|_| lab.log_in("ann", "secret"));
    let mut logins: FuturesUnordered<_> = logins.collect();
    for _ in 0..8 {
        assert_eq!(logins.next().await.unwrap().err(), Some(Unknown::Busy));
    }
    assert!(logins.next().now_or_never().is_none(), "the others wait");
    drop(checks);
    let outcomes: Vec<_> = logins.collect().await;
    assert_eq!(outcomes.len(), CHECKS_MAX + WAITING_MAX);
    assert!(outcomes.iter().all(Result::is_ok));
}

#[test]
fn a_name_that_is_nobody_s_is_checked_as_long_as_some_user_s() {
    let lab = Lab::new();
    let ben = "ben:$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0";
    lab.write("htpasswd", &format!("{ANN}\n{ben}\n"));
    let realm = realm(1);
    let users = ["ann", "ben"].map(|name| lab.1.to_check(name, &realm));
    let mut met = std::collections::BTreeSet::new();
    for number in 0..100 {
        let name = format!("nobody{number}");
        let (hash, role) = lab.1.to_check(&name, &realm);
        assert_eq!(role, None);
        assert!(hash == lab.1.to_check(&name, &realm).0, "always the same");
        let whose = users.iter().position(|(known, _)| *known == hash);
        met.insert(whose.expect("of a user"));
    }
    assert_eq!(met.len(), users.len(), "of all of them");
}
