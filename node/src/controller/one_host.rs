//! Whether all peers find the same replicas: processes of a host are seen by those peers only that share it.

use crate::consensus::Consensus;
use crate::provider::Provider;

/// Why a leader cannot see all replicas, and processes of this host cannot be replicas: another peer has another
/// host or root. A peer that was not heard yet says nothing against it.
pub(crate) fn not_shared(consensus: &Consensus, provider: &dyn Provider) -> Option<String> {
    if !provider.shares_host() {
        return None;
    }
    let host = |id| consensus.peer_info(id).map(|said| said.host);
    let own = host(consensus.node_id());
    let members = consensus.members();
    let elsewhere = members
        .iter()
        .find(|member| host(member.id).is_some_and(|other| Some(other) != own))?;
    Some(format!(
        "the process provider needs all peers on one host with one --replica-root, and peer {} at {} has another",
        elsewhere.id, elsewhere.address
    ))
}
