//! `CONFIGURATION.md`, made from the table; a test sees to it that the committed file is this.

use std::fmt::Write;

use super::table::TABLE;

/// The whole document.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration of peregrine-broker\n\n\
         Written by `peregrine-broker reference` from the table in `src/control/configuration/table.rs`.\n\n\
         A setting is a flag (`--ring-size 1MiB`), an environment variable (`PEREGRINE_RING_SIZE=1MiB`) or a key of the file\n\
         that `--config` names (`ring_size = \"1MiB\"`); the first of these that has it wins. Unknown flags and keys are refused.\n\
         Sizes are `4096`, `64KiB`, `4MiB`, `1GiB`; times are `50us`, `1ms`, `2s`.\n\n\
         | setting | value | default | what it does | why the default |\n|---|---|---|---|---|\n",
    );
    for row in TABLE.iter().filter(|row| !row.hidden) {
        let value = row.value.unwrap_or("true\\|false").replace('|', "\\|").replace("\\\\|", "\\|");
        let default = row.default.map(|default| format!("`{default}`")).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {value} | {default} | {} | {} |", row.key, row.help, row.reason);
    }
    text
}
