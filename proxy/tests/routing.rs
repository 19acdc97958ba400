//! Which service answers, and what it is told of the request's way.

mod support;

use http::Request;
use http_body_util::Full;
use raftserve_model::ServiceId;
use raftserve_proxy::{PortState, Proxy, RouteTable, Routes, StartError};
use support::{Hand, Rig, ask, config, get, log, nowhere, recorder, service, soon, table, text};

#[tokio::test]
async fn host_prefix_and_sole_service_are_told_apart() {
    let log = log();
    let (chat, embed) = (recorder("chat", &log).await, recorder("embed", &log).await);
    let services = [service(1, "chat", &[chat]), service(2, "Embed", &[embed])];
    let rig = Rig::new(services.clone());
    assert_eq!(
        get(rig.address, "CHAT.example:80", "/x").await,
        (200, "chat".to_owned())
    );
    assert_eq!(
        get(rig.address, "embed", "/x").await,
        (200, "embed".to_owned())
    );
    let through_prefix = get(rig.address, "127.0.0.1", "/Embed/a%2Fb//c?d=%20").await;
    assert_eq!(through_prefix, (200, "embed".to_owned()));

    let (status, body) = get(rig.address, "127.0.0.1", "/else").await;
    assert_eq!(status, 404);
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["error"], "no_such_service");
    assert_eq!(body["services"], serde_json::json!(["chat", "Embed"]));

    let [only, _] = services;
    rig.routes.publish(table([only]));
    assert_eq!(
        get(rig.address, "127.0.0.1", "/else").await,
        (200, "chat".to_owned())
    );

    let seen = log.lock().expect("no panic").clone();
    assert_eq!(seen[0].headers["host"], "CHAT.example:80");
    assert_eq!(seen[0].headers["x-forwarded-host"], "CHAT.example:80");
    assert!(!seen[0].headers.contains_key("x-forwarded-prefix"));
    assert_eq!(seen[2].target, "/a%2Fb//c?d=%20");
    assert_eq!(seen[2].headers["x-forwarded-prefix"], "/Embed");
    assert_eq!(seen[2].headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen[2].headers["x-forwarded-proto"], "http");
    assert_eq!(seen[2].headers["traceparent"].len(), 55);
}

#[tokio::test]
async fn a_services_name_alone_is_its_root_whatever_the_method() {
    let log = log();
    let (chat, embed) = (recorder("chat", &log).await, recorder("embed", &log).await);
    let rig = Rig::new([service(1, "chat", &[chat]), service(2, "embed", &[embed])]);
    for (method, target, root) in [
        ("GET", "/embed", "/"),
        ("POST", "/embed", "/"),
        ("PUT", "/embed?a=/b", "/?a=/b"),
        ("POST", "/embed/", "/"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "h");
        let request = request.body(Full::from("body")).expect("a good request");
        let response = ask(rig.address, request).await;
        assert_eq!(text(response).await, "embed", "{method} {target}");
        let seen = log.lock().expect("no panic").pop().expect("seen");
        assert_eq!(
            (seen.method.as_str(), &seen.body[..]),
            (method, &b"body"[..])
        );
        assert_eq!(seen.target, root, "{method} {target}");
        assert_eq!(seen.headers["x-forwarded-prefix"], "/embed");
    }
    assert_eq!(get(rig.address, "h", "/embedx").await.0, 404);
}

#[tokio::test]
async fn a_proxy_that_knows_nothing_yet_denies_nothing() {
    let rig = Rig::new([]);
    rig.routes.publish(RouteTable::default());
    let (status, body) = get(rig.address, "chat", "/").await;
    assert_eq!(status, 503);
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["error"], "starting");
    rig.routes.publish(table([]));
    assert_eq!(get(rig.address, "chat", "/").await.0, 404);
}

#[tokio::test]
async fn path_bytes_and_methods_arrive_as_sent() {
    let log = log();
    let rig = Rig::new([service(1, "svc", &[recorder("svc", &log).await])]);
    for target in ["/a%2Fb/%2e%2E/;c=%zz?q=%26&r=a+b", "//x", "/docs", "/svcs"] {
        assert_eq!(get(rig.address, "h", target).await.0, 200, "{target}");
        assert_eq!(
            log.lock().expect("no panic").pop().expect("seen").target,
            target
        );
    }
    for method in ["PATCH", "OPTIONS", "DELETE", "PROPFIND", "PUT", "QUERY"] {
        let request = Request::builder()
            .method(method)
            .uri("/m")
            .header("host", "h");
        let request = request.body(Full::from("body")).expect("a good request");
        let response = ask(rig.address, request).await;
        assert_eq!(text(response).await, "svc");
        let seen = log.lock().expect("no panic").pop().expect("seen");
        assert_eq!(
            (seen.method.as_str(), &seen.body[..]),
            (method, &b"body"[..])
        );
    }
    let request = Request::head("/m")
        .header("host", "h")
        .body(Full::default());
    let response = ask(rig.address, request.expect("a good request")).await;
    assert_eq!(response.headers()["content-length"], "3");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn bad_requests_are_refused_in_json() {
    let rig = Rig::new([service(1, "svc", &[nowhere()])]);
    for (request, status) in [
        (
            "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "405",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET http://user@svc/ HTTP/1.1\r\nHost: svc\r\n\r\n", "400"),
    ] {
        let (head, body) = Hand::connect(rig.address).await.ask(request).await;
        assert!(
            head[0].starts_with(&format!("http/1.1 {status}")),
            "{head:?}"
        );
        assert!(head.contains(&"content-type: application/json".to_owned()));
        assert!(body.starts_with("{\"error\":\""), "{body}");
    }
}

#[tokio::test]
async fn nothing_ready_says_so_and_when_to_come_back() {
    let mut none_ready = service(1, "svc", &[nowhere()]);
    none_ready.endpoints[0].ready = false;
    none_ready.traffic.queue.requests = 0;
    let rig = Rig::new([none_ready]);
    let request = Request::get("/").header("host", "h").body(Full::default());
    let response = ask(rig.address, request.expect("a good request")).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    let body: serde_json::Value = serde_json::from_str(&text(response).await).expect("JSON");
    assert_eq!(body["error"], "no_ready_replica");
    assert!(
        body["message"]
            .as_str()
            .expect("text")
            .contains("svc has no ready replica")
    );
}

#[tokio::test]
async fn a_service_port_opens_and_closes_with_the_routes() {
    let log = log();
    let mut chat = service(1, "chat", &[recorder("chat", &log).await]);
    let embed = service(2, "embed", &[recorder("embed", &log).await]);
    let rig = Rig::new([chat.clone(), embed.clone()]);
    let own = nowhere();
    chat.port = Some(own.port());
    rig.routes.publish(table([chat.clone(), embed.clone()]));
    let mut ports = rig.proxy.ports();
    let open = ports.wait_for(|ports| ports.len() == 1);
    assert_eq!(
        soon("an open port", open).await.expect("it runs")[0].state,
        PortState::Open
    );
    // Its own port is always its own, whatever the host and the path say.
    assert_eq!(get(own, "embed", "/embed/").await, (200, "chat".to_owned()));
    assert_eq!(log.lock().expect("no panic")[0].target, "/embed/");

    let mut kept = Hand::connect(own).await;
    let request = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    assert_eq!(kept.ask(request).await.1, "chat");
    chat.port = None;
    rig.routes.publish(table([chat, embed]));
    let closed = ports.wait_for(Vec::is_empty);
    drop(soon("a closed port", closed).await.expect("it runs"));
    assert!(tokio::net::TcpStream::connect(own).await.is_err());
    assert_eq!(
        kept.ask(request).await.1,
        "chat",
        "a connection outlives its listener"
    );
}

#[tokio::test]
async fn a_taken_port_is_reported_and_taken_over_once_free() {
    let holder = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let taken = holder.local_addr().expect("bound");
    let log = log();
    let mut chat = service(1, "chat", &[recorder("chat", &log).await]);
    let mut late = service(2, "late", &[]);
    (chat.port, late.port) = (Some(taken.port()), Some(taken.port()));
    let rig = Rig::new([chat, late]);
    let mut ports = rig.proxy.ports();
    let reported = soon("a report", ports.wait_for(|ports| ports.len() == 2)).await;
    for status in reported.expect("it runs").iter() {
        let PortState::Refused { reason } = &status.state else {
            panic!("{status:?}");
        };
        assert!(reason.contains(&taken.port().to_string()), "{reason}");
    }
    assert_eq!(
        get(rig.address, "chat", "/").await.0,
        200,
        "the shared port serves on"
    );
    drop(holder);
    let open = ports.wait_for(|ports| {
        let open = |status: &raftserve_proxy::PortStatus| {
            status.service == ServiceId(1) && status.state == PortState::Open
        };
        ports.iter().any(open)
    });
    drop(soon("the port", open).await.expect("it runs"));
    assert_eq!(get(taken, "h", "/").await.1, "chat");

    let mut config = config();
    config.listen = rig.address;
    let refused = Proxy::start(
        config,
        std::sync::Arc::new(Routes::default()),
        std::sync::Arc::new(raftserve_proxy::NoSessions),
        None,
    );
    assert!(matches!(refused, Err(StartError::Listen { .. })));
}
