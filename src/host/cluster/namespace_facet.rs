//! A namespace as clients and gateways hold it: by a reference, with a grant. Holding it is the
//! right to reach each object of its class.
//!
//! Invariants:
//! - A capability that it hands out ends with its grant, and no later than itself.
//! - It does no more than its caveats allow; what they leave out looks as if it weren't there.

use std::rc::Rc;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capnp::traits::HasTypeId;
use capstead_client::sturdyref::Target;

use super::agent::Agent;
use crate::error::{Result, failed, no_such_method};
use crate::host::api::namespace::{anonymous, named};
use crate::host::authority::calls::{self, grant_id, wanted, write_grants};
use crate::host::authority::giving::{self, Grantor};
use crate::host::authority::records::target_id;
use crate::host::base::caveats::caveats;
use crate::host::base::right::may_call;
use crate::host::base::right::{Right, revoked};
use crate::host::state::class::Class;
use crate::host::state::cluster::{Cluster, Existence};
use crate::id::{ObjectId, Pool};
use crate::membrane::{self, Call, CallTarget, deliver};
use crate::schema::facet_capnp::{facet, persistent};
use crate::schema::restorer_capnp::namespace;

/// The capability. Its methods are those of [`NamespaceCalls`].
pub(in crate::host) struct NamespaceFacet(Rc<NamespaceCalls>);

/// The server of the calls on a namespace.
struct NamespaceCalls {
    agent: Rc<Agent>,
    class: Rc<Class>,
    right: Right,
}

impl NamespaceFacet {
    pub(in crate::host) fn wrap(
        agent: Rc<Agent>,
        class: Rc<Class>,
        right: Right,
    ) -> Box<dyn ClientHook> {
        membrane::wrap(Rc::new(Self(Rc::new(NamespaceCalls { agent, class, right }))))
    }
}

impl CallTarget for NamespaceFacet {
    fn enqueue(self: Rc<Self>, call: Call) {
        let NamespaceCalls { agent, right, .. } = &*self.0;
        if right.is_cut() {
            return agent.vat.tell_when_durable(call.reply, revoked());
        }
        if let Err(error) = right.check_time(&agent.vat.clock) {
            return call.reply.send(Err(error));
        }
        if !may_call(right, call.method) {
            let error = no_such_method(call.method);
            return call.reply.send(Err(error));
        }
        let server = self.0.clone();
        let answers = match call.method.interface {
            namespace::Client::TYPE_ID => {
                membrane::serve::<namespace::Client, _>(server).into_client_hook()
            }
            facet::Client::TYPE_ID => {
                membrane::serve::<facet::Client, _>(server).into_client_hook()
            }
            persistent::Client::TYPE_ID => {
                membrane::serve::<persistent::Client, _>(server).into_client_hook()
            }
            _ => return call.reply.send(Err(no_such_method(call.method))),
        };
        deliver(&*answers, call);
    }
}

impl Drop for NamespaceFacet {
    fn drop(&mut self) {
        membrane::forget(self);
    }
}

impl NamespaceCalls {
    fn id(&self) -> ObjectId {
        ObjectId::namespace(Pool::default(), self.class.name)
    }

    /// Checks the right once more, after a wait.
    async fn check(&self) -> Result<()> {
        if self.right.is_cut() {
            self.agent.vat.flush().await?;
        }
        self.right.check(&self.agent.vat.clock)
    }
}

impl namespace::Server for NamespaceCalls {
    async fn by_name(
        self: Rc<Self>,
        params: namespace::ByNameParams,
        mut results: namespace::ByNameResults,
    ) -> Result<()> {
        let spec = named(&self.class, params.get()?.get_key()?.to_str()?)?;
        let object = self.agent.object(&spec, Existence::Any, &self.right.of_objects())?;
        results.get().init_object().set_as_capability(object);
        Ok(())
    }

    async fn try_get(
        self: Rc<Self>,
        params: namespace::TryGetParams,
        mut results: namespace::TryGetResults,
    ) -> Result<()> {
        let spec = named(&self.class, params.get()?.get_key()?.to_str()?)?;
        let object = self.agent.find(&spec, &self.right.of_objects()).await?;
        self.check().await?;
        if let Some(object) = object {
            results.get().init_object().set_as_capability(object);
        }
        Ok(())
    }

    async fn create(
        self: Rc<Self>,
        _: namespace::CreateParams,
        mut results: namespace::CreateResults,
    ) -> Result<()> {
        let near = ObjectId::anonymous(self.agent.any_shard(Pool::default())?)
            .map_err(|error| failed(format!("no randomness for a new object: {error}")))?;
        let spec = anonymous(&self.class, near)?;
        let object = self.agent.object(&spec, Existence::Any, &self.right.of_objects())?;
        results.get().init_object().set_as_capability(object);
        Ok(())
    }

    async fn describe(
        self: Rc<Self>,
        _: namespace::DescribeParams,
        mut results: namespace::DescribeResults,
    ) -> Result<()> {
        let (interface, schema) = self.class.schema;
        let mut described = results.get();
        described.set_class(self.class.name);
        described.set_interface(interface);
        described.set_schema(schema);
        Ok(())
    }
}

impl persistent::Server for NamespaceCalls {
    async fn save(
        self: Rc<Self>,
        params: persistent::SaveParams,
        mut results: persistent::SaveResults,
    ) -> Result<()> {
        let (vat, id) = (&self.agent.vat, self.id());
        let terms = wanted(params.get()?.get_seal_for()?)?;
        vat.turns.outside_turns().await;
        let target = Target::Namespace(target_id(id));
        let by = (&self.right, Grantor::Holder);
        let ready = giving::prepare(vat, &self.agent.keys(), target, by, &terms)?;
        giving::add(vat, id, &ready)?;
        vat.flush().await?;
        self.check().await?;
        results.get().set_sturdy_ref(self.agent.text(&ready.reference)?);
        Ok(())
    }
}

impl facet::Server for NamespaceCalls {
    async fn attenuate(
        self: Rc<Self>,
        params: facet::AttenuateParams,
        mut results: facet::AttenuateResults,
    ) -> Result<()> {
        let right = self.right.narrowed(&caveats(params.get()?.get_caveats()?)?)?;
        let narrow = NamespaceFacet::wrap(self.agent.clone(), self.class.clone(), right);
        results.get().init_facet().set_as_capability(narrow);
        Ok(())
    }

    async fn grants(
        self: Rc<Self>,
        params: facet::GrantsParams,
        mut results: facet::GrantsResults,
    ) -> Result<()> {
        let after = params.get()?.get_after()?;
        let (grants, next) = calls::list(&self.agent.vat, self.id(), &self.right, after)?;
        self.agent.vat.turns.durable_of(self.id()).await?;
        if let Some(next) = next {
            results.get().set_next(next.as_bytes());
        }
        write_grants(results.get().init_grants(grants.len() as u32), &grants);
        Ok(())
    }

    async fn revoke(
        self: Rc<Self>,
        params: facet::RevokeParams,
        _: facet::RevokeResults,
    ) -> Result<()> {
        let (vat, id) = (&self.agent.vat, grant_id(params.get()?.get_grant()?)?);
        let reached = calls::check_reach(vat, self.id(), &self.right, id).map(drop);
        if reached.is_err() {
            vat.turns.durable_of(self.id()).await?;
        }
        reached?;
        giving::revoke(vat, self.id(), id).await
    }
}
