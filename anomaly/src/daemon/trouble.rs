//! What is wrong with the logs and the threads, and which of it people have been told.

use std::collections::BTreeMap;

use crate::time::Timestamp;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The stable word of `status`.
    pub word: &'static str,
    /// Which of several (a log's path); empty where there can be only one.
    pub which: String,
    /// In words. Counts and seconds in them change while the trouble stays the same.
    pub reason: String,
}

impl Trouble {
    /// Of something of which there is only one.
    pub const fn new(word: &'static str, reason: String) -> Self {
        Self { word, which: String::new(), reason }
    }

    /// What makes it another trouble than the one before.
    pub fn key(&self) -> (&'static str, &str) {
        (self.word, &self.which)
    }
}

/// What people know of.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<(&'static str, String), (Trouble, Timestamp)>);

impl Told {
    /// Takes what is wrong now. Gives what is over, with its beginning, and what is new; both are to be told.
    pub fn update(&mut self, found: &[Trouble], now: Timestamp) -> (Vec<(Trouble, Timestamp)>, Vec<Trouble>) {
        let stays = |key: &(&str, String)| found.iter().any(|trouble| trouble.key() == (key.0, key.1.as_str()));
        let over = self.0.extract_if(.., |key, _| !stays(key)).map(|(_, told)| told).collect();
        let mut new = Vec::new();
        for trouble in found {
            self.0.entry((trouble.word, trouble.which.clone())).or_insert_with(|| {
                new.push(trouble.clone());
                (trouble.clone(), now)
            });
        }
        (over, new)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_777_280_000);

    #[test]
    fn each_of_several_logs_is_told_when_it_goes_and_when_it_returns() {
        let missing = |site: &str| Trouble {
            word: "log_missing",
            which: format!("{site}.json"),
            reason: format!("{site}.json does not exist"),
        };
        let (a, b, later) = ([missing("a")], [missing("b")], NOW.plus(Duration::from_secs(7 * 86_400)));
        let both = [&a[..], &b[..]].concat();
        let mut told = Told::default();
        assert_eq!(told.update(&a, NOW), (vec![], a.to_vec()));
        assert_eq!(told.update(&both, later), (vec![], b.to_vec()));
        assert_eq!(told.update(&both, later), (vec![], vec![]));
        let [gone_a, gone_b] = [&a, &b].map(|[trouble]| trouble.clone());
        assert_eq!(told.update(&b, later), (vec![(gone_a, NOW)], vec![]));
        assert_eq!(told.update(&a, later), (vec![(gone_b, later)], a.to_vec()), "one goes as the other returns");
    }

    #[test]
    fn another_count_is_nothing_new() {
        let late = |n: u32| Trouble::new("late", format!("{n} of 100 records"));
        let mut told = Told::default();
        told.update(&[late(20)], NOW);
        assert_eq!(told.update(&[late(30)], NOW), (vec![], vec![]));
        assert_eq!(told.update(&[], NOW), (vec![(late(20), NOW)], vec![]));
    }
}
