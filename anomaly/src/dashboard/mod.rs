//! Pages, JSON API, server-sent events and metrics over HTTP; reads snapshots only.

pub mod history;
