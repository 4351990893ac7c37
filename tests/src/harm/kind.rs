//! The harms that are done, each as a word that a command line can repeat.

use std::fmt;
use std::str::FromStr;

use super::medium::Medium;
use super::state::State;
use crate::random::Random;

const BLOCK: usize = 4096;

/// Which part of which kind of file; one row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Identity,
    Entries,
    Unwritten,
    Mark,
    RingPage,
    RingBytes,
    Checkpoint,
    Index,
    Leftover,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::Identity => "segment, identity",
            Place::Entries => "segment, entries",
            Place::Unwritten => "segment, not written",
            Place::Mark => "mark",
            Place::RingPage => "ring, page",
            Place::RingBytes => "ring, bytes",
            Place::Checkpoint => "checkpoint",
            Place::Index => "index",
            Place::Leftover => "spare",
        })
    }
}

/// One piece of harm. Offsets and lengths are bytes, blocks have 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    Flip {
        file: String,
        offset: usize,
        bit: u8,
    },
    Truncate {
        file: String,
        length: usize,
    },
    /// Zeros from there to the end: how a file looks that was made at its full length and is torn at that byte.
    Tear {
        file: String,
        offset: usize,
    },
    Zero {
        file: String,
        block: usize,
    },
    Swap {
        file: String,
        block: usize,
        with: usize,
    },
    Duplicate {
        file: String,
        block: usize,
        over: usize,
    },
}

impl Harm {
    pub fn file(&self) -> &str {
        let (Harm::Flip { file, .. }
        | Harm::Truncate { file, .. }
        | Harm::Tear { file, .. }
        | Harm::Zero { file, .. }
        | Harm::Swap { file, .. }
        | Harm::Duplicate { file, .. }) = self;
        file
    }

    /// Where it falls, for the table.
    pub fn place(&self, state: &State) -> Place {
        let offset = match self {
            Harm::Flip { offset, .. } | Harm::Tear { offset, .. } => *offset,
            Harm::Truncate { length, .. } => *length,
            Harm::Zero { block, .. } | Harm::Swap { block, .. } | Harm::Duplicate { over: block, .. } => block * BLOCK,
        };
        let file = self.file();
        if file.starts_with("mark-") {
            Place::Mark
        } else if file.starts_with("checkpoint-") {
            Place::Checkpoint
        } else if file.starts_with("index-") {
            Place::Index
        } else if file.starts_with("spare-") || file.starts_with("tmp-") {
            Place::Leftover
        } else if file.contains('/') {
            if offset < BLOCK { Place::RingPage } else { Place::RingBytes }
        } else if offset < BLOCK {
            Place::Identity
        } else if offset < state.written(file) {
            Place::Entries
        } else {
            Place::Unwritten
        }
    }

    /// What of the file it changes.
    pub fn range(&self, medium: &Medium) -> Vec<std::ops::Range<usize>> {
        let block = |block: &usize| block * BLOCK..(block + 1) * BLOCK;
        let (one, other) = match self {
            Harm::Flip { offset, .. } => (*offset..offset + 1, 0..0),
            Harm::Truncate { file, length: from } | Harm::Tear { file, offset: from } => {
                (*from..medium.len(file), 0..0)
            }
            Harm::Zero { block: at, .. } | Harm::Duplicate { over: at, .. } => (block(at), 0..0),
            Harm::Swap { block: at, with, .. } => (block(at), block(with)),
        };
        [one, other].into_iter().filter(|range| !range.is_empty()).collect()
    }

    pub fn strike(&self, medium: &Medium) {
        match self {
            Harm::Flip { file, offset, bit } => {
                let byte = medium.read(file, *offset, 1)[0];
                medium.write(file, *offset, &[byte ^ (1 << bit)]);
            }
            Harm::Truncate { file, length } => medium.resize(file, *length),
            Harm::Tear { file, offset } => {
                let len = medium.len(file);
                medium.resize(file, *offset);
                medium.resize(file, len);
            }
            Harm::Zero { file, block } => medium.write(file, block * BLOCK, &[0; BLOCK]),
            Harm::Swap { file, block, with } => {
                let (one, other) = (medium.read(file, block * BLOCK, BLOCK), medium.read(file, with * BLOCK, BLOCK));
                medium.write(file, block * BLOCK, &other);
                medium.write(file, with * BLOCK, &one);
            }
            Harm::Duplicate { file, block, over } => {
                medium.write(file, over * BLOCK, &medium.read(file, block * BLOCK, BLOCK));
            }
        }
    }

    /// A flipped bit: each kind of place has an equal share, whatever its size.
    pub fn random_flip(state: &State, random: &mut Random) -> Self {
        let place = random.pick(&state.places());
        let spans: Vec<_> = state.spans().into_iter().filter(|span| span.place == place).collect();
        let span = &spans[random.below(spans.len() as u64) as usize];
        let offset = span.from + random.below((span.to - span.from) as u64) as usize;
        Harm::Flip { file: span.file.clone(), offset, bit: random.below(8) as u8 }
    }

    /// A block that is zeroed, swapped with another, or written over with another, of a file that has several.
    pub fn random_block(state: &State, random: &mut Random) -> Self {
        let place = random.pick(&state.places());
        let spans: Vec<_> = state.spans().into_iter().filter(|span| span.place == place).collect();
        let span = &spans[random.below(spans.len() as u64) as usize];
        let file = span.file.clone();
        let (first, end) = (span.from / BLOCK, span.to.div_ceil(BLOCK));
        let block = first + random.below((end - first) as u64) as usize;
        let all = state.written(&file).div_ceil(BLOCK).max(1);
        let other = random.below(all as u64) as usize;
        match random.below(3) {
            0 => Harm::Zero { file, block },
            1 => Harm::Swap { file, block, with: other },
            _ => Harm::Duplicate { file, block: other, over: block },
        }
    }
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Harm::Flip { file, offset, bit } => write!(f, "flip:{file}:{offset}:{bit}"),
            Harm::Truncate { file, length } => write!(f, "truncate:{file}:{length}"),
            Harm::Tear { file, offset } => write!(f, "tear:{file}:{offset}"),
            Harm::Zero { file, block } => write!(f, "zero:{file}:{block}"),
            Harm::Swap { file, block, with } => write!(f, "swap:{file}:{block}:{with}"),
            Harm::Duplicate { file, block, over } => write!(f, "duplicate:{file}:{block}:{over}"),
        }
    }
}

impl FromStr for Harm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(':').collect();
        let number = |at: usize| {
            let word = words.get(at).ok_or_else(|| format!("{text:?} is too short"))?;
            word.parse::<usize>().map_err(|error| format!("{word:?}: {error}"))
        };
        let file = || words.get(1).map(|&file| file.to_owned()).ok_or_else(|| format!("{text:?} names no file"));
        Ok(match words[0] {
            "flip" => Harm::Flip { file: file()?, offset: number(2)?, bit: number(3)? as u8 },
            "truncate" => Harm::Truncate { file: file()?, length: number(2)? },
            "tear" => Harm::Tear { file: file()?, offset: number(2)? },
            "zero" => Harm::Zero { file: file()?, block: number(2)? },
            "swap" => Harm::Swap { file: file()?, block: number(2)?, with: number(3)? },
            "duplicate" => Harm::Duplicate { file: file()?, block: number(2)?, over: number(3)? },
            other => return Err(format!("{other:?} is no harm")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_harm_is_said_in_a_word_and_read_back() {
        let file = || "00000000000000000000-0000000001".to_owned();
        let harms = [
            Harm::Flip { file: file(), offset: 4100, bit: 7 },
            Harm::Truncate { file: file(), length: 0 },
            Harm::Tear { file: file(), offset: 4097 },
            Harm::Zero { file: file(), block: 3 },
            Harm::Swap { file: file(), block: 3, with: 4 },
            Harm::Duplicate { file: file(), block: 3, over: 4 },
        ];
        for harm in harms {
            assert_eq!(harm.to_string().parse(), Ok(harm));
        }
        assert!("flip:x".parse::<Harm>().is_err() && "melt:x:1".parse::<Harm>().is_err());
    }
}
