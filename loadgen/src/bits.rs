//! One bit per message of a run, in memory that is touched before the load begins.

/// A set of message indices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// Room for `bits` messages.
    pub fn new(bits: u64) -> Self {
        // Touched once, so that no page is faulted in while the load runs.
        let mut words = vec![u64::MAX; bits.div_ceil(64) as usize];
        std::hint::black_box(&mut words).fill(0);
        Self { words }
    }

    /// Sets bit `index`; whether it was clear.
    pub fn set(&mut self, index: u64) -> bool {
        let word = &mut self.words[(index / 64) as usize];
        let mask = 1 << (index % 64);
        let fresh = *word & mask == 0;
        *word |= mask;
        fresh
    }

    /// Whether bit `index` is set.
    pub fn get(&self, index: u64) -> bool {
        self.words[(index / 64) as usize] & (1 << (index % 64)) != 0
    }

    /// How many are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many are set here and not in `other`.
    pub fn count_without(&self, other: &Self) -> u64 {
        let beyond = self.words.get(other.words.len()..).unwrap_or_default().iter().map(|word| (word, &0));
        let both = self.words.iter().zip(&other.words).chain(beyond);
        both.map(|(word, without)| u64::from((word & !without).count_ones())).sum()
    }

    /// Sets what is set in `other`, which may be empty.
    pub fn merge(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }
}
