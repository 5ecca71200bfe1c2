//! Parses the output of strace: all that happens to the files of a folder, and the acknowledgements
//! among it.
//!
//! It is strict: anything about the folder that it doesn't understand is an error, because an
//! overlooked write would make every image of a crash wrong. Strings must be in hexadecimal (`-xx`)
//! and descriptors with their paths (`-y`), so that no byte of the data can be taken for syntax.

use std::collections::BTreeMap;
use std::path::Path;

/// A file of the folder, whatever its name is: its number in the order in which files were made.
pub(crate) type File = usize;

/// LMDB's table of readers, which holds no data and is made anew by the next process.
pub(crate) const UNRECORDED: &str = "lock.mdb";

/// The events, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A file was written to; from now on the bytes may reach the disk.
    Write {
        /// The file.
        file: File,
        /// The offset in the file.
        at: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The write at this place of the list is on the disk: its descriptor is synchronous.
    Written(usize),
    /// All writes to this file before this place of the list are on the disk.
    Synced {
        /// The file.
        file: File,
        /// The place.
        before: usize,
    },
    /// Names changed, all at once: each is that of this file from now on, or of none.
    Named(Vec<(String, Option<File>)>),
    /// All changes of names before this place of the list are on the disk.
    FolderSynced {
        /// The place.
        before: usize,
    },
    /// The process began to report that this turn is durable.
    Acknowledged(u64),
}

/// The steps in `folder`, which held files of these names, numbered in this order; or the first
/// line that isn't understood.
pub(crate) fn parse(trace: &str, folder: &Path, names: &[String]) -> Result<Vec<Step>, String> {
    let mut reader = Reader {
        folder: folder.to_str().ok_or("the path is no text")?.to_owned(),
        names: names.iter().cloned().zip(0..).collect(),
        files: names.len(),
        steps: Vec::new(),
        open: BTreeMap::new(),
        begun: BTreeMap::new(),
    };
    for (number, line) in trace.lines().enumerate() {
        let shown = || line.chars().take(200).collect::<String>();
        reader.line(line).map_err(|error| format!("line {}: {error}: {}", number + 1, shown()))?;
    }
    Ok(reader.steps)
}

struct Reader {
    folder: String,
    /// The files by their present names.
    names: BTreeMap<String, File>,
    /// The number of files so far.
    files: usize,
    steps: Vec<Step>,
    /// By descriptor.
    open: BTreeMap<u32, Open>,
    /// By thread: the call that has begun but not ended.
    begun: BTreeMap<String, Begun>,
}

/// A descriptor of a file of the folder.
struct Open {
    file: File,
    is_synchronous: bool,
    /// The offset of the next `write`.
    position: u64,
}

/// A call that has begun; its effect on the folder is known, but not whether it succeeds.
enum Begun {
    /// A call that doesn't concern the folder.
    Other,
    Open {
        /// `None` for a file that isn't there.
        file: Option<File>,
        is_new: bool,
        is_synchronous: bool,
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
        /// `None` for the folder itself.
        file: Option<File>,
        before: usize,
    },
    Name,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (thread, rest) = line.split_once(' ').ok_or("there is no thread")?;
        let rest = rest.trim_start();
        if rest.starts_with("+++ ") || rest.starts_with("--- ") {
            return Ok(());
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let begun = self.begun.remove(thread).ok_or("it ends what hasn't begun")?;
            return self.end(begun, result(resumed)?);
        }
        let (name, rest) = rest.split_once('(').ok_or("there is no call")?;
        if let Some(arguments) = rest.strip_suffix("<unfinished ...>") {
            let begun = self.begin(name, arguments.trim_end())?;
            return match self.begun.insert(thread.to_owned(), begun) {
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
        match name {
            "openat" => return self.begin_open(arguments),
            "rename" | "renameat" | "renameat2" | "unlink" | "unlinkat" => {
                return self.begin_name(name, arguments);
            }
            "open" | "creat" | "link" | "linkat" | "symlink" | "symlinkat" => {
                let is_other = self.recorded(arguments)?.iter().all(Option::is_none);
                return if is_other { Ok(Begun::Other) } else { Err(unknown(name)) };
            }
            "copy_file_range" => return Err(unknown(name)),
            "msync" => return Err("a mapping was written to, and nobody knows where".to_owned()),
            _ => {}
        }
        let (descriptor, path, rest) = described(arguments)?;
        if name == "write" && descriptor == 1 {
            self.steps.push(Step::Acknowledged(acknowledged(rest)?));
            return Ok(Begun::Other);
        }
        let before = self.steps.len();
        if path == self.folder && matches!(name, "fsync" | "fdatasync") {
            return Ok(Begun::Sync { file: None, before });
        }
        if self.recorded_name(&path).is_none() {
            return Ok(Begun::Other);
        }
        let Open { file, position, .. } =
            *self.open.get(&descriptor).ok_or("it was never opened")?;
        match name {
            "lseek" => Ok(Begun::Seek { descriptor }),
            "fdatasync" | "fsync" => Ok(Begun::Sync { file: Some(file), before }),
            "write" | "writev" | "pwrite64" => {
                let bytes = strings(rest)?.concat();
                let length = bytes.len() as u64;
                let moves = name != "pwrite64";
                let at = if moves {
                    position
                } else {
                    let (_, at) = rest.rsplit_once(", ").ok_or("there is no offset")?;
                    at.parse().map_err(|_| "the offset is no number")?
                };
                self.steps.push(Step::Write { file, at, bytes });
                Ok(Begun::Write { descriptor, step: before, length, moves })
            }
            _ => Err(unknown(name)),
        }
    }

    fn begin_open(&mut self, arguments: &str) -> Result<Begun, String> {
        let has = |flag: &str| arguments.split([',', '|', ' ']).any(|word| word == flag);
        let names = self.recorded(arguments)?;
        let [Some(name)] = &names[..] else { return Ok(Begun::Other) };
        let mut file = self.names.get(name).copied();
        if has("O_TRUNC") && file.is_some() {
            return Err("the file is emptied".to_owned());
        }
        let is_new = file.is_none() && has("O_CREAT");
        if is_new {
            file = Some(self.files);
            self.files += 1;
            self.name(vec![(name.clone(), file)]);
        }
        Ok(Begun::Open { file, is_new, is_synchronous: has("O_DSYNC") || has("O_SYNC") })
    }

    fn begin_name(&mut self, call: &str, arguments: &str) -> Result<Begun, String> {
        let names = self.recorded(arguments)?;
        let names: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
        let file = |name| self.names.get(name).copied().ok_or("this name is not known");
        match (&names[..], call.starts_with("rename")) {
            ([], _) => return Ok(Begun::Other),
            (&[from, to], true) => {
                let file = file(from)?;
                self.name(vec![(from.to_owned(), None), (to.to_owned(), Some(file))]);
            }
            (&[name], false) => {
                file(name)?;
                self.name(vec![(name.to_owned(), None)]);
            }
            _ => return Err(unknown(call)),
        }
        Ok(Begun::Name)
    }

    fn name(&mut self, names: Vec<(String, Option<File>)>) {
        for (name, file) in &names {
            match file {
                Some(file) => self.names.insert(name.clone(), *file),
                None => self.names.remove(name),
            };
        }
        self.steps.push(Step::Named(names));
    }

    fn end(&mut self, begun: Begun, result: &str) -> Result<(), String> {
        let number = || result.parse::<u64>().map_err(|_| format!("it failed with {result}"));
        match begun {
            Begun::Other => {
                if let Ok((descriptor, path, _)) = described(result) {
                    self.open.remove(&descriptor);
                    if self.recorded_name(&path).is_some() {
                        return Err("it is opened oddly".to_owned());
                    }
                }
            }
            Begun::Open { file, is_new, is_synchronous } => match (described(result), file) {
                (Ok((descriptor, ..)), Some(file)) => {
                    self.open.insert(descriptor, Open { file, is_synchronous, position: 0 });
                }
                (Ok(_), None) => return Err("a file is there that wasn't".to_owned()),
                (Err(_), _) if is_new => return Err(format!("it failed with {result}")),
                // A file that couldn't be opened has no descriptor.
                (Err(_), _) => {}
            },
            Begun::Seek { descriptor } => self.opened(descriptor)?.position = number()?,
            Begun::Write { descriptor, step, length, moves } => {
                if number()? != length {
                    return Err("not all of it was written".to_owned());
                }
                let open = self.opened(descriptor)?;
                if moves {
                    open.position += length;
                }
                if open.is_synchronous {
                    self.steps.push(Step::Written(step));
                }
            }
            Begun::Sync { file, before } => {
                if number()? != 0 {
                    return Err("it did not sync".to_owned());
                }
                self.steps.push(match file {
                    Some(file) => Step::Synced { file, before },
                    None => Step::FolderSynced { before },
                });
            }
            Begun::Name => {
                number()?;
            }
        }
        Ok(())
    }

    fn opened(&mut self, descriptor: u32) -> Result<&mut Open, String> {
        self.open.get_mut(&descriptor).ok_or_else(|| "it was never opened".to_owned())
    }

    /// For each path among the arguments: its name in the folder, if it is recorded.
    fn recorded(&self, arguments: &str) -> Result<Vec<Option<String>>, String> {
        let name = |path| self.recorded_name(&String::from_utf8_lossy(path));
        Ok(strings(arguments)?.iter().map(|path| name(path)).collect())
    }

    fn recorded_name(&self, path: &str) -> Option<String> {
        let name = path.strip_prefix(&self.folder)?.strip_prefix('/')?;
        (name != UNRECORDED).then(|| name.to_owned())
    }
}

fn unknown(name: &str) -> String {
    format!("the call {name} isn't known here")
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

/// All strings of an argument; those of a vector are one write.
fn strings(arguments: &str) -> Result<Vec<Vec<u8>>, String> {
    let parts: Vec<&str> = arguments.split('"').collect();
    if parts.len() < 3 || parts.len().is_multiple_of(2) {
        return Err("there is no whole string".to_owned());
    }
    let mut all = Vec::new();
    for (text, after) in parts[1..].iter().step_by(2).zip(parts[2..].iter().step_by(2)) {
        if after.starts_with("...") {
            return Err("a string was cut short".to_owned());
        }
        all.push(unhex(text).ok_or("a string isn't in hexadecimal")?);
    }
    Ok(all)
}

fn acknowledged(arguments: &str) -> Result<u64, String> {
    let text = String::from_utf8(strings(arguments)?.concat()).map_err(|_| "it is no text")?;
    let number = text.strip_prefix("ack ").and_then(|text| text.strip_suffix('\n'));
    number.and_then(|text| text.parse().ok()).ok_or("it is no acknowledgement".to_owned())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |four: &[u8]| match four {
        [b'\\', b'x', high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(4).map(byte).collect()
}
