//! The calls with which a stranger shows that a reference is theirs to use, and those that show
//! nothing.
//!
//! A text alone gets answers from `challenge`, and from `locate` where its holders have to prove
//! themselves. A client that found or stole such a text, or keeps one of a revoked grant, must not
//! be trusted for it. So these answers end nobody's time as a stranger.

use crate::restorer_capnp::restorer;
use crate::sturdyref::TextReference;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::call;

/// `Restorer.restore`, which succeeds with a reference in force that takes no proof.
const RESTORE: u16 = 0;
/// `Restorer.locate`, which does too, and also with a reference that takes one.
const LOCATE: u16 = 1;

/// Tells whether somebody may succeed with this call who can't use any reference.
pub(super) fn is_open(call: call::Reader) -> capnp::Result<bool> {
    if call.get_interface_id() != restorer::Client::TYPE_ID {
        return Ok(false);
    }
    match call.get_method_id() {
        RESTORE => Ok(false),
        LOCATE => {
            let params = call.get_params()?.get_content();
            let params = params.get_as::<restorer::locate_params::Reader>()?;
            Ok(takes_proof(params.get_sturdy_ref()?))
        }
        _ => Ok(true),
    }
}

/// Tells whether the text claims to take a proof. If the claim is false, its call fails.
fn takes_proof(text: capnp::text::Reader) -> bool {
    let reference = text.to_str().ok().and_then(|text| TextReference::parse(text).ok());
    let caveats = reference.and_then(|text| text.reference().claimed_caveats().ok());
    caveats.is_some_and(|caveats| !caveats.holders().is_empty())
}
