//! The names of methods, which the operator reads in place of numbers.

use std::collections::HashMap;

use capnp::ErrorKind;
use capstead_client::sturdyref::Method;

use super::operator::Failure;
use crate::id::ObjectId;
use crate::schema::admin_capnp::host_admin;

/// The methods of an object, or of a namespace and its objects, whose names the server knows, or
/// this program where it opened the data itself. Invariant: each name is that of one method, so
/// that whatever is shown can be given back on a command line.
#[derive(Debug, Default)]
pub(super) struct MethodNames(HashMap<Method, String>);

impl MethodNames {
    pub(super) async fn ask(host: &host_admin::Client, id: ObjectId) -> Result<Self, Failure> {
        let mut request = host.methods_request();
        request.get().set_target(id.as_bytes());
        let reply = match request.send().promise.await {
            // A server of an earlier version, whose grants have numbers then.
            Err(error) if error.kind == ErrorKind::Unimplemented => return Ok(Self::default()),
            reply => reply?,
        };
        let (mut names, mut count) = (HashMap::new(), HashMap::<String, usize>::new());
        for method in reply.get()?.get_methods()? {
            let name = method.get_name()?.to_string().map_err(capnp::Error::from)?;
            *count.entry(name.clone()).or_default() += 1;
            names.insert(Method::new(method.get_interface(), method.get_ordinal()), name);
        }
        names.retain(|_, name| count[name] == 1);
        Ok(Self(names))
    }

    /// The name of the method, or its number if it has none of its own.
    pub(super) fn said(&self, method: Method) -> String {
        let number = || format!("{:#x}:{}", method.interface, method.ordinal);
        self.0.get(&method).cloned().unwrap_or_else(number)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::error::Result;

    /// A host with these methods, which knows none of a server's other calls.
    struct Host(Vec<(u64, u16, &'static str)>);

    impl host_admin::Server for Host {
        async fn methods(
            self: Rc<Self>,
            _: host_admin::MethodsParams,
            mut results: host_admin::MethodsResults,
        ) -> Result<()> {
            let mut list = results.get().init_methods(self.0.len() as u32);
            for (at, (interface, ordinal, name)) in (0..).zip(&self.0) {
                let mut to = list.reborrow().get(at);
                to.set_interface(*interface);
                to.set_ordinal(*ordinal);
                to.set_name(name);
            }
            Ok(())
        }
    }

    /// A host of a version that knew no such call.
    struct Old;

    impl host_admin::Server for Old {}

    fn said(host: host_admin::Client, methods: [(u64, u16); 4]) -> [String; 4] {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        let id = ObjectId::from_bytes([7; ObjectId::LEN]);
        let names = runtime.block_on(MethodNames::ask(&host, id)).unwrap();
        methods.map(|(interface, ordinal)| names.said(Method::new(interface, ordinal)))
    }

    #[test]
    fn a_method_has_its_name_if_no_other_has_it() {
        let known = vec![(7, 0, "Product.info"), (8, 3, "Shop.info"), (9, 1, "Product.info")];
        let methods = [(7, 0), (8, 3), (9, 1), (9, 2)];
        let expected = ["0x7:0", "Shop.info", "0x9:1", "0x9:2"];
        assert_eq!(said(capnp_rpc::new_client(Host(known)), methods), expected);
        let numbers = ["0x7:0", "0x8:3", "0x9:1", "0x9:2"];
        assert_eq!(said(capnp_rpc::new_client(Old), methods), numbers);
    }
}
