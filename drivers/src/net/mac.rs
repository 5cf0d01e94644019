//! Ethernet addresses.

use core::fmt;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether one interface can have it: it is no group's, and not all zeros.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn groups_and_nobody_are_no_interface() {
        assert!(MacAddress([0x52, 0x54, 0, 1, 2, 3]).is_usable());
        assert!(!MacAddress([0x53, 0x54, 0, 1, 2, 3]).is_usable());
        assert!(!MacAddress([0xff; 6]).is_usable());
        assert!(!MacAddress([0; 6]).is_usable());
    }

    #[test]
    fn an_address_is_written_as_usual() {
        assert_eq!(MacAddress([0x52, 0x54, 0, 0xab, 2, 3]).to_string(), "52:54:00:ab:02:03");
    }
}
