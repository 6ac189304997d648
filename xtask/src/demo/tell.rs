//! How the story is printed: steps with the time they began, facts in a column, colour only on a terminal.

use std::io::IsTerminal;
use std::time::Instant;

use crate::lab::clock;

/// Prints.
pub struct Teller {
    began: Instant,
    colour: bool,
}

impl Teller {
    /// Begins the story.
    pub fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { began: clock::now(), colour }
    }

    /// A new step.
    pub fn step(&self, title: &str) {
        let seconds = self.began.elapsed().as_secs();
        println!("\n{} {}", self.paint("2", &format!("[{seconds:>3} s]")), self.paint("1", title));
    }

    /// A sentence.
    pub fn line(&self, words: &str) {
        println!("        {words}");
    }

    /// A named figure.
    pub fn fact(&self, name: &str, value: &str) {
        println!("        {:<28} {}", name, self.paint("36", value));
    }

    /// A command line and what came of it.
    pub fn command(&self, line: &str, answer: &str) {
        println!("        $ {}", self.paint("1", line));
        for words in answer.lines() {
            println!("          {}", self.paint("36", words));
        }
    }

    fn paint(&self, code: &str, words: &str) -> String {
        if self.colour { format!("\x1b[{code}m{words}\x1b[0m") } else { words.into() }
    }
}
