//! Devices that are known to send under another function's id.

use super::Function;

/// Vendor and device ids of functions that send as function 0 of their device.
const AS_FUNCTION_0: [(u16, u16); 4] = [
    (0x1180, 0xe832), // Ricoh card readers
    (0x1180, 0xe476),
    (0x6766, 0x3d40), // Glenfly sound
    (0x6766, 0x3d41),
];

/// Vendor and device ids of functions that send as function 1 of their device, whether there is one or not.
const AS_FUNCTION_1: [(u16, u16); 19] = [
    (0x1b4b, 0x9120), // Marvell disk controllers
    (0x1b4b, 0x9123),
    (0x1b4b, 0x9125),
    (0x1b4b, 0x9128),
    (0x1b4b, 0x9130),
    (0x1b4b, 0x9170),
    (0x1b4b, 0x9172),
    (0x1b4b, 0x917a),
    (0x1b4b, 0x9182),
    (0x1b4b, 0x9183),
    (0x1b4b, 0x91a0),
    (0x1b4b, 0x9215),
    (0x1b4b, 0x9220),
    (0x1b4b, 0x9230),
    (0x1b4b, 0x9235),
    (0x1103, 0x0642), // HighPoint cards with one of them
    (0x1103, 0x0645),
    (0x197b, 0x2392), // JMicron card reader
    (0x1c28, 0x0122), // Plextor disk
];

impl Function {
    /// The function with what is known of `vendor`:`device`, as its configuration space names them.
    #[must_use]
    pub fn with_quirks(self, vendor: u16, device: u16) -> Self {
        let sends_as = if AS_FUNCTION_0.contains(&(vendor, device)) {
            0
        } else if AS_FUNCTION_1.contains(&(vendor, device)) {
            1
        } else {
            return self;
        };
        Self { alias_devfn: Some(self.address.device() << 3 | sends_as), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PciAddress;

    #[test]
    fn known_devices_get_their_alias_and_others_none() {
        let function = Function::endpoint(PciAddress::new(0, 3, 4, 2).unwrap());
        assert_eq!(function.with_quirks(0x1b4b, 0x9235).alias_devfn, Some(4 << 3 | 1));
        assert_eq!(function.with_quirks(0x1180, 0xe832).alias_devfn, Some(4 << 3));
        assert_eq!(function.with_quirks(0x8086, 0x9235), function);
    }
}
