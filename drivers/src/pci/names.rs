//! Names of the functions that this kernel is likely to meet.

use super::function::{Class, Id};

/// What is made under this id, if it is one of the few known here.
#[must_use]
pub fn device_name(id: Id) -> Option<&'static str> {
    Some(match (id.vendor, id.device) {
        (0x1234, 0x1111) => "QEMU standard VGA",
        (0x1234, 0x11e8) => "QEMU edu",
        (0x1af4, 0x1000 | 0x1041) => "virtio network",
        (0x1af4, 0x1001 | 0x1042) => "virtio block",
        (0x1af4, 0x1005 | 0x1044) => "virtio entropy",
        (0x1b36, 0x0001) => "QEMU PCI-PCI bridge",
        (0x1b36, 0x0005) => "QEMU IOMMU test device",
        (0x1b36, 0x000b) => "QEMU PCIe expander bridge",
        (0x1b36, 0x000c) => "QEMU PCIe root port",
        (0x1b36, 0x000e) => "QEMU PCIe-to-PCI bridge",
        (0x1b36, 0x0010) => "QEMU NVMe controller",
        (0x8086, 0x10d3) => "Intel 82574L network (e1000e)",
        (0x8086, 0x10c9) => "Intel 82576 network (igb)",
        (0x8086, 0x244e) => "Intel 82801 PCI bridge",
        (0x8086, 0x2918) => "Intel ICH9 LPC",
        (0x8086, 0x2922) => "Intel ICH9 AHCI",
        (0x8086, 0x2930) => "Intel ICH9 SMBus",
        (0x8086, 0x29c0) => "Intel Q35 host bridge",
        (0x104c, 0x8232) => "TI XIO3130 switch, upstream port",
        (0x104c, 0x8233) => "TI XIO3130 switch, downstream port",
        _ => return None,
    })
}

/// What kind of function a class code stands for.
#[must_use]
pub const fn class_name(class: Class) -> &'static str {
    match (class.base, class.sub, class.interface) {
        (0x01, 0x06, _) => "SATA controller",
        (0x01, 0x08, 0x02) => "NVMe controller",
        (0x01, ..) => "storage controller",
        (0x02, ..) => "network controller",
        (0x03, ..) => "display controller",
        (0x04, ..) => "multimedia controller",
        (0x06, 0x00, _) => "host bridge",
        (0x06, 0x01, _) => "ISA bridge",
        (0x06, 0x04, _) => "PCI bridge",
        (0x06, ..) => "bridge",
        (0x07, ..) => "communication controller",
        (0x08, 0x06, _) => "IOMMU",
        (0x0c, 0x03, _) => "USB controller",
        (0x0c, 0x05, _) => "SMBus controller",
        _ => "device",
    }
}
