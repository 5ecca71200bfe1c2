//! The root references of the classes, and the gateway, which gets its namespaces by them like any
//! client.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use capstead_client::sturdyref::{Target, TargetId};
use futures::future::{FutureExt, join_all};

use super::error::ServerError;
use super::start::RunningHost;
use crate::error::{Result, is_revoked};
use crate::gateway::{Gateway, Given, Restoring, Routes};
use crate::host::{Class, ListenerHint};
use crate::id::{ObjectId, Pool};
use crate::metrics::Metrics;
use crate::schema::restorer_capnp::restorer;
use crate::sturdyref::{KeyRing, Keys, root_grant};

/// The gateway, and the text of each class's root reference. A class whose root was revoked has no
/// reference; the gateway answers requests for it with that reason.
///
/// # Errors
/// When a namespace can't be restored for another reason.
pub(super) async fn start_gateway(
    host: &RunningHost,
    keys: &Keys,
    classes: &[Class],
    hint: &ListenerHint,
    (routes, metrics): (Routes, &Arc<Metrics>),
) -> std::result::Result<(Rc<Gateway>, BTreeMap<String, String>), ServerError> {
    let restorer = host.agent.restorer();
    let restores = classes.iter().map(|class| {
        let restored = reference(&keys.current(), class.name, hint).map(|text| {
            let request = restore(&restorer, &text);
            request.send().promise.map(|reply| (class.name, text, reply))
        });
        restored.map_err(ServerError::from)
    });
    let restores = restores.collect::<std::result::Result<Vec<_>, _>>()?;
    let (mut given, mut references) = (Vec::new(), BTreeMap::new());
    for (class, text, reply) in join_all(restores).await {
        let namespace = match reply {
            Ok(reply) => Some(reply.get()?.get_cap().get_as_capability()?),
            // Requests get this error, as they did before the start.
            Err(error) if is_revoked(&error) => {
                tracing::warn!(%class, "its root reference was revoked: it is not served over HTTP; `capstead grant` makes another reference");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let (restorer, keys, hint) = (restorer.clone(), keys.clone(), hint.clone());
        let again = Box::new(move || -> Result<Restoring> {
            // Not the text from above, whose key may have been revoked since.
            let request = restore(&restorer, &reference(&keys.current(), class, &hint)?);
            Ok(request.send())
        });
        if namespace.is_some() {
            references.insert(class.to_owned(), text);
        }
        given.push((class.to_owned(), Given { namespace, again }));
    }
    Ok((Gateway::new(given, restorer, routes, metrics.clone()), references))
}

fn restore(
    restorer: &restorer::Client,
    text: &str,
) -> capnp::capability::Request<restorer::restore_params::Owned, restorer::restore_results::Owned> {
    let mut request = restorer.restore_request();
    request.get().set_sturdy_ref(text);
    request
}

fn reference(keys: &KeyRing, class: &str, hint: &ListenerHint) -> Result<String> {
    let id = ObjectId::namespace(Pool::default(), class);
    let target = Target::Namespace(TargetId::from_bytes(*id.as_bytes()));
    hint.text(&keys.root_reference(target, root_grant(class)))
}
