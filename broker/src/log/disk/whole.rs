//! Reads that are whole: the kernel may return less than was asked for without having met the file's end, where a signal, a device
//! or a file system cut the transfer short. Whoever reads a log would take that for its end. So a disk asks for what is missing, and
//! reads that make no progress before the end are an error.

use std::io;
use std::ops::Deref;

use super::BLOCK;

/// Reads in a row that bring nothing more before that is an error.
const STALLS_MAX: u32 = 8;

/// What was read: in one piece, as it should be, or joined.
#[derive(Debug)]
pub(super) enum Whole<B> {
    /// The first bytes of it count.
    Single(B, usize),
    Joined(Vec<u8>),
}

/// Reads `len` bytes at `offset` of a file that has `left` bytes from there on, by `read(offset, len)`: fewer than `len` only where
/// the file ends.
pub(super) async fn read_whole<B: Deref<Target = [u8]>>(
    offset: u64,
    len: usize,
    left: u64,
    read: impl AsyncFn(u64, usize) -> io::Result<B>,
) -> io::Result<Whole<B>> {
    let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(len);
    if wanted == 0 {
        return Ok(Whole::Joined(Vec::new()));
    }
    let first = read(offset, len).await?;
    if first.len() >= wanted {
        return Ok(Whole::Single(first, wanted));
    }
    let mut joined = first.to_vec();
    drop(first);
    let mut stalls = 0;
    while joined.len() < wanted {
        // A direct read begins at a block: what was read of one in part is read again.
        let whole_blocks = joined.len() / BLOCK * BLOCK;
        let more = read(offset + whole_blocks as u64, len - whole_blocks).await?;
        if whole_blocks + more.len() <= joined.len() {
            stalls += 1;
            if stalls < STALLS_MAX {
                continue;
            }
            let sentence = format!("a read at {offset} brought {} of {wanted} bytes, again and again", joined.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, sentence));
        }
        stalls = 0;
        joined.truncate(whole_blocks);
        joined.extend_from_slice(&more);
    }
    joined.truncate(wanted);
    Ok(Whole::Joined(joined))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_lite::future::block_on;

    use super::*;

    /// Reads from a file of `size` bytes, each read bringing as many as `brings` says, in turn; all that there is where it says no more.
    fn read(size: usize, len: usize, brings: &[usize]) -> (io::Result<Vec<u8>>, Vec<(u64, usize)>) {
        let (asked, brings) = (RefCell::new(Vec::new()), RefCell::new(brings.iter()));
        let device = async |offset: u64, len: usize| {
            asked.borrow_mut().push((offset, len));
            let end = (offset as usize + len).min(size);
            let most = brings.borrow_mut().next().copied().unwrap_or(usize::MAX);
            let bytes: Vec<u8> = (offset as usize..end).take(most).map(|at| (at % 251) as u8).collect();
            io::Result::Ok(bytes)
        };
        let whole = block_on(read_whole(0, len, size as u64, device)).map(|whole| match whole {
            Whole::Single(bytes, known) => bytes[..known].to_vec(),
            Whole::Joined(bytes) => bytes,
        });
        (whole, asked.into_inner())
    }

    #[test]
    fn a_short_read_before_the_end_is_no_end() {
        let all = |len: usize| (0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>();
        let (whole, asked) = read(10 * BLOCK, 4 * BLOCK, &[]);
        assert_eq!((whole.unwrap(), asked.len()), (all(4 * BLOCK), 1), "one read as a rule");
        let (whole, asked) = read(10 * BLOCK, 4 * BLOCK, &[BLOCK + 512, 2 * BLOCK]);
        assert_eq!(whole.unwrap(), all(4 * BLOCK));
        let block = BLOCK as u64;
        assert_eq!(asked, [(0, 4 * BLOCK), (block, 3 * BLOCK), (3 * block, BLOCK)], "from block to block");
        let (whole, _) = read(BLOCK + 100, 4 * BLOCK, &[BLOCK]);
        assert_eq!(whole.unwrap(), all(BLOCK + 100), "and the end is one");
        let (whole, _) = read(10 * BLOCK, 4 * BLOCK, &[BLOCK + 512, 512, 0]);
        assert_eq!(whole.unwrap(), all(4 * BLOCK), "it need not come at the second try");
        for brings in [[0; 9], [512; 9]] {
            let (error, asked) = read(10 * BLOCK, 4 * BLOCK, &brings);
            assert_eq!((error.unwrap_err().kind(), asked.len()), (io::ErrorKind::UnexpectedEof, 9), "{brings:?}");
        }
    }
}
