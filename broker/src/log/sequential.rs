//! Reads a file from front to back in direct reads of one size: while one is worked on, the next one is under way. A start is as
//! fast as the slower of device and processor, and not as both together.
//!
//! ```text
//!   read_at(0) ─► wait for 0, begin 1 ─► work on 0 ─► read_at(1) ─► wait for 1, begin 2 ─► …
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use futures_lite::future::poll_once;

use super::disk::DiskFile;

type Reading<F> = Pin<Box<dyn Future<Output = io::Result<<F as DiskFile>::Bytes>>>>;

/// A file that is read so.
pub(super) struct SequentialFile<F: DiskFile> {
    file: Rc<F>,
    /// Bytes of each read.
    read: usize,
    ahead: Option<Ahead<F>>,
}

/// A read that was begun before it is wanted.
struct Ahead<F: DiskFile> {
    offset: u64,
    reading: Reading<F>,
    /// What it brought, where it has ended already.
    read: Option<io::Result<F::Bytes>>,
}

impl<F: DiskFile> SequentialFile<F> {
    pub fn new(file: F, read: usize) -> Self {
        Self { file: Rc::new(file), read, ahead: None }
    }

    /// The same with reads of `read` bytes.
    pub fn reading(self, read: usize) -> Self {
        Self { read, ahead: None, ..self }
    }

    /// Bytes of each read.
    pub fn read(&self) -> usize {
        self.read
    }

    /// The file itself, for reads out of order.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// The bytes at `offset`, one read of them or what is left of the file; begins to read what follows them.
    pub async fn read_at(&mut self, offset: u64) -> io::Result<F::Bytes> {
        let wanted = match self.ahead.take() {
            Some(ahead) if ahead.offset == offset => ahead,
            _ => self.begin(offset).await,
        };
        let next = offset + self.read as u64;
        if next < self.file.size() {
            self.ahead = Some(self.begin(next).await);
        }
        match wanted.read {
            Some(read) => read,
            None => wanted.reading.await,
        }
    }

    /// A read is begun when it is polled first.
    async fn begin(&self, offset: u64) -> Ahead<F> {
        let (file, len) = (self.file.clone(), self.read);
        let mut reading: Reading<F> = Box::pin(async move { file.read_at(offset, len).await });
        let read = poll_once(&mut reading).await;
        Ahead { offset, reading, read }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_lite::future::{block_on, yield_now};

    use super::*;

    /// A file of bytes that tell their offset by the read, each read ending after one turn.
    struct Slow {
        size: u64,
        begun: Rc<RefCell<Vec<u64>>>,
    }

    impl DiskFile for Slow {
        type Buffer = Vec<u8>;
        type Bytes = Vec<u8>;

        fn size(&self) -> u64 {
            self.size
        }

        async fn extend(&self, _size: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn write_at(&self, _buffer: Vec<u8>, _offset: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
            self.begun.borrow_mut().push(offset);
            yield_now().await;
            let end = self.size.min(offset + len as u64);
            if offset == 30 {
                Err(io::Error::other("a bad block"))
            } else {
                Ok((offset..end).map(|at| at as u8).collect())
            }
        }

        async fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_read_is_always_under_way_and_none_is_made_twice() {
        let begun = Rc::new(RefCell::new(Vec::new()));
        let mut file = SequentialFile::new(Slow { size: 45, begun: begun.clone() }, 10);
        let bytes = |offset: u64, end: u64| Some((offset..end).map(|at| at as u8).collect::<Vec<_>>());
        assert_eq!(block_on(file.read_at(0)).ok(), bytes(0, 10));
        assert_eq!(*begun.borrow(), [0, 10], "what follows is on its way");
        assert_eq!(block_on(file.read_at(10)).ok(), bytes(10, 20));
        assert_eq!(block_on(file.read_at(20)).ok(), bytes(20, 30));
        assert!(block_on(file.read_at(30)).is_err());
        assert_eq!(block_on(file.read_at(40)).ok(), bytes(40, 45), "an error is of its own read");
        assert_eq!(*begun.borrow(), [0, 10, 20, 30, 40], "nothing behind the end");
        assert_eq!(block_on(file.read_at(10)).ok(), bytes(10, 20), "out of order it is a read like any other");
        assert_eq!(begun.borrow()[5..], [10, 20]);
    }
}
