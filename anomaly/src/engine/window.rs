//! Sliding windows of whole seconds of log time.
