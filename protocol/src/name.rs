//! Names of topics, groups and their members: RocketMQ's characters, so that its clients' names fit; `/` is kept for namespaces.

use crate::limits::NAME_MAX;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("a name has at most {NAME_MAX} bytes, this one has {0}")]
    TooLong(usize),
    #[error("a name has letters, digits and %|_- only, not {0:?}")]
    Character(char),
}

/// Checks a name as it stands in requests and in the catalogue.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    match name.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '%' | '|' | '_' | '-')) {
        Some(character) => Err(NameError::Character(character)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rocketmq_characters_and_nothing_else() {
        assert_eq!(check_name("%RETRY%group-1|a_B9"), Ok(()));
        assert_eq!(check_name(&"x".repeat(NAME_MAX)), Ok(()));
        assert_eq!(check_name(&"x".repeat(NAME_MAX + 1)), Err(NameError::TooLong(NAME_MAX + 1)));
        assert_eq!(check_name(""), Err(NameError::Empty));
        for bad in ['/', '.', ' ', 'é', '\0', '\n'] {
            assert_eq!(check_name(&format!("a{bad}b")), Err(NameError::Character(bad)));
        }
    }
}
