//! The command line: what can be asked, and how answers look to people.

pub mod args;
pub mod ask;
pub mod print;
