use std::net::TcpListener;
use std::thread;

use super::super::contexts::Token;
use super::*;

/// Somebody who answers whatever comes first with `answer`.
fn somebody(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(answer);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = io::copy(&mut stream, &mut io::sink());
        }
    });
    address
}

/// At an address of its own, where no other test listens meanwhile.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.9.9.9:0").unwrap();
    listener.local_addr().unwrap()
}

const PLAIN: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
const TLS: &[u8] = b"\x15\x03\x03\0\x02\x02\x46";
const OTHER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\r\n";

fn token() -> Option<Token> {
    Some(Token {
        token: "t".to_owned(),
        name: String::new(),
        expires_unix_ms: None,
    })
}

fn with_token() -> Context {
    Context {
        token: token(),
        ..Context::default()
    }
}

fn search(contexts: &Contexts, address: SocketAddr, given: Context) -> Search<'_> {
    Search {
        named: None,
        errand: Errand::Call,
        contexts,
        given,
        address,
    }
}

fn login() -> Contexts {
    Contexts {
        current: Some("kubernetes".to_owned()),
        contexts: [("kubernetes".to_owned(), with_token())].into(),
    }
}

fn several() -> Sought {
    Sought::Several(Failure::usage("several"))
}

fn unauthorized() -> Sought {
    Sought::Nothing(Some("error: (Unauthorized)".to_owned()))
}

fn must_not_be_asked() -> Sought {
    panic!("kubectl is asked")
}

/// Who is asked, without TLS and a token.
fn asked(reached: &Reached) -> &str {
    let context = &reached.context;
    assert!(context.token.is_none() && context.authorities.is_none());
    assert_eq!(context.servers.len(), 1);
    &context.servers[0]
}

#[test]
fn who_listens_is_told_by_how_it_begins() {
    assert_eq!(Here::look(somebody(PLAIN)), Here::Plain);
    assert_eq!(Here::look(somebody(TLS)), Here::Tls);
    assert_eq!(Here::look(somebody(OTHER)), Here::Stranger);
    assert_eq!(Here::look(somebody(b"")), Here::Stranger);
    assert_eq!(Here::look(nobody()), Here::Nobody);
}

#[test]
fn a_peer_here_is_asked_first_where_there_is_no_credential() {
    let contexts = Contexts::default();
    let here = somebody(PLAIN);
    let search = search(&contexts, here, Context::default());
    let reached = search.run(&must_not_be_asked).unwrap();
    assert_eq!(asked(&reached), here.to_string());
}

#[test]
fn a_peer_here_that_nobody_named_is_asked_without_the_token_where_no_release_is_found() {
    let contexts = Contexts::default();
    let here = somebody(PLAIN);
    let none = || Sought::Nothing(None);
    let reached = search(&contexts, here, with_token()).run(&none).unwrap();
    assert_eq!(asked(&reached), here.to_string());
    // As a login that is in use, which is for a release.
    let contexts = login();
    let search = search(&contexts, here, Context::default());
    assert!(!search.is_asked_first(Here::Plain));
    assert_eq!(asked(&search.run(&none).unwrap()), here.to_string());
}

#[test]
fn who_has_a_credential_asks_nobody_here_while_there_may_be_a_release() {
    let (neither, login) = (Contexts::default(), login());
    for here in [OTHER, TLS] {
        let search = search(&neither, somebody(here), with_token());
        let failure = search.run(&unauthorized).unwrap_err();
        assert!(failure.message.contains("(Unauthorized)"), "{failure:?}");
    }
    let here = somebody(PLAIN);
    for (contexts, given) in [(&neither, with_token()), (&login, Context::default())] {
        let given = || given.clone();
        let failure = search(contexts, here, given())
            .run(&unauthorized)
            .unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.message.contains("(Unauthorized)"), "{failure:?}");
        let remedy = failure.remedy.unwrap();
        assert!(remedy.contains(&format!("--server {here}")), "{remedy}");
        let failure = search(contexts, here, given()).run(&several).unwrap_err();
        assert_eq!(failure.message, "several");
    }
    // Without one, the peer is asked before kubectl is.
    let search = search(&neither, here, Context::default());
    assert!(search.is_asked_first(Here::Plain));
}

#[test]
fn who_is_no_peer_is_not_in_the_way_of_a_release() {
    let contexts = Contexts::default();
    for answer in [OTHER, TLS, b""] {
        for given in [Context::default(), with_token()] {
            let search = search(&contexts, somebody(answer), given);
            let failure = search.run(&several).unwrap_err();
            assert_eq!(failure.message, "several");
        }
    }
}

#[test]
fn what_kubectl_said_is_kept_for_the_error() {
    let contexts = Contexts::default();
    for (here, given) in [
        (nobody(), with_token()),
        (somebody(OTHER), Context::default()),
    ] {
        let reached = search(&contexts, here, given).run(&unauthorized).unwrap();
        assert_eq!(asked(&reached), here.to_string());
        assert_eq!(reached.unfound.as_deref(), Some("error: (Unauthorized)"));
    }
}

#[test]
fn with_authorities_who_speaks_tls_here_is_asked_and_nobody_else() {
    let contexts = Contexts::default();
    let given = || Context {
        authorities: Some("pem".to_owned()),
        ..with_token()
    };
    let here = somebody(TLS);
    let reached = search(&contexts, here, given()).run(&must_not_be_asked);
    let context = reached.unwrap().context;
    assert_eq!(context.servers, [here.to_string()]);
    assert!(context.token.is_some() && context.authorities.is_some());
    let plain = search(&contexts, somebody(PLAIN), given());
    assert_eq!(plain.run(&several).unwrap_err().message, "several");
    let plain = search(&contexts, somebody(PLAIN), given());
    let failure = plain.run(&unauthorized).unwrap_err();
    assert!(failure.message.contains("(Unauthorized)"), "{failure:?}");
}

#[test]
fn a_login_goes_to_nobody_here_who_was_not_named() {
    let contexts = Contexts::default();
    for answer in [PLAIN, OTHER, TLS] {
        let login = Search {
            errand: Errand::Login,
            ..search(&contexts, somebody(answer), Context::default())
        };
        let failure = login.run(&unauthorized).unwrap_err();
        assert!(failure.message.contains("(Unauthorized)"), "{failure:?}");
        assert!(failure.remedy.unwrap().contains("--server"));
    }
    let login = Search {
        errand: Errand::Login,
        ..search(&contexts, somebody(PLAIN), Context::default())
    };
    assert_eq!(login.run(&several).unwrap_err().message, "several");
}

fn release(kube_context: &str, authorities: &str) -> Home {
    Home {
        kube_context: Some(kube_context.to_owned()),
        namespace: "serving".to_owned(),
        name: "prod".to_owned(),
        authorities: Some(authorities.to_owned()),
    }
}

/// What is found of a release, with the token of its Secret if that may be read.
fn found(kube_context: &str, authorities: &str, token: Option<Token>) -> Context {
    Context {
        servers: vec!["https://127.0.0.1:1".to_owned()],
        authorities: Some(authorities.to_owned()),
        tls_server_name: Some("localhost".to_owned()),
        token,
        release: Some(release(kube_context, authorities)),
    }
}

fn named(name: &str) -> Option<Token> {
    token().map(|token| Token {
        name: name.to_owned(),
        ..token
    })
}

/// A login to the release in `a`.
fn logged_in() -> Contexts {
    let context = Context {
        servers: Vec::new(),
        ..found("a", "ca-a", named("ann"))
    };
    Contexts {
        current: Some("kubernetes".to_owned()),
        contexts: [("kubernetes".to_owned(), context)].into(),
    }
}

fn name_of(token: &Option<Token>) -> Option<&str> {
    token.as_ref().map(|token| token.name.as_str())
}

#[test]
fn a_login_is_used_at_its_own_release_and_nowhere_else() {
    let contexts = logged_in();
    let of =
        |found: Context| search(&contexts, nobody(), Context::default()).with_login(found, true);
    let (own, name) = of(found("a", "ca-a", named("admin"))).unwrap();
    assert_eq!(name_of(&own.token), Some("ann"));
    assert_eq!(own.servers, ["https://127.0.0.1:1"]);
    assert_eq!(name.as_deref(), Some("kubernetes"));

    let (elsewhere, anew) = (found("b", "ca-b", None), found("a", "ca-b", None));
    for (other, why) in [
        (
            elsewhere,
            "for release prod in namespace serving of kube context a",
        ),
        (anew, "of other authorities"),
    ] {
        let refused = of(other).unwrap_err();
        assert!(refused.message.contains(why), "{refused:?}");
        assert_eq!(refused.exit, Exit::Refused);
        let begin = "not logged in to release prod in namespace serving of kube context ";
        assert!(refused.message.starts_with(begin), "{refused:?}");
        assert!(refused.remedy.unwrap().contains("raftserve login"));
    }
    let (other, name) = of(found("b", "ca-b", named("admin"))).unwrap();
    assert_eq!(name_of(&other.token), Some("admin"));
    assert_eq!(other.authorities.as_deref(), Some("ca-b"));
    assert_eq!(name, None);
}

#[test]
fn who_has_logged_out_is_told_no_more_than_that() {
    let mut contexts = logged_in();
    for context in contexts.contexts.values_mut() {
        context.token = None;
    }
    let search = search(&contexts, nobody(), Context::default());
    let refused = search
        .with_login(found("a", "ca-a", None), true)
        .unwrap_err();
    assert_eq!(
        refused.message,
        "not logged in to release prod in namespace serving of kube context a"
    );
}

#[test]
fn where_the_release_does_not_show_its_authorities_those_of_the_login_count() {
    let contexts = logged_in();
    let unseen = Context {
        authorities: None,
        release: Some(Home {
            authorities: None,
            ..release("a", "")
        }),
        ..found("a", "", None)
    };
    let search = search(&contexts, nobody(), Context::default());
    let (own, _) = search.with_login(unseen, true).unwrap();
    assert_eq!(own.authorities.as_deref(), Some("ca-a"));
    assert_eq!(name_of(&own.token), Some("ann"));
}

#[test]
fn a_named_login_is_for_no_other_release() {
    let contexts = logged_in();
    let of = |errand, found: Context| {
        let search = Search {
            named: Some("kubernetes"),
            errand,
            ..search(&contexts, nobody(), Context::default())
        };
        search.with_login(found, true)
    };
    let elsewhere = || found("b", "ca-b", named("admin"));
    for errand in [Errand::Call, Errand::Login] {
        let refused = of(errand, elsewhere()).unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.contains("of kube context b"), "{refused:?}");
    }
    let anew = || found("a", "ca-b", named("admin"));
    let refused = of(Errand::Call, anew()).unwrap_err();
    assert_eq!(refused.exit, Exit::Refused);
    let (again, name) = of(Errand::Login, anew()).unwrap();
    assert_eq!(again.authorities.as_deref(), Some("ca-b"));
    assert_eq!(name.as_deref(), Some("kubernetes"));

    let search = Search {
        named: Some("kubernetes"),
        ..search(&contexts, somebody(PLAIN), Context::default())
    };
    let nowhere = search.run(&unauthorized).unwrap_err();
    assert_eq!(nowhere.exit, Exit::Unavailable);
    assert!(nowhere.message.contains("(Unauthorized)"), "{nowhere:?}");
}
