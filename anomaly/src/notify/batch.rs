//! Notices folded into one message: the newest few of each kind, and how many there were.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Notice;

/// Kinds of notices, the most urgent first: a message shows them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    NotEnforced,
    NotLifted,
    NotEffective,
    Fallback,
    Degraded,
    GlobalAnomaly,
    Braked,
    Ban,
    Unban,
    LevelAccepted,
    Recovered,
    Other,
}

impl Kind {
    pub(super) fn of(notice: &Notice) -> Self {
        match notice {
            Notice::Ban { error: Some(_), .. } => Self::NotEnforced,
            Notice::Unban { error: Some(_), .. } => Self::NotLifted,
            Notice::Ban { .. } => Self::Ban,
            Notice::Unban { .. } => Self::Unban,
            Notice::GlobalAnomaly(_) => Self::GlobalAnomaly,
            Notice::Braked(_) => Self::Braked,
            Notice::NotEffective { .. } => Self::NotEffective,
            Notice::LevelAccepted(_) => Self::LevelAccepted,
            Notice::Fallback { .. } => Self::Fallback,
            Notice::Degraded { .. } => Self::Degraded,
            Notice::Recovered { .. } => Self::Recovered,
            Notice::Other { .. } => Self::Other,
        }
    }

    /// The word of the audit log and the webhook.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::NotEnforced => "enforce_failed",
            Self::NotLifted => "unban_failed",
            Self::NotEffective => "not_effective",
            Self::Fallback => "fallback",
            Self::Degraded => "degraded",
            Self::GlobalAnomaly => "global_anomaly",
            Self::Braked => "braked",
            Self::Ban => "ban",
            Self::Unban => "unban",
            Self::LevelAccepted => "level_accepted",
            Self::Recovered => "recovered",
            Self::Other => "other",
        }
    }
}

/// The notices of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) count: u64,
    /// The newest, oldest first.
    pub(super) newest: VecDeque<Arc<Notice>>,
}

impl Group {
    fn fold(&mut self, keep: usize) -> u64 {
        let surplus = self.newest.len().saturating_sub(keep);
        self.newest.drain(..surplus);
        surplus as u64
    }
}

/// What the next message says.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    groups: BTreeMap<Kind, Group>,
    /// Notices of one kind that are kept.
    keep: usize,
}

impl Batch {
    pub(super) fn new(keep: usize) -> Self {
        Self { groups: BTreeMap::new(), keep }
    }

    /// Adds a notice; how many of the older ones are only a number from now on.
    pub(super) fn add(&mut self, notice: Arc<Notice>) -> u64 {
        let group = self.groups.entry(Kind::of(&notice)).or_default();
        group.count += 1;
        group.newest.push_back(notice);
        group.fold(self.keep)
    }

    /// Appends what came later; the rest as [`Batch::add`].
    pub(super) fn append(&mut self, later: Self) -> u64 {
        let mut folded = 0;
        for (kind, group) in later.groups {
            let mine = self.groups.entry(kind).or_default();
            mine.count += group.count;
            mine.newest.extend(group.newest);
            folded += mine.fold(self.keep);
        }
        folded
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All notices, also those that are only a number by now.
    pub(super) fn count(&self) -> u64 {
        self.groups.values().map(|g| g.count).sum()
    }

    pub(super) fn groups(&self) -> impl ExactSizeIterator<Item = (Kind, &Group)> {
        self.groups.iter().map(|(kind, group)| (*kind, group))
    }
}
