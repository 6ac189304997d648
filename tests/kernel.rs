//! The kernel program and its enforcer, in network namespaces of their own. Needs root.
//!
//! `ANOMALY_EBPF_OBJECT` names another build of the kernel program to test.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod attach;
mod keep;
mod packets;
mod probe_log;
mod rig;
mod wire;
