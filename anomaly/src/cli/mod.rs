//! The command line: what can be asked, and how answers look to people.

pub mod args;
pub mod ask;
pub mod manual;
pub mod print;
pub mod replay;
pub mod screen;
pub mod watch;
