//! The promises of a host about order, the gate and the end of instances.

mod alarms;
mod archive;
mod archive_grants;
mod awake;
mod chains;
mod elsewhere;
mod exclusive;
mod gate;
mod grants;
mod independence;
mod instance;
mod keeping;
mod links;
mod loops;
mod named_methods;
mod narrowing;
mod once;
mod order;
mod programs;
mod references;
mod rest;
mod shares;
mod storage;
mod transactions;
mod trial;
mod waking;
