//! Servers in this process whose hosts and links are made to fail.

mod ends;
mod holds;
mod imports;
mod links;
mod silence;
mod survive;
mod world;
