//! What outlives a restart: bans, offences, baseline, checkpoints and history, in SQLite.
