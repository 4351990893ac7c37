//! Round trips of every request and answer, what is refused, and that decoding does not allocate.
