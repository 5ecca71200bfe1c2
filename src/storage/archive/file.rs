//! An archive as a stream: written frame by frame, and read back with every check.
//!
//! It buffers one frame, never seeks, and opens no file.

use std::io::{ErrorKind, Read, Write};

use sha2::{Digest, Sha256};

use super::order::Order;
use super::{
    ArchiveError, Frame, Frames, HEAD_BYTES, Head, LENGTH, MAGIC, Result, Totals, VERSION, judge,
    split_head,
};

/// Writes one archive.
#[derive(Debug)]
pub(crate) struct ArchiveWriter<W> {
    output: W,
    hash: Sha256,
    order: Order,
    written: u64,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive.
    ///
    /// # Errors
    /// The output can't be written to.
    pub(crate) fn begin(output: W, head: &Head<'_>) -> Result<Self> {
        let mut writer = Self { output, hash: Sha256::new(), order: Order::new(), written: 0 };
        writer.write(&[MAGIC.as_slice(), &[VERSION]].concat())?;
        writer.frame(&Frame::Head(*head))?;
        Ok(writer)
    }

    /// Adds one frame.
    ///
    /// # Errors
    /// The frame is out of place, or the output can't be written to. The archive is then unusable.
    pub(crate) fn frame(&mut self, frame: &Frame<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.frames(&bytes)
    }

    /// Adds frames that came from elsewhere, after checking each.
    ///
    /// # Errors
    /// As for `frame`, and when the frames are damaged.
    pub(crate) fn frames(&mut self, bytes: &[u8]) -> Result<()> {
        for frame in Frames::of(bytes) {
            let at = self.written;
            self.order.follow(&frame?).map_err(|what| ArchiveError::Damaged { at, what })?;
        }
        self.write(bytes)
    }

    /// Ends the archive; returns its totals and the output.
    ///
    /// # Errors
    /// The output can't be written to. The archive is then unusable.
    pub(crate) fn finish(mut self) -> Result<(Totals, W)> {
        let totals = self.order.totals();
        let hash = std::mem::take(&mut self.hash).finalize().into();
        self.frame(&Frame::End(totals, hash))?;
        self.output.flush()?;
        Ok((totals, self.output))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.output.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Reads one archive, and refuses everything else.
#[derive(Debug)]
pub(crate) struct ArchiveReader<R> {
    input: R,
    hash: Sha256,
    order: Order,
    /// The current frame.
    bytes: Vec<u8>,
    at: u64,
}

impl<R: Read> ArchiveReader<R> {
    /// Checks the first bytes.
    ///
    /// # Errors
    /// `Foreign`, `Version`, `Cut`, `Io`.
    pub(crate) fn open(input: R) -> Result<Self> {
        let (hash, order) = (Sha256::new(), Order::new());
        let mut reader = Self { input, hash, order, bytes: Vec::new(), at: 0 };
        reader.fill(MAGIC.len() + 1)?;
        match reader.bytes.as_slice() {
            [magic @ .., VERSION] if magic == MAGIC => {}
            [magic @ .., found] if magic == MAGIC => {
                return Err(ArchiveError::Version { found: *found });
            }
            bytes if MAGIC.starts_with(bytes) => return Err(reader.cut()),
            _ => return Err(ArchiveError::Foreign),
        }
        reader.take_bytes();
        Ok(reader)
    }

    /// The next frame and its bytes; `None` after the last one, when the whole archive was found
    /// good.
    ///
    /// # Errors
    /// `Cut`, `Damaged`, `Io`: all frames read before must be discarded too.
    pub(crate) fn read(&mut self) -> Result<Option<(Frame<'_>, &[u8])>> {
        self.take_bytes();
        let is_ended = self.order.is_ended();
        self.fill(HEAD_BYTES)?;
        if is_ended {
            return if self.bytes.is_empty() { Ok(None) } else { Err(self.damaged(TRAILING)) };
        }
        let head = self.bytes.first_chunk().ok_or_else(|| self.cut())?;
        let (length, sum) = split_head(*head).ok_or_else(|| self.damaged(LENGTH))?;
        self.fill(HEAD_BYTES + length)?;
        if self.bytes.len() < HEAD_BYTES + length {
            return Err(self.cut());
        }
        let at = self.at;
        let damaged = |what| ArchiveError::Damaged { at, what };
        let frame = judge(length, sum, &self.bytes[HEAD_BYTES..]).map_err(damaged)?;
        self.order.follow(&frame).map_err(damaged)?;
        if let Frame::End(_, hash) = &frame
            && *hash != <[u8; 32]>::from(self.hash.clone().finalize())
        {
            return Err(damaged(HASH));
        }
        Ok(Some((frame, &self.bytes)))
    }

    /// The totals so far.
    pub(crate) fn totals(&self) -> Totals {
        self.order.totals()
    }

    /// The number of bytes of the input that were read and accepted.
    pub(crate) fn position(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// The memory of the buffer, in bytes.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Reads until the buffer has this many bytes, or the input ends. The buffer grows with the
    /// bytes that arrive.
    fn fill(&mut self, length: usize) -> Result<()> {
        let missing = (length - self.bytes.len()) as u64;
        let mut input = (&mut self.input).take(missing);
        match input.read_to_end(&mut self.bytes) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Counts the buffer's bytes, which were accepted, and empties it.
    fn take_bytes(&mut self) {
        self.hash.update(&self.bytes);
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
    }

    fn cut(&self) -> ArchiveError {
        ArchiveError::Cut { at: self.position() }
    }

    fn damaged(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Damaged { at: self.at, what }
    }
}

const TRAILING: &str = "something follows its end";
const HASH: &str = "its parts don't belong together";
