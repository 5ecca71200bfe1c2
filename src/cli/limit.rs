//! `--limit NAME=VALUE`: the limits of connections as an operator writes them.
//!
//! The names are those of the metrics. A time of `0s` means no limit. Values are not checked for
//! sense, but a value with which a connection could do nothing at all, such as no calls, is
//! refused.

use std::fmt::Write;
use std::time::Duration;

use bytesize::ByteSize;
use capstead_client::{Limit, Limits};

type At<T> = fn(&mut Limits) -> &mut T;

/// One limit with its new value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Number(At<usize>, usize),
    Depth(At<u16>, u16),
    Time(At<Duration>, Duration),
}

/// The field that stores a limit.
#[derive(Clone, Copy, Debug)]
enum Field {
    Bytes(At<usize>),
    Count(At<usize>),
    Depth(At<u16>),
    Time(At<Duration>),
}

const FIELDS: &[(Limit, Field)] = &[
    (Limit::MessageBytes, Field::Bytes(|limits| &mut limits.message_bytes)),
    (Limit::Nesting, Field::Depth(|limits| &mut limits.nesting)),
    (Limit::Capabilities, Field::Count(|limits| &mut limits.capabilities)),
    (Limit::Calls, Field::Count(|limits| &mut limits.calls)),
    (Limit::CallBytes, Field::Bytes(|limits| &mut limits.call_bytes)),
    (Limit::QueuedBytes, Field::Bytes(|limits| &mut limits.queued_bytes)),
    (Limit::Answers, Field::Count(|limits| &mut limits.answers)),
    (Limit::Exports, Field::Count(|limits| &mut limits.exports)),
    (Limit::Imports, Field::Count(|limits| &mut limits.imports)),
    (Limit::Questions, Field::Count(|limits| &mut limits.questions)),
    (Limit::UnreadBytes, Field::Bytes(|limits| &mut limits.unread_bytes)),
    (Limit::UnsentBytes, Field::Bytes(|limits| &mut limits.unsent_bytes)),
    (Limit::SlowReader, Field::Time(|limits| &mut limits.slow_reader)),
    (Limit::Stall, Field::Time(|limits| &mut limits.stall)),
    (Limit::Idle, Field::Time(|limits| &mut limits.idle)),
    (Limit::Rate, Field::Bytes(|limits| &mut limits.rate)),
    (Limit::ExportBytes, Field::Bytes(|limits| &mut limits.export_bytes)),
    (Limit::StrangerMessageBytes, Field::Bytes(|limits| &mut limits.stranger_message_bytes)),
    (Limit::StrangerCalls, Field::Count(|limits| &mut limits.stranger_calls)),
    (Limit::StrangerTime, Field::Time(|limits| &mut limits.stranger_time)),
    (Limit::TotalBytes, Field::Bytes(|limits| &mut limits.total_bytes)),
    (Limit::Connections, Field::Count(|limits| &mut limits.connections)),
    (Limit::ConnectionsPerPeer, Field::Count(|limits| &mut limits.connections_per_peer)),
];

/// The smallest size to which messages may be limited: a call must fit.
const MESSAGE_MIN: ByteSize = ByteSize::kib(1);

fn limit_of_messages(name: &str) -> bool {
    [Limit::MessageBytes, Limit::StrangerMessageBytes].map(Limit::name).contains(&name)
}

/// Reads a flag's value.
pub(super) fn parse(text: &str) -> Result<Change, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("give it as NAME=VALUE, like calls=2048; --help has the names")?;
    let known = FIELDS.iter().find(|(limit, _)| limit.name() == name);
    let (_, field) =
        known.ok_or_else(|| format!("there is no limit {name:?}; --help has the names"))?;
    let wrong = |what: &str| format!("{value:?} is no {what}");
    Ok(match *field {
        Field::Bytes(field) => {
            let size: ByteSize = value.parse().map_err(|_| wrong("size, like 8MiB"))?;
            if limit_of_messages(name) && size < MESSAGE_MIN {
                return Err(format!("no call has room in {name}={value}; give 1KiB or more"));
            }
            if size.as_u64() == 0 {
                return Err(format!("nobody could do anything with {name}={value}"));
            }
            Change::Number(field, usize::try_from(size.as_u64()).unwrap_or(usize::MAX))
        }
        Field::Count(field) => {
            let count = value.parse().map_err(|_| wrong("number, like 2048"))?;
            if count == 0 {
                return Err(format!("nobody could do anything with {name}=0"));
            }
            Change::Number(field, count)
        }
        Field::Depth(field) => {
            let depth = value.parse().map_err(|_| wrong("number up to 65535"))?;
            if depth == 0 {
                return Err(format!("nobody could do anything with {name}=0"));
            }
            Change::Depth(field, depth)
        }
        Field::Time(field) => {
            let time = humantime::parse_duration(value);
            let time = time.map_err(|_| wrong("time, like 30s or 5m"))?;
            Change::Time(field, if time.is_zero() { Duration::MAX } else { time })
        }
    })
}

impl Change {
    pub(super) fn apply_to(self, limits: &mut Limits) {
        match self {
            Self::Number(field, value) => *field(limits) = value,
            Self::Depth(field, value) => *field(limits) = value,
            Self::Time(field, value) => *field(limits) = value,
        }
    }
}

/// The names with their defaults.
pub(super) fn after_help() -> String {
    let mut limits = Limits::default();
    let mut text =
        "Limits of a connection, with their defaults; a time of 0s is no limit:\n".to_owned();
    for (limit, field) in FIELDS {
        let value = match field {
            Field::Bytes(field) => {
                ByteSize::b(*field(&mut limits) as u64).display().iec().to_string()
            }
            Field::Count(field) => field(&mut limits).to_string(),
            Field::Depth(field) => field(&mut limits).to_string(),
            Field::Time(field) => humantime::format_duration(*field(&mut limits)).to_string(),
        };
        let _ = writeln!(text, "  {:<24}{value}", limit.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_can_be_changed_and_no_other_changes_with_it() {
        for (limit, field) in FIELDS {
            let text = match field {
                Field::Bytes(_) => "3KiB",
                Field::Time(_) => "3s",
                Field::Count(_) | Field::Depth(_) => "3",
            };
            let mut limits = Limits::default();
            parse(&format!("{}={text}", limit.name())).unwrap().apply_to(&mut limits);
            let mut expected = Limits::default();
            match field {
                Field::Bytes(field) => *field(&mut expected) = 3072,
                Field::Count(field) => *field(&mut expected) = 3,
                Field::Depth(field) => *field(&mut expected) = 3,
                Field::Time(field) => *field(&mut expected) = Duration::from_secs(3),
            }
            assert_eq!(limits, expected);
            assert_ne!(limits, Limits::default());
        }
    }

    #[test]
    fn no_time_is_no_limit() {
        let mut limits = Limits::default();
        parse("idle=0s").unwrap().apply_to(&mut limits);
        assert_eq!(limits, Limits { idle: Duration::MAX, ..Limits::default() });
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, error) in [
            ("calls", "give it as NAME=VALUE, like calls=2048; --help has the names"),
            ("unknown-kind=1", "there is no limit \"unknown-kind\"; --help has the names"),
            ("calls=0", "nobody could do anything with calls=0"),
            ("calls=many", "\"many\" is no number, like 2048"),
            ("call-bytes=big", "\"big\" is no size, like 8MiB"),
            ("nesting=65536", "\"65536\" is no number up to 65535"),
            ("idle=10", "\"10\" is no time, like 30s or 5m"),
        ] {
            assert_eq!(parse(text).unwrap_err(), error);
        }
    }
}
