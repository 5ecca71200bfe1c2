//! `capstead compact`: returns the space that deletions and random writes left unused.

use bytesize::ByteSize;
use clap::Args;

use super::operator::{self, Data};
use crate::server::compact_all;
use crate::storage::Access;

pub(super) const AFTER_HELP: &str = "\
The server must not run meanwhile. For each host a new storage is written beside the old one and takes \
its place in one step, so there must be room for a second one, and nothing is lost at whatever moment \
it is cut short.";

/// The data to compact.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    data: Data,
}

/// Returns once all hosts are compacted, or with the reason why they aren't.
pub(super) fn run(options: &Options) -> u8 {
    let map_bytes = options.data.space.options(Access::Full).map_bytes;
    let bar = operator::bar("compacting", Some(0));
    let compacted =
        compact_all(&options.data.path, map_bytes, options.data.group(), |_, done, of| {
            bar.set_length(of);
            bar.set_position(done);
        });
    bar.finish_and_clear();
    let compacted = compacted.map_err(Into::into).map(|compacted| {
        let (before, after) = (ByteSize(compacted.before), ByteSize(compacted.after));
        let records = compacted.records;
        format!("compacted {records} records: {before} before, {after} after")
    });
    operator::end(compacted, None)
}
