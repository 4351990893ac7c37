//! Lists in messages: a slice of the sender's rows, or a verified vector in the receiver's buffer; read the same way.

/// Declares a list type over rows of type `$row`, on the wire a vector of `$wire` that `$read` turns into a row.
macro_rules! list {
    ($(#[$doc:meta])* $name:ident, $row:ty, $wire:ty, $read:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name<'a>(ListIn<'a, $row, flatbuffers::Vector<'a, $wire>>);

        impl<'a> $name<'a> {
            pub(crate) fn from_wire(vector: flatbuffers::Vector<'a, $wire>) -> Self {
                Self(ListIn::Wire(vector))
            }

            /// A list of these rows.
            pub const fn of(rows: &'a [$row]) -> Self {
                Self(ListIn::Rows(rows))
            }

            pub fn len(&self) -> usize {
                match &self.0 {
                    ListIn::Rows(rows) => rows.len(),
                    ListIn::Wire(vector) => vector.len(),
                }
            }

            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            pub fn iter(&self) -> impl ExactSizeIterator<Item = $row> + use<'a> {
                let list = self.0;
                (0..self.len()).map(move |index| match &list {
                    ListIn::Rows(rows) => rows[index],
                    ListIn::Wire(vector) => $read(vector.get(index)),
                })
            }
        }

        impl<'a> From<&'a [$row]> for $name<'a> {
            fn from(rows: &'a [$row]) -> Self {
                Self::of(rows)
            }
        }

        impl std::fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_list().entries(self.iter()).finish()
            }
        }
    };
}

/// Where a list's items stand.
#[derive(Clone, Copy)]
pub(super) enum ListIn<'a, R, V> {
    Rows(&'a [R]),
    Wire(V),
}

pub(super) use list;
