//! XDP on the interfaces that take it, iptables for the rest.
