//! The XDP program, its maps and pins.
