//! Rules of iptables and ip6tables, and an ipset beyond a number of them.
