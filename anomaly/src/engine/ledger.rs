//! Offences, bans and their ends.
