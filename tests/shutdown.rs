//! Calls under way are answered before a server ends, wherever their objects are.

mod support;

use support::{Served, by_name, increment, run};
