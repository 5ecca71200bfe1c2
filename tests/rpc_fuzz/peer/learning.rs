//! The facts that the peer learns from the messages of the server.

use capnp_rpc::rpc_capnp::{cap_descriptor, disembargo, message, payload, resolve, return_};

use super::Peer;

impl Peer {
    /// Learns from a message of the server.
    pub(crate) fn learn(&mut self, message: message::Reader) -> capnp::Result<()> {
        match message.which()? {
            message::Return(answer) => self.learn_answer(answer?)?,
            message::Call(call) => {
                let call = call?;
                self.seen.calls += 1;
                self.theirs.push(call.get_question_id());
                self.import_all(call.get_params()?)?;
            }
            message::Resolve(resolve) => {
                self.seen.resolves += 1;
                if let resolve::Cap(cap) = resolve?.which()?
                    && let Some(id) = hosted_there(cap?)?
                {
                    self.imports.push(id);
                }
            }
            message::Release(release) => {
                let (id, count) = release.map(|it| (it.get_id(), it.get_reference_count()))?;
                self.learn_release(id, count);
            }
            message::Disembargo(embargo) => {
                self.seen.disembargoes += 1;
                if let disembargo::context::SenderLoopback(id) = embargo?.get_context().which()? {
                    self.embargoes.push(id);
                }
            }
            message::Abort(abort) => {
                self.seen.abort = Some(abort?.get_reason()?.to_string()?);
            }
            _ => {}
        }
        Ok(())
    }

    fn learn_release(&mut self, id: u32, count: u32) {
        let Some(given) = self.given.get_mut(&id) else { return };
        *given = given.saturating_sub(count);
        if *given == 0 {
            self.given.remove(&id);
            self.hosted.retain(|other| *other != id);
            self.promises.retain(|other| *other != id);
            self.free_exports.push(id);
        }
    }

    fn learn_answer(&mut self, answer: return_::Reader) -> capnp::Result<()> {
        self.seen.returns += 1;
        let id = answer.get_answer_id();
        let mut caps = Vec::new();
        match answer.which()? {
            return_::Results(results) => caps = self.import_all(results?)?,
            return_::ResultsSentElsewhere(()) => self.seen.reflected += 1,
            return_::Exception(error) => {
                let reason = error?.get_reason()?.to_string()?;
                *self.seen.errors.entry(reason).or_default() += 1;
            }
            _ => {}
        }
        let Some(at) = self.open.iter().position(|asked| asked.id == id) else { return Ok(()) };
        match self.open.swap_remove(at).finished {
            None => drop(self.answered.insert(id, caps)),
            Some(releases) => {
                if releases {
                    self.forget_imports(&caps);
                }
                self.free_questions.push(id);
            }
        }
        Ok(())
    }

    fn import_all(&mut self, payload: payload::Reader) -> capnp::Result<Vec<u32>> {
        let mut caps = Vec::new();
        for cap in payload.get_cap_table()? {
            caps.extend(hosted_there(cap)?);
        }
        self.imports.extend(&caps);
        Ok(caps)
    }
}

fn hosted_there(cap: cap_descriptor::Reader) -> capnp::Result<Option<u32>> {
    match cap.which()? {
        cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id) => Ok(Some(id)),
        _ => Ok(None),
    }
}
