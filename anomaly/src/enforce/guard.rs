//! Finds the addresses that must never be dropped: own, gateways, resolvers, SSH peers.
