//! The audit log (JSON Lines) and the firewall snapshots, both rotated by size.
