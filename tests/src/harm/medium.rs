//! A shard's directory and its ring files in memory, behind the log's own traits. Copies share their blocks, so that one costs
//! next to nothing; every operation is done at once. Files may have any length, as only a truncated one has.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use peregrine_broker::log::disk::{Access, BLOCK, Disk, DiskFile, RingHost, RingMemory};

type Block = [u8; BLOCK];

/// The bytes of a file: whole blocks, of which `len` bytes count.
#[derive(Clone, Debug, Default)]
struct Contents {
    blocks: Vec<Rc<Block>>,
    len: usize,
}

impl Contents {
    fn new(bytes: &[u8]) -> Self {
        let mut contents = Self::default();
        contents.resize(bytes.len());
        contents.write(0, bytes);
        contents
    }

    fn resize(&mut self, len: usize) {
        let zero = Rc::new([0; BLOCK]);
        self.blocks.resize(len.div_ceil(BLOCK), zero);
        if len < self.len && !len.is_multiple_of(BLOCK) {
            // What grows again behind a cut is zeros.
            Rc::make_mut(&mut self.blocks[len / BLOCK])[len % BLOCK..].fill(0);
        }
        self.len = len;
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = at % BLOCK;
            let (part, behind) = rest.split_at(rest.len().min(BLOCK - within));
            let block = &mut self.blocks[at / BLOCK];
            if block[within..within + part.len()] != *part {
                Rc::make_mut(block)[within..within + part.len()].copy_from_slice(part);
            }
            at += part.len();
            rest = behind;
        }
    }

    fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let end = self.len.min(offset + len);
        let mut bytes = Vec::with_capacity(end.saturating_sub(offset));
        let mut at = offset;
        while at < end {
            let to = end.min((at / BLOCK + 1) * BLOCK);
            bytes.extend_from_slice(&self.blocks[at / BLOCK][at % BLOCK..at % BLOCK + (to - at)]);
            at = to;
        }
        bytes
    }
}

type File = Rc<RefCell<Contents>>;

/// Both a disk and a host of rings.
#[derive(Clone, Debug, Default)]
pub struct Medium {
    files: Rc<RefCell<BTreeMap<String, File>>>,
    /// `None` while one is held. Copies share the bytes until one of them is written to: a ring is most of what there is to copy.
    rings: Rc<RefCell<BTreeMap<String, Option<Rc<Vec<u8>>>>>>,
}

impl Medium {
    /// Another one with the same contents, which goes its own way from here on.
    pub fn copy(&self) -> Self {
        let files = self.files.borrow();
        let files = files.iter().map(|(name, file)| (name.clone(), Rc::new(RefCell::new(file.borrow().clone()))));
        Self {
            files: Rc::new(RefCell::new(files.collect())),
            rings: Rc::new(RefCell::new(self.rings.borrow().clone())),
        }
    }

    pub fn names(&self) -> Vec<String> {
        self.files.borrow().keys().cloned().collect()
    }

    pub fn ring_names(&self) -> Vec<String> {
        self.rings.borrow().keys().cloned().collect()
    }

    /// A whole file or ring.
    ///
    /// # Panics
    /// Where there is none of that name.
    pub fn get(&self, name: &str) -> Vec<u8> {
        if let Some(file) = self.files.borrow().get(name) {
            return file.borrow().read(0, usize::MAX / 2);
        }
        self.ring(name).to_vec()
    }

    fn ring(&self, name: &str) -> Rc<Vec<u8>> {
        self.rings.borrow().get(name).cloned().flatten().expect("a file or a ring of that name")
    }

    pub fn len(&self, name: &str) -> usize {
        let file_len = self.files.borrow().get(name).map(|file| file.borrow().len);
        file_len.unwrap_or_else(|| self.ring(name).len())
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.files.borrow_mut().insert(name.to_owned(), Rc::new(RefCell::new(Contents::new(bytes))));
    }

    pub fn put_ring(&self, path: &str, bytes: Vec<u8>) {
        self.rings.borrow_mut().insert(path.to_owned(), Some(Rc::new(bytes)));
    }

    pub fn remove_file(&self, name: &str) {
        self.files.borrow_mut().remove(name);
    }

    pub fn remove_rings(&self) {
        self.rings.borrow_mut().clear();
    }

    /// Bytes of a file or ring from an offset on, fewer at its end.
    pub fn read(&self, name: &str, offset: usize, len: usize) -> Vec<u8> {
        if let Some(file) = self.files.borrow().get(name) {
            return file.borrow().read(offset, len);
        }
        let ring = self.ring(name);
        ring[offset.min(ring.len())..(offset + len).min(ring.len())].to_vec()
    }

    /// Writes into a file or ring behind the log's back.
    pub fn write(&self, name: &str, offset: usize, bytes: &[u8]) {
        if let Some(file) = self.files.borrow().get(name) {
            file.borrow_mut().write(offset, bytes);
        } else if let Some(Some(ring)) = self.rings.borrow_mut().get_mut(name) {
            Rc::make_mut(ring)[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Cuts a file or ring, or has it end in zeros.
    pub fn resize(&self, name: &str, len: usize) {
        if let Some(file) = self.files.borrow().get(name) {
            file.borrow_mut().resize(len);
        } else if let Some(Some(ring)) = self.rings.borrow_mut().get_mut(name) {
            Rc::make_mut(ring).resize(len, 0);
        }
    }

    fn file(&self, name: &str) -> io::Result<File> {
        self.files.borrow().get(name).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Disk for Medium {
    type File = MediumFile;
    type Buffer = Vec<u8>;

    fn buffer(&self, len: usize) -> Vec<u8> {
        vec![0; len]
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    async fn open(&self, name: &str, _access: Access) -> io::Result<MediumFile> {
        self.file(name).map(MediumFile)
    }

    async fn create(&self, name: &str, size: u64) -> io::Result<MediumFile> {
        if self.file(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut contents = Contents::default();
        contents.resize(size as usize);
        let file = Rc::new(RefCell::new(contents));
        self.files.borrow_mut().insert(name.to_owned(), Rc::clone(&file));
        Ok(MediumFile(file))
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if self.file(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = self.file(from)?;
        self.files.borrow_mut().remove(from);
        self.files.borrow_mut().insert(to.to_owned(), file);
        Ok(())
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        self.files.borrow_mut().remove(name);
        Ok(())
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    async fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    async fn pause(&self, _rest: Duration) {}
}

/// An open file.
#[derive(Debug)]
pub struct MediumFile(File);

impl DiskFile for MediumFile {
    type Buffer = Vec<u8>;
    type Bytes = Vec<u8>;

    fn size(&self) -> u64 {
        self.0.borrow().len as u64
    }

    async fn extend(&self, size: u64) -> io::Result<()> {
        self.0.borrow_mut().resize(size as usize);
        Ok(())
    }

    async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> io::Result<()> {
        self.0.borrow_mut().write(offset as usize, &buffer);
        Ok(())
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().read(offset as usize, len))
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl RingHost for Medium {
    type Memory = MediumRing;

    fn open(&self, path: &str) -> io::Result<Option<MediumRing>> {
        match self.rings.borrow_mut().get_mut(path) {
            Some(held) => {
                let bytes = held.take().ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))?;
                Ok(Some(MediumRing { medium: self.clone(), path: Some(path.to_owned()), bytes }))
            }
            None => Ok(None),
        }
    }

    fn create(&self, path: &str, len: usize) -> io::Result<MediumRing> {
        self.rings.borrow_mut().insert(path.to_owned(), None);
        Ok(MediumRing { medium: self.clone(), path: Some(path.to_owned()), bytes: Rc::new(vec![0; len]) })
    }

    fn anonymous(&self, len: usize) -> io::Result<MediumRing> {
        Ok(MediumRing { medium: self.clone(), path: None, bytes: Rc::new(vec![0; len]) })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.rings.borrow_mut().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A ring that is held; dropping it leaves its bytes for the next start, as a kill does.
#[derive(Debug)]
pub struct MediumRing {
    medium: Medium,
    path: Option<String>,
    bytes: Rc<Vec<u8>>,
}

impl RingMemory for MediumRing {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes: &mut Vec<u8> = Rc::make_mut(&mut self.bytes);
        bytes
    }

    fn store_u64(&mut self, offset: usize, value: u64) {
        self.bytes_mut()[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn resize(&mut self, len: usize) -> io::Result<()> {
        Rc::make_mut(&mut self.bytes).resize(len, 0);
        Ok(())
    }
}

impl Drop for MediumRing {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Some(held) = self.medium.rings.borrow_mut().get_mut(path)
            && held.is_none()
        {
            *held = Some(std::mem::take(&mut self.bytes));
        }
    }
}
