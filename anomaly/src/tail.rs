//! Follows a log across rotation and truncation.
//!
//! It yields complete lines as bytes and knows nothing of what is in them.
