//! The root references of the classes, and the gateway, which gets its namespaces by them like any
//! client.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use capnp::capability::FromClientHook;
use capstead_client::sturdyref::{Target, TargetId};
use futures::future::{FutureExt, join_all};

use super::error::ServerError;
use super::host::RunningHost;
use crate::error::{Result, is_revoked};
use crate::gateway::{Gateway, Given, NamespaceRestore, Routes};
use crate::host::{Class, ListenerHint};
use crate::id::{ObjectId, Pool};
use crate::metrics::Metrics;
use crate::schema::facet_capnp::facet;
use crate::schema::restorer_capnp::{namespace, restorer};
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
            request.send().promise.map(move |reply| (class, text, reply))
        });
        restored.map_err(ServerError::from)
    });
    let restores = restores.collect::<std::result::Result<Vec<_>, _>>()?;
    let (mut given, mut references) = (Vec::new(), BTreeMap::new());
    for (of, text, reply) in join_all(restores).await {
        let class = of.name;
        let namespace = match reply {
            Ok(reply) => {
                let namespace = reply.get()?.get_cap().get_as_capability()?;
                wake(&namespace, of).await;
                Some(namespace)
            }
            // Requests get this error, as they did before the start.
            Err(error) if is_revoked(&error) => {
                tracing::warn!(%class, "its root reference was revoked: it is not served over HTTP; `capstead grant` makes another reference");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let (restorer, keys, hint) = (restorer.clone(), keys.clone(), hint.clone());
        let again = Box::new(move || -> Result<NamespaceRestore> {
            // Not the text from above, whose key may have been revoked since.
            let request = restore(&restorer, &reference(&keys.current(), class, &hint)?);
            Ok(request.send())
        });
        if namespace.is_some() {
            references.insert(class.to_owned(), text);
        }
        if of.is_open_to_http {
            given.push((class.to_owned(), Given { namespace, again }));
        }
    }
    Ok((Gateway::new(given, restorer, routes, metrics.clone()), references))
}

/// Wakes the objects of the class that are to be awake once.
async fn wake(namespace: &namespace::Client, class: &Class) {
    let woken = class.woken_at_start.iter().map(|name| {
        let mut by_name = namespace.by_name_request();
        by_name.get().set_key(name);
        let object = by_name.send().pipeline.get_object().as_cap();
        // Any call wakes it, and this one every object answers.
        facet::Client::new(object).grants_request().send().promise
    });
    for error in join_all(woken).await.into_iter().filter_map(Result::err) {
        tracing::warn!(class = class.name, %error, "an object doesn't wake");
    }
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
