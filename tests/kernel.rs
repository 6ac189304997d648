//! The kernel program and its enforcer, in network namespaces of their own. Needs root.
//!
//! `ANOMALY_EBPF_OBJECT` names another build of the kernel program to test.

mod attach;
mod packets;
mod rig;
