//! The classes that calls in JSON reach, each as its namespace describes it: its methods by name,
//! and its description for others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use capnp::traits::HasTypeId;
use http::StatusCode;
use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use crate::dynamic::{MethodShape, Shapes, Table, Unfit};
use crate::error::{Result, failed};
use crate::http::{OrRefusal, http_service, refuse};
use crate::schema::restorer_capnp::{namespace::describe_results, restorer};

/// The things that calls need beside the objects.
pub(super) struct JsonCalls {
    pub(super) restorer: restorer::Client,
    /// By the lower-case name of the class.
    pub(super) classes: RefCell<HashMap<String, Rc<JsonClass>>>,
}

impl JsonCalls {
    pub(super) fn new(restorer: restorer::Client) -> Self {
        Self { restorer, classes: RefCell::default() }
    }

    /// The hosts may serve other versions of the classes from now on.
    pub(super) fn forget(&self) {
        drop(self.classes.take());
    }
}

/// The methods of a class.
pub(super) struct JsonClass {
    name: String,
    about: String,
    pub(super) table: Table,
    methods: Vec<MethodShape>,
    /// Its descriptions, once somebody asked for them.
    described: RefCell<HashMap<JsonPlace, Bytes>>,
}

/// The paths by which a class's methods are called, as a description says them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct JsonPlace {
    /// The name of a method follows, unless there is only one.
    pub(super) path: String,
    /// The names of its parts in braces.
    pub(super) parts: Vec<String>,
    /// The only method.
    pub(super) method: Option<String>,
}

impl JsonClass {
    /// # Errors
    /// When the namespace's answer can't be understood.
    pub(super) fn of(described: describe_results::Reader<'_>) -> Result<Self> {
        let name = described.get_class()?.to_str()?.to_owned();
        let table = Table::new(described.get_schema()?)
            .map_err(|error| failed(format!("the schema of {name} can't be read: {error}")))?;
        let interface = described.get_interface();
        let (mut methods, about) =
            (table.methods(interface), table.about_interface(interface).into());
        // Requests come by the gateway, which answers for their heads.
        methods.retain(|method| method.interface != http_service::Client::TYPE_ID);
        Ok(Self { name, about, table, methods, described: RefCell::default() })
    }

    /// The method of that name: `increment`, or `Counter.increment` where more than one is called
    /// so.
    pub(super) fn method(&self, name: &str) -> OrRefusal<&MethodShape> {
        let is_called = |method: &&MethodShape| is_called(method, name);
        let mut found = self.methods.iter().filter(is_called);
        match (found.next(), found.next()) {
            (Some(method), None) => Ok(method),
            (Some(_), Some(_)) => {
                let all = self.methods.iter().filter(is_called);
                let all: Vec<_> = all.map(|method| method.name.as_str()).collect();
                let why = format!(
                    "More than one method is called {name}: say one of {}.\n",
                    all.join(", ")
                );
                Err(refuse(StatusCode::NOT_FOUND, why))
            }
            (None, _) => {
                let all: Vec<_> = self.methods.iter().map(|method| self.name_of(method)).collect();
                let why = match all[..] {
                    [] => format!("{} has no methods.\n", self.name),
                    _ => format!(
                        "{} has no method {name:?}; it has {}.\n",
                        self.name,
                        all.join(", ")
                    ),
                };
                Err(refuse(StatusCode::NOT_FOUND, why))
            }
        }
    }

    /// The name by which a method is called in paths.
    fn name_of<'a>(&self, method: &'a MethodShape) -> &'a str {
        let is_same = |other: &&MethodShape| other.short_name() == method.short_name();
        match self.methods.iter().filter(is_same).count() {
            1 => method.short_name(),
            _ => &method.name,
        }
    }

    /// Its description as OpenAPI 3.1, for clients of `/json`.
    pub(super) fn open_api(&self) -> OrRefusal<Bytes> {
        let path = format!("/json/{}/{{name}}", self.name);
        self.open_api_at(&JsonPlace { path, parts: vec!["name".to_owned()], method: None })
    }

    /// The same for clients of another place. There are few places.
    pub(super) fn open_api_at(&self, place: &JsonPlace) -> OrRefusal<Bytes> {
        if let Some(described) = self.described.borrow().get(place) {
            return Ok(described.clone());
        }
        let described = self.describe(place).map_err(|error| {
            let why = format!("{} can't be described: {error}\n", self.name);
            refuse(StatusCode::INTERNAL_SERVER_ERROR, why)
        })?;
        let described = Bytes::from(described.to_string());
        self.described.borrow_mut().insert(place.clone(), described.clone());
        Ok(described)
    }

    fn describe(&self, place: &JsonPlace) -> std::result::Result<Value, Unfit> {
        let (mut shapes, mut paths) = (Shapes::new(&self.table), Map::new());
        let is_here = |method: &&MethodShape| {
            place.method.as_ref().is_none_or(|only| is_called(method, only))
        };
        for method in self.methods.iter().filter(is_here) {
            let (params, results) = (shapes.of(&method.params)?, shapes.of(&method.results)?);
            let name = self.name_of(method);
            let path = match place.method {
                Some(_) => place.path.clone(),
                None => format!("{}/{name}", place.path),
            };
            let mut parameters: Vec<_> = place.parts.iter().map(|part| {
                json!({"name": part, "in": "path", "required": true, "schema": {"type": "string"}})
            }).collect();
            parameters.extend(options());
            let operation = json!({
                "operationId": name,
                "description": method.about,
                "parameters": parameters,
                "requestBody": {"content": {"application/json": {"schema": params}}},
                "responses": {
                    "200": {"description": "The results.",
                            "content": {"application/json": {"schema": results}}},
                    "default": {"description": "The reason why there are none.",
                                "content": {"application/problem+json": {"schema": problem()}}},
                },
            });
            paths.insert(path, json!({"post": operation}));
        }
        Ok(json!({
            "openapi": "3.1.0",
            "info": {"title": self.name, "version": "1", "description": self.about},
            "paths": paths,
            "components": {"schemas": shapes.describe()?},
        }))
    }
}

/// Tells whether a method has this name, in short or with its interface.
fn is_called(method: &MethodShape, name: &str) -> bool {
    method.name == name || method.short_name() == name
}

/// The parameters that all calls have.
fn options() -> [Value; 2] {
    [
        json!({"name": "save", "in": "query", "schema": {"type": "array", "items": {"type": "string"}},
               "description": "Fields of the results whose capabilities are to become references."}),
        json!({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"},
               "description": "The call with this key is applied once, and answered the same each time."}),
    ]
}

fn problem() -> Value {
    json!({
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "reason": {"type": "string"},
            "outcome": {"enum": ["happened", "not", "unknown"]},
        },
    })
}
