//! `raftserve probe`: GET some URLs until each has answered with 200. For images without a shell or curl.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::uri::Authority;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout_at};

use super::durations;
use super::failure::{Exit, Failure};

/// How long after one try the next one begins.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest answer that is read and shown.
const ANSWER_BYTES_MAX: usize = 1024;

/// Ask URLs until each answers with 200.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, in a pod of the chart:
  raftserve probe http://127.0.0.1:7002/healthz/ready http://127.0.0.1:7002/healthz/quorum
  raftserve probe --each-address http://raftserve-peers:7002/healthz/quorum")]
pub struct ProbeArgs {
    /// URLs, http only.
    #[arg(required = true)]
    urls: Vec<Uri>,
    /// Ask every address that a URL's host has, which is looked up anew for each try, and be content only when all answer. By
    /// default the first that is reached is enough.
    #[arg(long)]
    each_address: bool,
    /// Give up after this long, such as 90s or 2m.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = durations::parse)]
    timeout: Duration,
}

pub(super) async fn run(args: ProbeArgs) -> Result<(), Failure> {
    let end = Instant::now() + args.timeout;
    for url in &args.urls {
        let mut last = "nothing answered".to_owned();
        loop {
            match timeout_at(end, ask(url, args.each_address)).await {
                Ok(Ok(answers)) => {
                    for answer in answers {
                        println!("{url}: {answer}");
                    }
                    break;
                }
                Ok(Err(reason)) => last = reason,
                Err(_) => {
                    return Err(Failure::new(Exit::Timeout, format!("{url}: {last}")));
                }
            }
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// What the host of `url` answers: the first line of each good answer, or what is wrong with one of them.
async fn ask(url: &Uri, each_address: bool) -> Result<Vec<String>, String> {
    let authority = match (url.scheme_str(), url.authority()) {
        (Some("http"), Some(authority)) => authority,
        _ => return Err("write http://HOST:PORT/PATH".to_owned()),
    };
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority.port_u16().unwrap_or(80);
    let found = lookup_host((host, port)).await;
    let found: Vec<SocketAddr> = found.map_err(|error| error.to_string())?.collect();
    if !each_address {
        return Ok(vec![ask_at(url, authority, &found).await?]);
    }
    ask_each(url, authority, &found).await
}

/// The same of each of `addresses`.
async fn ask_each(
    url: &Uri,
    authority: &Authority,
    addresses: &[SocketAddr],
) -> Result<Vec<String>, String> {
    let mut answers = Vec::new();
    for address in addresses {
        let answer = ask_at(url, authority, &[*address]).await;
        let answer = answer.map_err(|reason| format!("{address}: {reason}"))?;
        answers.push(format!("{address}: {answer}"));
    }
    Ok(answers)
}

/// The first line of a good answer of the first of `addresses` that is reached.
async fn ask_at(
    url: &Uri,
    authority: &Authority,
    addresses: &[SocketAddr],
) -> Result<String, String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(addresses)
        .await
        .map_err(|error| said(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| said(&error))?;
    let request = Request::get(url.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| said(&error))?;
    // It ends with the answer, or with `sender`; why is what the answer says too.
    tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| said(&error))?;
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| said(&error))?;
        text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if text.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default();
    match status.is_success() {
        true => Ok(line.to_owned()),
        false => Err(format!("{status}: {line}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn it_asks_until_the_answer_is_good() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            for answer in [
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 11\r\n\r\ncatching up",
                "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n",
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /healthz/ready HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let url: Uri = format!("http://{address}/healthz/ready").parse().unwrap();
        let args = |timeout| ProbeArgs {
            urls: vec![url.clone()],
            each_address: false,
            timeout,
        };
        run(args(Duration::from_secs(30))).await.unwrap();
        serving.await.unwrap();
        // The listener is gone.
        let failure = run(args(Duration::from_millis(50))).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Timeout);
        assert!(failure.message.contains("refused"), "{}", failure.message);
    }

    #[tokio::test]
    async fn one_address_that_does_not_answer_well_is_enough_to_fail_where_all_are_asked() {
        let serve = async |answer: &'static str| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut head = [0; 4096];
                    let _ = stream.read(&mut head).await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            address
        };
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n";
        let bad = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nno quorum";
        let (one, two, three) = (serve(good).await, serve(good).await, serve(bad).await);
        let url: Uri = "http://peers/healthz/ready".parse().unwrap();
        let authority = url.authority().unwrap();
        let answers = ask_each(&url, authority, &[one, two]).await.unwrap();
        assert_eq!(answers, [format!("{one}: ready"), format!("{two}: ready")]);
        let refused = ask_each(&url, authority, &[one, three]).await.unwrap_err();
        assert!(
            refused.starts_with(&three.to_string()) && refused.contains("no quorum"),
            "{refused}"
        );
        let first = ask_at(&url, authority, &[one, three]).await.unwrap();
        assert_eq!(first, "ready");
    }
}
