//! The numbers of a finding as bytes, of a fixed length per version.
//!
//! Version 2 appends where the limit is from and how sure the finding is; version 1 is read as what its detector was: sure of
//! nothing but the hard limit. A later version may append to the enums (never reorder or remove) and append fields under a new first
//! byte. Bytes that cannot be read cost the evidence, not the ban.

use crate::engine::{Finding, Grade, Level, LimitSource, Rule, Scope, Signal, Source};
use crate::time::Timestamp;

const VERSION: u8 = 2;
const FIRST_VERSION: u8 = 1;
/// Version, five enums, eleven numbers.
const FIRST_LENGTH: usize = 6 + 11 * 8;
/// And two enums.
#[cfg(test)]
const LENGTH: usize = FIRST_LENGTH + 2;

/// Codes are positions: append only.
const RULES: [Rule; 4] = [Rule::ZScore, Rule::RateMultiplier, Rule::HardLimit, Rule::Floor];
const SCOPES: [Scope; 2] = [Scope::Ip, Scope::Global];
const SOURCES: [Source; 5] = [Source::Floor, Source::Rolling, Source::Hour, Source::Long, Source::Own];
const SIGNALS: [Signal; 11] = [
    Signal::Pages,
    Signal::ErrorPaths,
    Signal::PostsToOnePath,
    Signal::Errors,
    Signal::SameAnswers,
    Signal::UnknownPaths,
    Signal::ExploitPaths,
    Signal::RepeatedLogins,
    Signal::DeniedRequests,
    Signal::RepeatedMegabytes,
    Signal::FullMinutes,
];
const LIMIT_SOURCES: [LimitSource; 3] = [LimitSource::Floor, LimitSource::Learned, LimitSource::Configured];
const GRADES: [Grade; 2] = [Grade::Certain, Grade::Likely];
const NO_SIGNAL: u8 = u8::MAX;

fn code<T: PartialEq>(all: &[T], value: &T) -> u8 {
    all.iter().position(|v| v == value).and_then(|n| u8::try_from(n).ok()).unwrap_or(NO_SIGNAL)
}

/// Everything but the samples.
pub(super) fn encode(finding: &Finding) -> Vec<u8> {
    let level = &finding.baseline;
    let mut bytes = Vec::with_capacity(FIRST_LENGTH + 2);
    bytes.extend([
        VERSION,
        code(&RULES, &finding.rule),
        u8::from(finding.error_surge),
        code(&SCOPES, &level.scope),
        code(&SOURCES, &level.source),
        finding.signal.map_or(NO_SIGNAL, |(signal, _)| code(&SIGNALS, &signal)),
    ]);
    bytes.extend(finding.at.as_ms().to_le_bytes());
    let signal = finding.signal.map_or(0.0, |(_, value)| value);
    for real in [finding.rate, finding.z_score, finding.limit, signal, level.mean, level.stddev, level.error_rate] {
        bytes.extend(real.to_le_bytes());
    }
    for count in [level.samples, finding.requests, finding.errors] {
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend([code(&LIMIT_SOURCES, &finding.limit_source), code(&GRADES, &finding.grade)]);
    bytes
}

/// The finding without samples; `None` for bytes of a later version, or damaged ones.
pub(super) fn decode(bytes: &[u8]) -> Option<Finding> {
    let (head, rest) = bytes.split_first_chunk::<6>()?;
    let [version, rule, surge, scope, source, signal] = *head;
    let rule = *RULES.get(usize::from(rule))?;
    let (numbers, limit_source, grade) = match (version, rest) {
        (VERSION, [numbers @ .., limit_source, grade]) => {
            (numbers, *LIMIT_SOURCES.get(usize::from(*limit_source))?, *GRADES.get(usize::from(*grade))?)
        }
        (FIRST_VERSION, numbers) if rule == Rule::HardLimit => (numbers, LimitSource::Configured, Grade::Certain),
        (FIRST_VERSION, numbers) => (numbers, LimitSource::Learned, Grade::Likely),
        _ => return None,
    };
    let (words, []) = numbers.as_chunks::<8>() else { return None };
    let &[at, rate, z_score, limit, signal_value, mean, stddev, error_rate, samples, requests, errors] = words else {
        return None;
    };
    let real = f64::from_le_bytes;
    let count = u64::from_le_bytes;
    Some(Finding {
        at: Timestamp::from_ms(i64::from_le_bytes(at)),
        rule,
        error_surge: surge != 0,
        rate: real(rate),
        baseline: Level {
            scope: *SCOPES.get(usize::from(scope))?,
            mean: real(mean),
            stddev: real(stddev),
            error_rate: real(error_rate),
            samples: count(samples),
            source: *SOURCES.get(usize::from(source))?,
        },
        z_score: real(z_score),
        signal: match signal {
            NO_SIGNAL => None,
            code => Some((*SIGNALS.get(usize::from(code))?, real(signal_value))),
        },
        limit: real(limit),
        limit_source,
        grade,
        requests: count(requests),
        errors: count(errors),
        samples: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_scope_source_and_signal_comes_back() {
        for rule in RULES {
            for scope in SCOPES {
                for source in SOURCES {
                    for signal in SIGNALS.map(Some).into_iter().chain([None]) {
                        let finding = Finding {
                            at: Timestamp::from_ms(-7),
                            rule,
                            error_surge: true,
                            rate: 1.5,
                            baseline: Level {
                                scope,
                                mean: 0.1,
                                stddev: 0.2,
                                error_rate: 0.3,
                                samples: u64::MAX,
                                source,
                            },
                            z_score: f64::INFINITY,
                            signal: signal.map(|s| (s, 4.5)),
                            limit: 60.0,
                            limit_source: LimitSource::Learned,
                            grade: Grade::Likely,
                            requests: 99,
                            errors: 98,
                            samples: Vec::new(),
                        };
                        let bytes = encode(&finding);
                        assert_eq!(bytes.len(), LENGTH);
                        assert_eq!(decode(&bytes), Some(finding.clone()));
                        // As version 1 wrote it.
                        let mut first = bytes[..FIRST_LENGTH].to_vec();
                        first[0] = FIRST_VERSION;
                        let certain = rule == Rule::HardLimit;
                        let (limit_source, grade) = if certain {
                            (LimitSource::Configured, Grade::Certain)
                        } else {
                            (LimitSource::Learned, Grade::Likely)
                        };
                        assert_eq!(decode(&first), Some(Finding { limit_source, grade, ..finding }));
                    }
                }
            }
        }
    }

    #[test]
    fn other_bytes_are_no_finding() {
        for bytes in [
            &[][..],
            &[VERSION],
            &[0; LENGTH],
            &[VERSION; LENGTH - 1],
            &[FIRST_VERSION; LENGTH],
            &[VERSION; LENGTH + 8],
            &[9; LENGTH],
        ] {
            assert_eq!(decode(bytes), None);
        }
    }
}
