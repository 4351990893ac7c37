//! How much of a long piece of work is done at a time.

/// Steps that may still be taken before others have their turn. A step that was begun is taken to its end, so that the last one
/// may cost more than is left.
#[derive(Debug)]
pub struct Slice {
    left: u32,
}

impl Slice {
    pub fn new(steps: u32) -> Self {
        Self { left: steps }
    }

    pub fn spend(&mut self, steps: usize) {
        self.left = self.left.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX));
    }

    pub fn is_spent(&self) -> bool {
        self.left == 0
    }
}
