//! Whether all peers find the same replicas: processes of a host are seen by those peers only that share it.

use crate::consensus::{Consensus, MemberView};
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
    Some(said_of(elsewhere))
}

/// What a peer that is elsewhere keeps from being done. What one said that is down may be true no more once it comes back.
fn said_of(elsewhere: &MemberView) -> String {
    let had = match elsewhere.up {
        true => "has another",
        false => "had another when it was last heard, and is down",
    };
    format!(
        "the process provider needs all peers on one host with one --replica-root, and peer {} at {} {had}",
        elsewhere.id, elsewhere.address
    )
}

#[cfg(test)]
mod tests {
    use raftserve_model::NodeId;

    use super::*;

    #[test]
    fn what_a_peer_that_is_down_has_is_said_of_the_past() {
        let said = |up| {
            said_of(&MemberView {
                id: NodeId(4),
                address: "h4:7001".to_owned(),
                admin_address: None,
                voter: true,
                leader: false,
                matched: None,
                last_contact: None,
                up,
            })
        };
        assert!(said(true).ends_with("peer 4 at h4:7001 has another"));
        assert!(said(false).ends_with("had another when it was last heard, and is down"));
    }
}
