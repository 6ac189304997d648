//! The command line: what can be asked, and how answers look to people.

pub mod args;
pub mod ask;
mod find;
pub mod manual;
pub mod print;
pub mod replay;
pub mod screen;
pub mod settings;
pub mod watch;

/// The environment, as far as it is text.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)))
}
