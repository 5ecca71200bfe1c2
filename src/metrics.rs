//! Counters of a server's events, shared by its threads and read by the operator.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use capstead_client::{Bites, Budget, Limit};

/// A number that only this module interprets. Its operations are relaxed, since nothing is decided
/// by it.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Log lines that could not be written because standard error didn't take them. The log belongs to
/// the process, not to a server.
pub(crate) static LOG_LINES_DROPPED: Count = Count(AtomicU64::new(0));

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident;)+) => {
        /// All metrics of one server process.
        #[derive(Debug, Default)]
        pub(crate) struct Metrics {
            $($(#[doc = $help])+ pub(crate) $name: Count,)+
            /// The number of times that each limit of connections was hit.
            pub(crate) limits: Arc<Bites>,
            /// The memory that clients' connections hold.
            pub(crate) held: OnceLock<Budget>,
        }

        impl Metrics {
            /// All metrics in the text format of Prometheus.
            pub(crate) fn render(&self) -> String {
                let mut text = String::new();
                $(
                    let help = concat!($($help),+).trim();
                    let (name, value) = (concat!("capstead_", stringify!($name)), self.$name.get());
                    let kind = stringify!($kind);
                    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
                )+
                render_limits(&self.limits, &mut text);
                render_held(self.held.get().map_or(0, Budget::bytes), &mut text);
                render_dropped(LOG_LINES_DROPPED.get(), &mut text);
                text
            }
        }
    };
}

metrics! {
    /// Calls that were started on objects.
    counter calls_total;
    /// Calls with a request id that were told what had become of them before, or why not.
    counter calls_repeated_total;
    /// Objects that were woken from storage.
    counter wakes_total;
    /// Instances awake in memory.
    gauge objects_awake;
    /// Calls that were refused because their grant keeps as many objects awake as it may.
    counter awake_shares_refused_total;
    /// Calls to exclusive or waking objects that were refused because they would have waited for
    /// themselves.
    counter deadlocks_refused_total;
    /// Calls that waited too long for an exclusive object, and objects that took too long to wake.
    counter waits_given_up_total;
    /// Alarms whose method was begun.
    counter alarms_fired_total;
    /// Those whose method failed or was cut short, or whose object did not wake.
    counter alarms_failed_total;
    /// Alarms that failed so often that they aren't tried again.
    counter alarms_dead_total;
    /// Milliseconds that alarms were begun after their time, all together.
    counter alarms_late_milliseconds_total;
    /// Turns that took longer than the first of their limits.
    counter turns_slow_total;
    /// Hosts that are held up by a turn, cut off from the others, or shutting down.
    gauge hosts_unready;
    /// Reads of the storage that memory could not answer.
    counter storage_reads_total;
    /// Group commits made durable, each with one write to the log and one sync of it.
    counter commits_total;
    /// Those that were applied from the log to the database since.
    counter commits_applied_total;
    /// Transactions by which that was done, each with one data sync and one synchronous write.
    counter applies_total;
    /// Bytes of the log that wait to be applied.
    gauge log_backlog_bytes;
    /// Microseconds that group commits took, all together.
    counter commit_microseconds_total;
    /// Turns whose writes were made durable.
    counter turns_committed_total;
    /// Writes that were refused for a quota or because space is low.
    counter writes_refused_total;
    /// Sturdyrefs that were restored.
    counter restores_total;
    /// Sturdyrefs that were refused.
    counter restores_refused_total;
    /// Grants that were revoked, without those that depended on them.
    counter grants_revoked_total;
    /// Cap'n Proto connections that are open.
    gauge connections;
    /// Links between hosts that broke and were made anew.
    counter links_remade_total;
    /// HTTP requests that came, whatever the answer; without those for which there was no
    /// connection.
    counter http_requests_total;
    /// HTTP requests and WebSockets that were refused because their reference, or everybody
    /// together, has no more of a route.
    counter http_route_shares_refused_total;
    /// HTTP connections that are open.
    gauge http_connections;
    /// HTTP connections that were refused since there were too many.
    counter http_connections_refused_total;
    /// Bytes of HTTP bodies that are held, of requests and of responses that nobody has taken yet,
    /// and of frames and unfinished messages of WebSockets.
    gauge http_body_bytes;
    /// HTTP requests whose body, or whose response, and messages of WebSockets that had no room.
    counter http_bodies_refused_total;
    /// HTTP requests whose body, and responses whose reader, was too slow.
    counter http_slow_total;
    /// WebSockets that are open.
    gauge http_sockets;
    /// WebSockets that ended without close frames: their client went away, didn't answer or didn't
    /// read.
    counter http_sockets_lost_total;
    /// Requests and WebSockets of objects to servers outside that are under way.
    gauge outbound_calls;
    /// Those that ended with the whole response, or with the WebSocket that they opened.
    counter outbound_answered_total;
    /// Those of which nothing was sent: their server wasn't reached, or too many were under way.
    counter outbound_not_sent_total;
    /// Those that were sent in part at least, with an outcome that nobody knows.
    counter outbound_unknown_total;
    /// Those that their object gave up, or whose object took no more of the response.
    counter outbound_given_up_total;
}

fn render_limits(limits: &Bites, text: &mut String) {
    let name = "capstead_limits_total";
    let help = "How often a limit of connections bit.";
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for limit in Limit::ALL {
        let _ = writeln!(text, "{name}{{limit=\"{}\"}} {}", limit.name(), limits.get(limit));
    }
}

fn render_held(bytes: usize, text: &mut String) {
    let name = "capstead_connections_bytes";
    let help = "What Cap'n Proto connections hold together, without the small change of each.";
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {bytes}\n");
}

fn render_dropped(lines: u64, text: &mut String) {
    let name = "capstead_log_lines_dropped_total";
    let help = "Log lines that standard error didn't take.";
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {lines}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_each_number_with_its_kind() {
        let metrics = Metrics::default();
        metrics.commits_total.add(3);
        metrics.objects_awake.add(2);
        metrics.objects_awake.subtract(1);
        metrics.limits.count(Limit::Idle);
        let text = metrics.render();
        assert!(text.contains("# TYPE capstead_commits_total counter\ncapstead_commits_total 3\n"));
        assert!(text.contains("# TYPE capstead_limits_total counter\n"));
        assert!(text.contains("capstead_limits_total{limit=\"idle\"} 1\n"));
        assert!(text.contains("capstead_limits_total{limit=\"stall\"} 0\n"));
        assert!(text.contains("# TYPE capstead_objects_awake gauge\ncapstead_objects_awake 1\n"));
    }
}
