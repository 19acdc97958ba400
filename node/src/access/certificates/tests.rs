//! Real handshakes on loopback, with certificates made here.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use std::path::Path;

use super::*;

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Fills `directory` with a certificate of this authority, and those that are to be believed.
    pub(crate) fn issue(&self, directory: &Path, believed: &[&Self]) {
        self.issue_for(directory, believed, &[]);
    }

    /// The same, for these purposes alone.
    fn issue_for(
        &self,
        directory: &Path,
        believed: &[&Self],
        purposes: &[ExtendedKeyUsagePurpose],
    ) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["peer.example".to_owned()]).unwrap();
        params.extended_key_usages = purposes.to_vec();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let authorities: String = believed.iter().map(|it| it.0.pem()).collect();
        std::fs::write(directory.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(directory.join("tls.key"), key.serialize_pem()).unwrap();
        std::fs::write(directory.join("ca.crt"), authorities).unwrap();
    }
}

/// A peer's certificates, and their directory.
struct Side(tempfile::TempDir, Certificates);

impl Side {
    fn new(own: &Authority, believed: &[&Authority]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        own.issue(directory.path(), believed);
        let certificates = Certificates::read(directory.path().to_owned()).unwrap();
        Self(directory, certificates)
    }
}

/// Shakes hands, and sends a byte each way, by which both sides know that the other is content.
async fn meet(from: &Side, to: &Side, protocol: Protocol) -> io::Result<Protocol> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let dialled = TcpStream::connect(listener.local_addr()?).await?;
    let (accepted, _) = listener.accept().await?;
    let accepting = async {
        let (mut stream, protocol) = to.1.accept_peer(accepted).await?;
        stream.write_all(b"a").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        io::Result::Ok(protocol)
    };
    let dialling = async {
        let mut stream = from.1.connect("10.1.2.3", dialled, protocol).await?;
        stream.write_all(b"b").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        io::Result::Ok(())
    };
    let (accepted, dialled) = tokio::join!(accepting, dialling);
    dialled?;
    accepted
}

#[tokio::test]
async fn peers_of_one_authority_meet_whatever_their_names_and_say_what_they_speak() {
    let authority = Authority::new();
    let (one, two) = (
        Side::new(&authority, &[&authority]),
        Side::new(&authority, &[&authority]),
    );
    for protocol in [Protocol::Frames, Protocol::Grpc] {
        assert_eq!(meet(&one, &two, protocol).await.unwrap(), protocol);
    }
}

#[tokio::test]
async fn a_peer_of_another_authority_is_refused_by_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let one = Side::new(&ours, &[&ours]);
    // It believes us, and we do not believe it; and the other way round.
    let stranger = Side::new(&theirs, &[&ours, &theirs]);
    assert!(meet(&stranger, &one, Protocol::Frames).await.is_err());
    assert!(
        one.1.render().contains("refused_total 1"),
        "{}",
        one.1.render()
    );
    assert!(meet(&one, &stranger, Protocol::Frames).await.is_err());
    assert!(
        one.1.render().contains("refused_total 2"),
        "{}",
        one.1.render()
    );
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let one = Side::new(&authority, &[&authority]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName {
            roots: Arc::new(authorities(&one.0.path().join("ca.crt")).unwrap()),
            provider,
        }))
        .with_no_client_auth();
    let name = ServerName::try_from("x").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let (refused, _) = tokio::join!(
        one.1.accept_peer(accepted),
        connector.connect(name, dialled)
    );
    let reason = refused.unwrap_err().to_string();
    assert!(reason.contains("no certificates"), "{reason}");
}

#[tokio::test]
async fn an_authority_is_replaced_in_three_steps() {
    let (old, new) = (Authority::new(), Authority::new());
    let (one, two) = (Side::new(&old, &[&old]), Side::new(&old, &[&old]));
    let meets = async || {
        let there = meet(&one, &two, Protocol::Frames).await;
        let back = meet(&two, &one, Protocol::Frames).await;
        there.and(back).map(drop)
    };
    // One peer after the other, as files arrive: they meet at every moment.
    let steps: [(&Authority, &[&Authority]); 3] = [
        (&old, &[&old, &new]),
        (&new, &[&old, &new]),
        (&new, &[&new]),
    ];
    for (own, believed) in steps {
        for side in [&one, &two] {
            own.issue(side.0.path(), believed);
            side.1.refresh();
            meets().await.unwrap();
        }
    }
    let left_behind = Side::new(&old, &[&old, &new]);
    assert!(meet(&left_behind, &one, Protocol::Frames).await.is_err());
    assert!(
        one.1.render().contains("{outcome=\"used\"} 3"),
        "{}",
        one.1.render()
    );
}

#[tokio::test]
async fn bad_files_change_nothing_and_are_counted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (one, two) = (Side::new(&ours, &[&ours]), Side::new(&ours, &[&ours]));
    let directory = one.0.path();
    let whole = std::fs::read(directory.join("tls.key")).unwrap();
    let bad: [(&str, &[u8]); 3] = [
        ("tls.key", b"no key"),
        ("ca.crt", b""),
        (
            "tls.crt",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
    ];
    for (round, (file, content)) in bad.into_iter().enumerate() {
        ours.issue(directory, &[&ours]);
        std::fs::write(directory.join(file), content).unwrap();
        one.1.refresh();
        let counted = format!("{{outcome=\"refused\"}} {}", round + 1);
        assert!(one.1.render().contains(&counted), "{}", one.1.render());
        meet(&one, &two, Protocol::Grpc).await.unwrap();
    }
    // The key of another certificate.
    ours.issue(directory, &[&ours]);
    std::fs::write(directory.join("tls.key"), whole).unwrap();
    one.1.refresh();
    assert!(
        one.1.render().contains("{outcome=\"refused\"} 4"),
        "{}",
        one.1.render()
    );
    // Whole, and of an authority that this peer itself does not believe.
    theirs.issue(directory, &[&ours]);
    one.1.refresh();
    assert!(
        one.1.render().contains("{outcome=\"refused\"} 5"),
        "{}",
        one.1.render()
    );
    assert!(
        one.1.render().contains("{outcome=\"used\"} 0"),
        "{}",
        one.1.render()
    );
    let refused = Certificates::read(directory.to_owned()).unwrap_err();
    assert!(
        matches!(refused, AccessError::NotVouchedFor { .. }),
        "{refused}"
    );
    meet(&two, &one, Protocol::Frames).await.unwrap();
}

#[tokio::test]
async fn a_certificate_for_servers_or_clients_alone_is_refused_before_the_others_do() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    for purpose in [ServerAuth, ClientAuth] {
        authority.issue_for(directory.path(), &[&authority], &[purpose]);
        let refused = Certificates::read(directory.path().to_owned()).unwrap_err();
        assert!(
            matches!(refused, AccessError::NotVouchedFor { .. }),
            "{refused}"
        );
    }
    authority.issue_for(directory.path(), &[&authority], &[ServerAuth, ClientAuth]);
    Certificates::read(directory.path().to_owned()).unwrap();
}
