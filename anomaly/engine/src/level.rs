//! A level as bytes: the site's and the population's are saved alike.

use super::codec::{Reader, Writer};
use super::contract::{BadState, Level, Scope, Source};

/// Writes a level down.
pub fn save_level(level: &Level, w: &mut Writer) {
    w.uint(u64::from(level.scope == Scope::Global));
    for v in [level.mean, level.stddev, level.error_rate] {
        w.float(v);
    }
    w.uint(level.samples);
    w.uint(match level.source {
        Source::Floor => 0,
        Source::Rolling => 1,
        Source::Hour => 2,
        Source::Long => 3,
        Source::Own => 4,
    });
}

/// Reads what [`save_level`] wrote.
///
/// # Errors
/// [`BadState`] where it is something else.
pub fn load_level(r: &mut Reader<'_>) -> Result<Level, BadState> {
    Ok(Level {
        scope: if r.uint()? == 0 { Scope::Ip } else { Scope::Global },
        mean: r.float()?,
        stddev: r.float()?,
        error_rate: r.float()?,
        samples: r.uint()?,
        source: match r.uint()? {
            0 => Source::Floor,
            1 => Source::Rolling,
            2 => Source::Hour,
            3 => Source::Long,
            4 => Source::Own,
            _ => return Err(BadState),
        },
    })
}
