//! The points of the graph over time, in rings of fixed size.
//!
//! It keeps what it is given and reads no clock: a second in which nobody
//! pushed is a gap, and stays one. About 280 KB when full.

use std::collections::VecDeque;

use crate::report::HistoryPoint;

/// A span of the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
pub enum Range {
    /// 5 minutes, a point per second.
    #[default]
    #[serde(rename = "5m")]
    FiveMinutes,
    /// 1 hour, a point per 5 seconds.
    #[serde(rename = "1h")]
    Hour,
    /// 24 hours, a point per minute.
    #[serde(rename = "24h")]
    Day,
}

impl Range {
    /// Seconds that one point stands for.
    pub const fn step_secs(self) -> i64 {
        match self {
            Self::FiveMinutes => 1,
            Self::Hour => 5,
            Self::Day => 60,
        }
    }

    /// Points that are kept.
    pub const fn capacity(self) -> usize {
        match self {
            Self::FiveMinutes => 300,
            Self::Hour => 720,
            Self::Day => 1440,
        }
    }
}

/// One span's points, oldest first; of the seconds that share a point, the one with the highest
/// rate is kept, so that no peak is lost by looking from further away.
#[derive(Clone, Debug)]
struct Ring {
    range: Range,
    points: VecDeque<HistoryPoint>,
}

impl Ring {
    const fn new(range: Range) -> Self {
        Self { range, points: VecDeque::new() }
    }

    fn push(&mut self, point: HistoryPoint) {
        let step = self.range.step_secs();
        let slot = point.t.div_euclid(step) * step;
        if let Some(last) = self.points.back_mut() {
            // The clock was set back: what is "newer" now would be drawn over, so it goes.
            if slot < last.t {
                self.points.retain(|p| p.t < slot);
            } else if slot == last.t {
                let rate = last.rate.max(point.rate);
                let error_ratio = if point.rate >= last.rate { point.error_ratio } else { last.error_ratio };
                *last = HistoryPoint { t: slot, rate, error_ratio, ..point };
                return;
            }
        }
        self.points.push_back(HistoryPoint { t: slot, ..point });
        let oldest = slot - step * self.range.capacity() as i64;
        while self.points.len() > self.range.capacity() || self.points.front().is_some_and(|p| p.t <= oldest) {
            self.points.pop_front();
        }
    }
}

/// Three rings: 5 minutes by the second, 1 hour by 5 seconds, 24 hours by the minute.
#[derive(Clone, Debug)]
pub struct History {
    rings: [Ring; 3],
    /// The minute that the store has last been given.
    given: Option<i64>,
}

impl Default for History {
    fn default() -> Self {
        Self { rings: [Ring::new(Range::FiveMinutes), Ring::new(Range::Hour), Ring::new(Range::Day)], given: None }
    }
}

impl History {
    /// Takes the newest point, about once a second; more or fewer do no harm.
    pub fn push(&mut self, point: HistoryPoint) {
        for ring in &mut self.rings {
            ring.push(point);
        }
    }

    /// The points of a span, oldest first, at most [`Range::capacity`]; `t` is the start of each step.
    pub fn points(&self, range: Range) -> Vec<HistoryPoint> {
        self.rings.iter().filter(|r| r.range == range).flat_map(|r| r.points.iter().copied()).collect()
    }

    /// Offers the newest finished minute to the store, until it has `taken` it: each is written once.
    pub fn offer_minute(&mut self, taken: impl FnOnce(HistoryPoint) -> bool) {
        let finished = self.rings.iter().find(|r| r.range == Range::Day).and_then(|r| r.points.iter().rev().nth(1));
        if let Some(&minute) = finished.filter(|minute| self.given != Some(minute.t))
            && taken(minute)
        {
            self.given = Some(minute.t);
        }
    }

    /// Puts stored minutes back, oldest first, before those of this run.
    pub fn restore(&mut self, minutes: impl IntoIterator<Item = HistoryPoint>) {
        let now: Vec<HistoryPoint> = self.points(Range::Day);
        if let Some(ring) = self.rings.iter_mut().find(|r| r.range == Range::Day) {
            ring.points.clear();
            minutes.into_iter().chain(now).for_each(|point| ring.push(point));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(t: i64, rate: f64) -> HistoryPoint {
        HistoryPoint { t, rate, error_ratio: rate / 1000.0, mean: 1.0, stddev: 0.5, limit: 5.0, bans: 2, dropped: 7 }
    }

    #[test]
    fn every_span_is_full_after_a_day_and_stays_bounded() {
        let mut history = History::default();
        (0..90_000).for_each(|t| history.push(point(t, 1.0)));
        for range in [Range::FiveMinutes, Range::Hour, Range::Day] {
            let points = history.points(range);
            assert_eq!(points.len(), range.capacity(), "{range:?}");
            assert!(points.windows(2).all(|w| w[1].t - w[0].t == range.step_secs()));
        }
        assert_eq!(history.points(Range::FiveMinutes).last().map(|p| p.t), Some(89_999));
    }

    #[test]
    fn a_peak_of_one_second_is_seen_from_a_day_away() {
        let mut history = History::default();
        (0..600).for_each(|t| history.push(point(t, if t == 71 { 900.0 } else { 1.0 })));
        let minute = history.points(Range::Day)[1];
        assert_eq!((minute.t, minute.rate, minute.error_ratio), (60, 900.0, 0.9));
    }

    #[test]
    fn silence_is_a_gap_and_old_points_leave() {
        let mut history = History::default();
        history.push(point(0, 1.0));
        history.push(point(1000, 1.0));
        assert_eq!(history.points(Range::FiveMinutes).len(), 1);
        assert_eq!(history.points(Range::Hour).len(), 2);
    }

    #[test]
    fn a_clock_set_back_rewrites_what_lies_ahead() {
        let mut history = History::default();
        (0..100).for_each(|t| history.push(point(t, 1.0)));
        history.push(point(50, 2.0));
        let points = history.points(Range::FiveMinutes);
        assert_eq!((points.len(), points[50].rate), (51, 2.0));
    }

    #[test]
    fn stored_minutes_come_before_those_of_this_run() {
        let mut history = History::default();
        history.push(point(600, 3.0));
        history.restore((0..5).map(|m| point(m * 60, 1.0)));
        let points = history.points(Range::Day);
        assert_eq!(points.iter().map(|p| p.t).collect::<Vec<_>>(), [0, 60, 120, 180, 240, 600]);
        history.push(point(660, 1.0));
        let mut offered = None;
        history.offer_minute(|minute| offered.replace(minute.t).is_none());
        assert_eq!(offered, Some(600));
    }

    #[test]
    fn each_minute_is_stored_once_when_it_is_over_and_again_when_it_could_not_be() {
        let mut history = History::default();
        let mut stored = Vec::new();
        for t in 0..240 {
            history.push(point(t, 1.0));
            // For a while the store's queue is full.
            let room = !(120..130).contains(&t);
            history.offer_minute(|minute| {
                if room {
                    stored.push((t, minute.t));
                }
                room
            });
        }
        assert_eq!(stored, [(60, 0), (130, 60), (180, 120)]);
    }
}
