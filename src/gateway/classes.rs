//! The classes that calls in JSON reach, each as its namespace describes it: its methods by name,
//! and its description for others.

use std::cell::{OnceCell, RefCell};
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
    /// Its description, once somebody asked for it.
    described: OnceCell<Bytes>,
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
        Ok(Self { name, about, table, methods, described: OnceCell::new() })
    }

    /// The method of that name: `increment`, or `Counter.increment` where more than one is called
    /// so.
    pub(super) fn method(&self, name: &str) -> OrRefusal<&MethodShape> {
        let is_called = |method: &&MethodShape| method.name == name || method.short_name() == name;
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

    /// Its description as OpenAPI 3.1.
    pub(super) fn open_api(&self) -> OrRefusal<Bytes> {
        if let Some(described) = self.described.get() {
            return Ok(described.clone());
        }
        let described = self.describe().map_err(|error| {
            let why = format!("{} can't be described: {error}\n", self.name);
            refuse(StatusCode::INTERNAL_SERVER_ERROR, why)
        })?;
        let described = Bytes::from(described.to_string());
        Ok(self.described.get_or_init(|| described).clone())
    }

    fn describe(&self) -> std::result::Result<Value, Unfit> {
        let (mut shapes, mut paths) = (Shapes::new(&self.table), Map::new());
        for method in &self.methods {
            let (params, results) = (shapes.of(&method.params)?, shapes.of(&method.results)?);
            let name = self.name_of(method);
            let operation = json!({
                "operationId": name,
                "description": method.about,
                "parameters": [
                    {"name": "name", "in": "path", "required": true, "schema": {"type": "string"}},
                    {"name": "save", "in": "query", "schema": {"type": "array", "items": {"type": "string"}},
                     "description": "Fields of the results whose capabilities are to become references."},
                    {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"},
                     "description": "The call with this key is applied once, and answered the same each time."},
                ],
                "requestBody": {"content": {"application/json": {"schema": params}}},
                "responses": {
                    "200": {"description": "The results.",
                            "content": {"application/json": {"schema": results}}},
                    "default": {"description": "The reason why there are none.",
                                "content": {"application/problem+json": {"schema": problem()}}},
                },
            });
            paths
                .insert(format!("/json/{}/{{name}}/{name}", self.name), json!({"post": operation}));
        }
        Ok(json!({
            "openapi": "3.1.0",
            "info": {"title": self.name, "version": "1", "description": self.about},
            "paths": paths,
            "components": {"schemas": shapes.describe()?},
        }))
    }
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
