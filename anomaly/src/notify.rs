//! Slack and a generic webhook: a bounded queue, coalescing, retry; never in the way.
