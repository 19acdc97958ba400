//! `raftserve login`.

use super::connect::{Errand, Link, Servers};
use super::contexts::{Context, Contexts, Home, Token};
use super::failure::Failure;
use super::login_args::LoginArgs;
use super::{durations, output, prompt};
use crate::admin::v1;
use crate::admin::v1::access_client::AccessClient;
use crate::clock;

/// Runs the verb.
pub(super) async fn run(mut args: LoginArgs) -> Result<(), Failure> {
    let given = match (args.token.take(), args.token_stdin) {
        (Some(token), _) => Some(token),
        (None, true) => Some(prompt::from_stdin("token")?),
        (None, false) => None,
    };
    // Whatever credential there is, it is to be replaced.
    args.target.access_token = given.clone();
    let mut reached = super::connect::resolve(&args.target, Errand::Login)?;
    if given.is_none() {
        reached.context.token = None;
    }
    let mut servers = Servers::of(&reached.context)?;
    let (token, role) = match given {
        Some(token) => {
            let me = servers.ask(who_am_i).await?;
            if !me.asks_for_credentials {
                return Err(nothing_to_log_in_to());
            }
            let token = Token {
                token,
                name: me.name,
                expires_unix_ms: None,
            };
            (token, me.role)
        }
        None => with_password(&mut servers, &args).await?,
    };
    let until = token.expires_unix_ms.map_or_else(String::new, |at| {
        let left = at.saturating_sub(clock::unix_ms());
        format!(
            ", for {}",
            durations::brief(std::time::Duration::from_millis(left))
        )
    });
    let mut contexts = Contexts::load(&args.target.home)?;
    let name = args.name.or(reached.name);
    let name = match (name, &reached.context.release) {
        (Some(name), _) => name,
        (None, Some(release)) => of_release(release, &contexts),
        (None, None) => host(&reached.context),
    };
    let said = format!(
        "Logged in as {} ({role}){until}; context {name} is in use.\n",
        token.name
    );
    let mut context = Context {
        token: Some(token),
        ..reached.context
    };
    match reached.forward {
        // The port is another one next time, and the release is found again.
        Some(_) => context.servers.clear(),
        None => context.release = None,
    }
    contexts.contexts.insert(name.clone(), context);
    contexts.current = Some(name);
    contexts.save(&args.target.home)?;
    output::write(said.as_bytes())
}

async fn who_am_i(link: Link) -> Result<tonic::Response<v1::WhoAmIResponse>, tonic::Status> {
    AccessClient::new(link).who_am_i(v1::WhoAmIRequest {}).await
}

fn nothing_to_log_in_to() -> Failure {
    Failure::usage("this cluster asks for no credentials: there is nothing to log in to")
        .remedy("`raftserve context add` keeps its addresses under a name")
}

async fn with_password(
    servers: &mut Servers,
    args: &LoginArgs,
) -> Result<(Token, String), Failure> {
    let user = match &args.user {
        Some(user) => user.clone(),
        None => prompt::text("User:").await?,
    };
    let password = match args.password_stdin {
        true => prompt::from_stdin("password")?,
        false => prompt::secret(&format!("Password of {user}:")).await?,
    };
    let request = v1::LoginRequest { user, password };
    let login = servers
        .ask(|link| {
            let request = request.clone();
            async move { AccessClient::new(link).login(request).await }
        })
        .await
        .map_err(Failure::of_password)?;
    let token = Token {
        token: login.token,
        name: login.name,
        expires_unix_ms: Some(login.expires_unix_ms),
    };
    Ok((token, login.role))
}

/// The name for a login to a release: a short one, unless another cluster has it.
fn of_release(release: &Home, contexts: &Contexts) -> String {
    const SHORT: &str = "kubernetes";
    let is_anothers = |context: &Context| match &context.release {
        Some(other) => !other.is_at(release),
        // As logins to releases were kept before.
        None => !context.servers.is_empty(),
    };
    match contexts.contexts.get(SHORT).is_some_and(is_anothers) {
        false => SHORT.to_owned(),
        true => {
            let Home {
                kube_context,
                namespace,
                name,
                authorities: _,
            } = release;
            let kube_context = kube_context.as_deref().unwrap_or(SHORT);
            format!("{kube_context}/{namespace}/{name}")
        }
    }
}

/// The host of the first server.
fn host(context: &Context) -> String {
    let first = context.servers.first().map_or("", String::as_str);
    let address = first
        .rsplit_once("://")
        .map_or(first, |(_, address)| address);
    address.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_name_is_for_one_release_at_a_time() {
        let release = |kube_context: &str| Home {
            kube_context: Some(kube_context.to_owned()),
            namespace: "serving".to_owned(),
            name: "prod".to_owned(),
            authorities: Some("ca".to_owned()),
        };
        let of = |servers: &[&str], release: Option<Home>| Context {
            servers: servers.iter().map(|&server| server.to_owned()).collect(),
            release,
            ..Context::default()
        };
        let mut contexts = Contexts::default();
        let mut name = |kept: Context| {
            contexts.contexts = [("kubernetes".to_owned(), kept)].into();
            of_release(&release("b"), &contexts)
        };
        assert_eq!(name(of(&[], Some(release("b")))), "kubernetes");
        assert_eq!(name(of(&[], None)), "kubernetes");
        assert_eq!(name(of(&[], Some(release("a")))), "b/serving/prod");
        assert_eq!(name(of(&["https://a:1"], None)), "b/serving/prod");
    }
}
