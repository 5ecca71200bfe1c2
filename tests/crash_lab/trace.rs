//! Parses the output of strace: the writes and syncs of one file, and the acknowledgements among
//! them.
//!
//! It is strict: anything about that file that it doesn't understand is an error, because an
//! overlooked write would make every image of a crash wrong. Strings must be in hexadecimal (`-xx`)
//! and descriptors with their paths (`-y`), so that no byte of the data can be taken for syntax.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// The events, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The file was written to; from now on the bytes may reach the disk.
    Write {
        /// The offset in the file.
        at: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The write at this place of the list is on the disk: its descriptor is synchronous.
    Written(usize),
    /// All writes before this place of the list are on the disk.
    Synced(usize),
    /// The process began to report that this turn is durable.
    Acknowledged(u64),
}

/// The steps of the file `data`, or the first line that isn't understood.
pub(crate) fn parse(trace: &str, data: &Path) -> Result<Vec<Step>, String> {
    let mut reader = Reader {
        data: data.to_str().ok_or("the path is no text")?.to_owned(),
        steps: Vec::new(),
        positions: BTreeMap::new(),
        synchronous: BTreeSet::new(),
        open: BTreeMap::new(),
    };
    for (number, line) in trace.lines().enumerate() {
        let shown = || line.chars().take(200).collect::<String>();
        reader.line(line).map_err(|error| format!("line {}: {error}: {}", number + 1, shown()))?;
    }
    Ok(reader.steps)
}

struct Reader {
    data: String,
    steps: Vec<Step>,
    /// The offset of the next `write` on each descriptor of the file.
    positions: BTreeMap<u32, u64>,
    synchronous: BTreeSet<u32>,
    /// By thread: the call that has begun but not ended.
    open: BTreeMap<String, Begun>,
}

/// A call that has begun; its effect on the file is known, but not whether it succeeds.
enum Begun {
    /// A call that doesn't concern the file.
    Other,
    Open {
        synchronous: bool,
    },
    Seek {
        descriptor: u32,
    },
    Write {
        descriptor: u32,
        step: usize,
        length: u64,
        moves: bool,
    },
    Sync {
        before: usize,
    },
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (thread, rest) = line.split_once(' ').ok_or("there is no thread")?;
        let rest = rest.trim_start();
        if rest.starts_with("+++ ") || rest.starts_with("--- ") {
            return Ok(());
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let begun = self.open.remove(thread).ok_or("it ends what hasn't begun")?;
            return self.end(begun, result(resumed)?);
        }
        let (name, rest) = rest.split_once('(').ok_or("there is no call")?;
        if let Some(arguments) = rest.strip_suffix("<unfinished ...>") {
            let begun = self.begin(name, arguments.trim_end())?;
            return match self.open.insert(thread.to_owned(), begun) {
                None => Ok(()),
                Some(_) => Err("a thread makes two calls at a time".to_owned()),
            };
        }
        let (arguments, _) = rest.rsplit_once(" = ").ok_or("there is no result")?;
        let arguments = arguments.trim_end().strip_suffix(')').ok_or("the call doesn't end")?;
        let begun = self.begin(name, arguments)?;
        self.end(begun, result(rest)?)
    }

    fn begin(&mut self, name: &str, arguments: &str) -> Result<Begun, String> {
        if name == "openat" {
            let has = |flag: &str| arguments.split([',', '|', ' ']).any(|word| word == flag);
            if has("O_TRUNC") && arguments.contains(&hex(self.data.as_bytes())) {
                return Err("the file is emptied".to_owned());
            }
            return Ok(Begun::Open { synchronous: has("O_DSYNC") || has("O_SYNC") });
        }
        if matches!(name, "open" | "creat") {
            // LMDB opens its files with `openat`.
            let is_other = !arguments.contains(&hex(self.data.as_bytes()));
            return if is_other { Ok(Begun::Other) } else { Err("it is opened oddly".to_owned()) };
        }
        if name == "msync" {
            return Err("a mapping was written to, and nobody knows where".to_owned());
        }
        let (descriptor, path, rest) = described(arguments)?;
        if name == "write" && descriptor == 1 {
            self.steps.push(Step::Acknowledged(acknowledged(rest)?));
            return Ok(Begun::Other);
        }
        if path != self.data {
            return Ok(Begun::Other);
        }
        let step = self.steps.len();
        match name {
            "lseek" => Ok(Begun::Seek { descriptor }),
            "fdatasync" | "fsync" => Ok(Begun::Sync { before: step }),
            "write" | "writev" | "pwrite64" => {
                let bytes = strings(rest)?;
                let length = bytes.len() as u64;
                let moves = name != "pwrite64";
                let at = if moves {
                    *self.positions.get(&descriptor).ok_or("it was never opened")?
                } else {
                    let (_, at) = rest.rsplit_once(", ").ok_or("there is no offset")?;
                    at.parse().map_err(|_| "the offset is no number")?
                };
                self.steps.push(Step::Write { at, bytes });
                Ok(Begun::Write { descriptor, step, length, moves })
            }
            _ => Err("this call on the file isn't known".to_owned()),
        }
    }

    fn end(&mut self, begun: Begun, result: &str) -> Result<(), String> {
        let number = || result.parse::<u64>().map_err(|_| format!("it failed with {result}"));
        match begun {
            Begun::Other => {}
            Begun::Open { synchronous } => {
                // A file that couldn't be opened has no descriptor.
                let Ok((descriptor, path, _)) = described(result) else { return Ok(()) };
                self.synchronous.remove(&descriptor);
                if path == self.data {
                    self.positions.insert(descriptor, 0);
                    if synchronous {
                        self.synchronous.insert(descriptor);
                    }
                }
            }
            Begun::Seek { descriptor } => {
                self.positions.insert(descriptor, number()?);
            }
            Begun::Write { descriptor, step, length, moves } => {
                if number()? != length {
                    return Err("not all of it was written".to_owned());
                }
                if moves {
                    *self.positions.entry(descriptor).or_default() += length;
                }
                if self.synchronous.contains(&descriptor) {
                    self.steps.push(Step::Written(step));
                }
            }
            Begun::Sync { before } => {
                if number()? != 0 {
                    return Err("it did not sync".to_owned());
                }
                self.steps.push(Step::Synced(before));
            }
        }
        Ok(())
    }
}

/// The text after the last `=`: a number, a descriptor with its path, or an error.
fn result(rest: &str) -> Result<&str, String> {
    Ok(rest.rsplit_once(" = ").ok_or("there is no result")?.1.trim())
}

/// The first descriptor, its path, and the rest of the text.
fn described(arguments: &str) -> Result<(u32, String, &str), String> {
    let (descriptor, rest) = arguments.split_once('<').ok_or("there is no descriptor")?;
    let (path, rest) = rest.split_once('>').ok_or("the descriptor has no path")?;
    let descriptor = descriptor.parse().map_err(|_| "the descriptor is no number")?;
    // A path that isn't in hexadecimal is that of a pipe or a socket, and of no file.
    let path = unhex(path).unwrap_or_default();
    Ok((descriptor, String::from_utf8_lossy(&path).into_owned(), rest))
}

/// All strings of an argument, joined: the strings of a vector are one write.
fn strings(arguments: &str) -> Result<Vec<u8>, String> {
    let parts: Vec<&str> = arguments.split('"').collect();
    if parts.len() < 3 || parts.len().is_multiple_of(2) {
        return Err("there is no whole string".to_owned());
    }
    let mut bytes = Vec::new();
    for (text, after) in parts[1..].iter().step_by(2).zip(parts[2..].iter().step_by(2)) {
        if after.starts_with("...") {
            return Err("a string was cut short".to_owned());
        }
        bytes.extend(unhex(text).ok_or("a string isn't in hexadecimal")?);
    }
    Ok(bytes)
}

fn acknowledged(arguments: &str) -> Result<u64, String> {
    let text = String::from_utf8(strings(arguments)?).map_err(|_| "it is no text")?;
    let number = text.strip_prefix("ack ").and_then(|text| text.strip_suffix('\n'));
    number.and_then(|text| text.parse().ok()).ok_or("it is no acknowledgement".to_owned())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |four: &[u8]| match four {
        [b'\\', b'x', high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(4).map(byte).collect()
}
