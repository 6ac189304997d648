//! Says what would be dropped and drops nothing.
