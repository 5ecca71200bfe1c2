//! Checks a complete environment without opening it: would LMDB find a file that it can use?
//!
//! LMDB maps its file and trusts it. A file that was cut short ends the process with SIGBUS, and an
//! opening changes files before it fails. So a server checks all of its environments first. A file
//! that is shorter than the last page in its meta page may still be complete, because LMDB never
//! writes pages that it allocated and freed again; in that case the check looks for every page in
//! use. It never writes, locks or maps anything, and never reads a record. It doesn't notice damage
//! within pages, or most wrong numbers that are still possible ones.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::storage::error::io_error;
use crate::storage::error::{Result, StorageError};
use crate::storage::lmdb::dir::{self, LMDB_LOCK};
use crate::storage::lmdb::layout::Kind;
use crate::storage::lmdb::owned::Owner;

const HEADER_BYTES: usize = 16;
const FLAGS_AT: usize = 10;
/// The offset of the end of a page's list of nodes, where the free room begins.
const LOWER_AT: usize = 12;
const FLAG_META: u16 = 0x08;
const FLAG_BRANCH: u16 = 0x01;
/// A branch or a leaf: the root of a tree is one of them.
const FLAGS_TREE: u16 = 0x03;

/// The header of a node: three numbers of two bytes and the length of its key. Then come its key,
/// and its value or the value's place.
const NODE_BYTES: usize = 8;
const NODE_FLAGS_AT: usize = 4;
const NODE_KEY_BYTES_AT: usize = 6;
/// The value has pages of its own.
const NODE_FLAG_BIG: u16 = 0x01;

const MAGIC: u32 = 0xBEEF_C0DE;
const VERSION: u32 = 1;
const VERSION_AT: usize = HEADER_BYTES + 4;
const TREES_AT: usize = HEADER_BYTES + 24;
const TREE_BYTES: usize = 48;
const ROOT_IN_TREE: usize = TREE_BYTES - 8;
const LAST_PAGE_AT: usize = TREES_AT + 2 * TREE_BYTES;
const TRANSACTION_AT: usize = LAST_PAGE_AT + 8;
const META_BYTES: usize = TRANSACTION_AT + 8;

/// The root of an empty tree.
const NO_PAGE: u64 = u64::MAX;
const META_PAGES: u64 = 2;
const PAGE_BYTES_MIN: u64 = 512;
const PAGE_BYTES_MAX: u64 = 65_536;

/// Checks that the environment in `path` is complete, belongs to `owner`, has this format, and is
/// not cut short.
///
/// # Errors
/// `MarkerMissing`, `NotOurs`, `Format`, `DataMissing`, `Damaged`, `Io`: nothing was changed, and
/// the environment must not be opened.
pub(crate) fn check(path: &Path, kind: Kind, owner: Owner) -> Result<()> {
    let data = dir::check_complete(path, kind, owner)?;
    let damaged = |what| StorageError::Damaged { path: data.clone(), what };
    let file = owner.open(&data).map_err(io_error("open", &data))?;
    check_lock(&path.join(LMDB_LOCK), owner)?;
    let length = file.metadata().map_err(io_error("read", &data))?.len();
    let pages = Pages { file, length };
    match pages.check() {
        Ok(None) => Ok(()),
        Ok(Some(what)) => Err(damaged(what)),
        Err(error) => Err(io_error("read", &data)(error)),
    }
}

/// LMDB creates its lock file where it is missing.
fn check_lock(lock: &Path, owner: Owner) -> Result<()> {
    match owner.open(lock) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("open", lock)(error)),
        _ => Ok(()),
    }
}

struct Pages {
    file: File,
    length: u64,
}

/// The content of one of the two meta pages.
struct Meta {
    page_bytes: u64,
    roots: [u64; 2],
    last_page: u64,
    transaction: u64,
}

impl Pages {
    /// The fault in the file, if there is one.
    fn check(&self) -> std::io::Result<Option<&'static str>> {
        const CUT: &str = "it was cut short";
        const FOREIGN: &str = "it doesn't begin as LMDB's data do";
        if self.length < META_BYTES as u64 {
            return Ok(Some(CUT));
        }
        let Some(first) = self.meta(0)? else { return Ok(Some(FOREIGN)) };
        let page_bytes = first.page_bytes;
        if self.length < META_PAGES * page_bytes {
            return Ok(Some(CUT));
        }
        let Some(second) = self.meta(page_bytes)? else { return Ok(Some(FOREIGN)) };
        if second.page_bytes != page_bytes {
            return Ok(Some(FOREIGN));
        }
        // The pages are written in turn, so of two consecutive transactions the even one is the
        // first page's.
        let is_even = first.transaction.is_multiple_of(2);
        if !is_even || first.transaction.abs_diff(second.transaction) != 1 {
            return Ok(Some("its two roots don't follow one another"));
        }
        let newer = if second.transaction > first.transaction { second } else { first };
        for root in newer.roots.into_iter().filter(|root| *root != NO_PAGE) {
            if root < META_PAGES || root > newer.last_page {
                return Ok(Some("the root of a tree is nowhere"));
            }
            if root >= self.length / page_bytes {
                return Ok(Some(CUT));
            }
            if !self.is_tree(root, page_bytes)? {
                return Ok(Some("the root of a tree is damaged"));
            }
        }
        if self.length / page_bytes > newer.last_page {
            return Ok(None);
        }
        self.check_pages_in_use(&newer)
    }

    /// Checks that every page to which the trees lead is in the file.
    fn check_pages_in_use(&self, meta: &Meta) -> std::io::Result<Option<&'static str>> {
        const DAMAGED: &str = "a page of a tree is damaged";
        let pages = self.length / meta.page_bytes;
        let mut left: Vec<u64> = meta.roots.into_iter().filter(|root| *root != NO_PAGE).collect();
        let mut page = vec![0; meta.page_bytes as usize];
        // No sound tree has more pages than the file. A damaged one may lead in circles.
        for _ in 0..=pages {
            let Some(number) = left.pop() else { return Ok(None) };
            if number >= pages {
                return Ok(Some("it was cut short"));
            }
            self.file.read_exact_at(&mut page, number * meta.page_bytes)?;
            let Some(found) = (u64_at(&page, 0) == number).then(|| leads(&page)).flatten() else {
                return Ok(Some(DAMAGED));
            };
            if found.large.iter().any(|end| *end > pages) {
                return Ok(Some("it was cut short"));
            }
            left.extend(found.children);
        }
        Ok(Some(DAMAGED))
    }

    fn meta(&self, at: u64) -> std::io::Result<Option<Meta>> {
        let mut bytes = [0; META_BYTES];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(Meta::parse(&bytes))
    }

    /// Tells whether the page has its own number in its header and is part of a tree.
    fn is_tree(&self, number: u64, page_bytes: u64) -> std::io::Result<bool> {
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, number * page_bytes)?;
        Ok(u64_at(&header, 0) == number && u16_at(&header, FLAGS_AT) & FLAGS_TREE != 0)
    }
}

impl Meta {
    fn parse(bytes: &[u8; META_BYTES]) -> Option<Self> {
        let is_meta = u16_at(bytes, FLAGS_AT) & FLAG_META != 0;
        let is_known = u32_at(bytes, HEADER_BYTES) == MAGIC && u32_at(bytes, VERSION_AT) == VERSION;
        let page_bytes = u64::from(u32_at(bytes, TREES_AT));
        let is_size =
            page_bytes.is_power_of_two() && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes);
        let root = |tree| u64_at(bytes, TREES_AT + tree * TREE_BYTES + ROOT_IN_TREE);
        (is_meta && is_known && is_size).then(|| Self {
            page_bytes,
            roots: [root(0), root(1)],
            last_page: u64_at(bytes, LAST_PAGE_AT),
            transaction: u64_at(bytes, TRANSACTION_AT),
        })
    }
}

/// The pages to which a page of a tree refers.
#[derive(Default)]
struct Leads {
    /// Pages of the tree.
    children: Vec<u64>,
    /// The number after the last page of each large value.
    large: Vec<u64>,
}

/// Returns `None` when it is no page of a tree.
fn leads(page: &[u8]) -> Option<Leads> {
    let flags = u16_at(page, FLAGS_AT);
    if flags & FLAGS_TREE == 0 {
        return None;
    }
    let mut leads = Leads::default();
    let nodes = usize::from(u16_at(page, LOWER_AT)).checked_sub(HEADER_BYTES)? / 2;
    for number in 0..nodes {
        let place = page.get(HEADER_BYTES + 2 * number..)?.get(..2)?;
        let node = page.get(usize::from(u16_at(place, 0))..)?;
        let head = node.get(..NODE_BYTES)?;
        let low = u64::from(u16_at(head, 0)) | u64::from(u16_at(head, 2)) << 16;
        let node_flags = u16_at(head, NODE_FLAGS_AT);
        if flags & FLAG_BRANCH != 0 {
            leads.children.push(low | u64::from(node_flags) << 32);
        } else if node_flags & NODE_FLAG_BIG != 0 {
            let at = NODE_BYTES + usize::from(u16_at(head, NODE_KEY_BYTES_AT));
            let first = u64_at(node.get(at..)?.get(..8)?, 0);
            let bytes = HEADER_BYTES as u64 + low;
            leads.large.push(first.checked_add(bytes.div_ceil(page.len() as u64))?);
        }
    }
    Some(leads)
}

// LMDB writes numbers in the machine's byte order.

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::storage::lmdb::engine::Environment;
    use crate::storage::lmdb::engine::make;
    use crate::storage::range::Direction;

    fn look(path: &Path, kind: Kind) -> Result<()> {
        check(path, kind, Owner::ours())
    }

    fn made() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), Kind::Objects).unwrap();
        let data = dir.path().join("data.mdb");
        (dir, data)
    }

    #[test]
    fn a_whole_environment_passes_however_often_it_was_opened() {
        let (dir, _) = made();
        for _ in 0..5 {
            look(dir.path(), Kind::Objects).unwrap();
            make(dir.path(), Kind::Objects).unwrap();
        }
        let error = look(dir.path(), Kind::Config).unwrap_err();
        assert!(matches!(error, StorageError::NotOurs(_)), "{error}");
    }

    /// Cuts the file at every page, so that pages of small records and of large values are missing
    /// at its end.
    #[test]
    fn a_file_that_is_cut_anywhere_is_refused_or_whole() {
        cut_everywhere(&[(0..180, 90), (180..190, 20_000), (190..200, 20_000)]);
        cut_everywhere(&[(0..10, 20_000), (10..20, 20_000), (20..2_000, 90)]);
    }

    /// Writes each part in one transaction, with values of this many bytes.
    fn cut_everywhere(parts: &[(std::ops::Range<u32>, usize)]) {
        let (dir, data) = made();
        let env = Environment::open(dir.path(), Kind::Objects, 1 << 24).unwrap();
        let put = |keys: std::ops::Range<u32>, bytes: usize| {
            let key = |n: u32| [b"a key", n.to_be_bytes().as_slice()].concat();
            env.write(|changes| {
                keys.clone().try_for_each(|n| changes.put(&key(n), &vec![7; bytes]))
            })
            .unwrap();
        };
        // First makes some free pages near the beginning, because the roots move there in the end.
        (0..20).for_each(|n| put(n..n + 5, 3_000));
        (0..20).for_each(|_| put(0..5, 10));
        for (keys, bytes) in parts {
            put(keys.clone(), *bytes);
        }
        (0..10).for_each(|_| put(0..1, 3_000));
        drop(env);
        look(dir.path(), Kind::Objects).unwrap();
        let whole = fs::read(&data).unwrap();
        let read = || {
            let env = Environment::open(dir.path(), Kind::Objects, 1 << 24).unwrap();
            let mut bytes = 0;
            let visit = |_: &[u8], record: &[u8]| {
                bytes += record.len();
                Ok(std::ops::ControlFlow::Continue(()))
            };
            let walked =
                env.read(|snapshot| snapshot.walk((b"a", Some(b"b")), Direction::Up, visit));
            assert!(walked.unwrap().is_continue());
            bytes
        };
        let all = read();
        let mut refused = 0;
        for pages in 2..whole.len() / 4_096 {
            fs::write(&data, &whole[..pages * 4_096]).unwrap();
            match look(dir.path(), Kind::Objects) {
                Ok(()) => assert_eq!(read(), all, "{pages} pages"),
                Err(StorageError::Damaged { .. }) => refused += 1,
                Err(error) => panic!("{pages} pages: {error}"),
            }
        }
        assert!(refused > 50, "{refused}");
    }

    /// LMDB would fall back to the older root, and to the data of that time.
    #[test]
    fn a_root_with_a_number_that_it_cannot_have_is_found() {
        let (dir, data) = made();
        for opening in 0..4 {
            make(dir.path(), Kind::Objects).unwrap();
            let whole = fs::read(&data).unwrap();
            let mut unseen = 0;
            for (page, bit) in (0..2).flat_map(|page| (0..64).map(move |bit| (page, bit))) {
                let mut changed = whole.clone();
                changed[page * 4_096 + TRANSACTION_AT + bit / 8] ^= 1 << (bit % 8);
                fs::write(&data, &changed).unwrap();
                match look(dir.path(), Kind::Objects) {
                    Err(StorageError::Damaged { .. }) => {}
                    found => {
                        assert!(found.is_ok() && bit == 1, "{opening}, {page}, {bit}: {found:?}");
                        unseen += 1;
                    }
                }
            }
            assert!(unseen <= 2, "of one neighbour each can become the other: {unseen}");
            fs::write(&data, &whole).unwrap();
        }
        look(dir.path(), Kind::Objects).unwrap();
    }

    #[test]
    fn whatever_is_missing_or_cut_is_found() {
        let refused = |spoil: &dyn Fn(&Path)| {
            let (dir, data) = made();
            spoil(&data);
            look(dir.path(), Kind::Objects).unwrap_err()
        };
        for length in [0, 100, 4_096, 5_000, 8_191, 8_192] {
            let cut = |data: &Path| {
                File::options().write(true).open(data).unwrap().set_len(length).unwrap();
            };
            let error = refused(&cut);
            assert!(matches!(error, StorageError::Damaged { .. }), "{length}: {error}");
        }
        let error = refused(&|data| fs::write(data, vec![0xA5; 20_000]).unwrap());
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
        let error = refused(&|data| fs::remove_file(data).unwrap());
        assert!(matches!(error, StorageError::DataMissing(_)), "{error}");
        let error = refused(&|data| fs::remove_file(data.with_file_name("CAPSTEAD")).unwrap());
        assert!(matches!(error, StorageError::MarkerMissing(_)), "{error}");
        let error = refused(&|data| fs::write(data.with_file_name("CAPSTEAD"), "cap").unwrap());
        assert!(matches!(error, StorageError::MarkerMissing(_)), "{error}");
    }
}
