//! Who gets a device, and what has to be so before.

use alloc::sync::Arc;
use core::{fmt, sync::atomic::AtomicBool};

use drivers::{
    host::{Host, InterruptError},
    hotplug::Hotplug,
    nvme::{self, NvmeError},
    pci::{Device, Misplaced, MsiError, Msix, MsixError},
};
use iommu::{ClaimError, DomainError, Incident, Iommu, PciAddress, dump::UnitReport};
use mm::PhysRange;
use suites::{Disks, reports};

use super::{BARS, Fate, Given, Interrupts, Line, SHARES_MAX, destroy};
use crate::process::{
    PAGES_MAX,
    space::{ShareError, Space},
};

/// What it takes to give devices to processes.
#[derive(Clone)]
pub struct Giver {
    /// What drivers are given.
    pub host: Arc<dyn Host>,
    /// The subsystem.
    pub iommu: Iommu,
    /// Which functions there are.
    pub hotplug: Arc<Hotplug>,
    /// Where block devices go that processes make.
    pub disks: Arc<Disks>,
    /// Devices get the addresses of their process, and reach what it has, instead of what it shares with them piece by
    /// piece. The units have to walk the CPU's tables.
    pub shares_spaces: bool,
}

/// Why a device is not given to a process.
#[derive(Debug)]
pub enum GiveError {
    /// There is no such function.
    Absent,
    /// It is a bridge: others depend on it.
    Bridge,
    /// It, or whoever drives it, could raise any interrupt.
    Interrupts,
    /// It cannot be isolated from others, or no unit covers it.
    NotAlone {
        /// How many functions its group has.
        members: usize,
    },
    /// There can be no domain for it.
    Domain(DomainError),
    /// Somebody else answers where the program is to be.
    OutOfReach,
    /// Somebody has it, it is in quarantine, firmware uses memory through it, or it could not be reset.
    Claim(ClaimError),
    /// Its interrupts cannot be used.
    Msix(MsixError),
    /// The same.
    Msi(MsiError),
    /// There is no interrupt for it.
    Interrupt(InterruptError),
    /// It has memory of its own that nothing clears.
    OwnMemory,
    /// Somebody else may answer where registers are that the kernel sets up.
    Misplaced(Misplaced),
    /// Its registers do not say whether it has.
    Nvme(NvmeError),
    /// What is in a memory of its own could not be cleared.
    NotCleared {
        /// Index of the BAR.
        index: u8,
    },
    /// There is no memory to look at its group, or for a mapping of the device's.
    OutOfMemory,
}

impl fmt::Display for GiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no such function"),
            Self::Bridge => f.write_str("it is a bridge"),
            Self::Interrupts => f.write_str("nothing remaps interrupts, so that it could raise any"),
            Self::NotAlone { members } => write!(f, "its isolation group has {members} functions, not 1"),
            Self::Domain(error) => error.fmt(f),
            Self::OutOfReach => f.write_str("somebody else answers at addresses that programs have"),
            Self::Claim(error) => error.fmt(f),
            Self::Msix(error) => error.fmt(f),
            Self::Msi(error) => error.fmt(f),
            Self::Interrupt(error) => error.fmt(f),
            Self::OwnMemory => {
                f.write_str("it has memory of its own, in which its last owner may have left something")
            }
            Self::Misplaced(error) => error.fmt(f),
            Self::Nvme(error) => error.fmt(f),
            Self::NotCleared { index } => write!(f, "the memory behind its BAR {index} does not take zeros"),
            Self::OutOfMemory => f.write_str("no memory"),
        }
    }
}

impl core::error::Error for GiveError {}

impl From<ShareError> for GiveError {
    fn from(error: ShareError) -> Self {
        match error {
            ShareError::Domain(error) => Self::Domain(error),
            ShareError::OutOfReach => Self::OutOfReach,
        }
    }
}

impl Given {
    /// Checks that nobody else can answer where BAR `index` is said to be, before the kernel uses it. One that is no
    /// memory says so where it is used.
    fn check_place(&self, index: u8) -> Result<(), GiveError> {
        let bar = self.device.bar(index).ok();
        let Some((start, bytes)) = bar.and_then(|bar| bar.memory().ok()) else { return Ok(()) };
        let range = PhysRange::new(start, bytes as u64);
        self.giver.hotplug.check_registers(self.dma.function(), range).map_err(GiveError::Misplaced)
    }
}

impl Giver {
    /// Takes `function`, which nobody has, for a process that is about to be started.
    ///
    /// # Errors
    /// See [`GiveError`].
    pub fn give(&self, function: PciAddress) -> Result<Given, GiveError> {
        // What units do, not what they could.
        let units = reports::units(&self.iommu);
        if units.is_empty() || !units.iter().all(UnitReport::remaps_interrupts) {
            return Err(GiveError::Interrupts);
        }
        let found = self.hotplug.function(function).ok_or(GiveError::Absent)?;
        let members = self.iommu.group(function).map_err(|_| GiveError::OutOfMemory)?.len();
        if members != 1 {
            return Err(GiveError::NotAlone { members });
        }
        let device = Device::open(self.host.clone(), &found).ok_or(GiveError::Absent)?;
        if device.is_bridge() {
            return Err(GiveError::Bridge);
        }
        let (domain, space) = if self.shares_spaces {
            let mut space = Space::new(PAGES_MAX).ok_or(GiveError::OutOfMemory)?;
            (space.share_with(&self.iommu, function)?, Some(space))
        } else {
            (self.iommu.create_domain(&[function]).map_err(GiveError::Domain)?, None)
        };
        // Whatever its last owner has left in it ends here.
        let is_quiet = |member| self.hotplug.is_quiet(&[function], member);
        let dma = self.iommu.assign(function, &domain, is_quiet).map_err(|error| {
            destroy(&domain);
            GiveError::Claim(error)
        })?;
        let device = device.held_by(&dma);
        let new = || AtomicBool::new(false);
        let fate = Arc::new(Fate { is_lost: new(), is_over: new(), process: spin::Once::new() });
        let of_incident = fate.clone();
        dma.on_incident(Arc::new(move |incident| {
            if !matches!(incident, Incident::Fault(_)) {
                of_incident.lose(function);
            }
        }));
        let line = || Arc::new(Line { arrived: AtomicBool::new(false), changed: spin::Once::new() });
        let mut given = Given {
            giver: self.clone(),
            domain,
            dma,
            fate,
            device,
            found,
            interrupts: Interrupts::None,
            lines: core::array::from_fn(|_| line()),
            shares: [const { None }; SHARES_MAX],
            has_space: space.is_some(),
            space,
            mapped: [false; BARS],
            refused: [false; BARS],
            is_for_disk: false,
            service: None,
        };
        // From here on dropping gives it back.
        let is_nvme = given.found.class == nvme::CLASS;
        for index in Msix::table_bar(&given.device).into_iter().chain(is_nvme.then_some(0)) {
            given.check_place(index)?;
        }
        given.set_up_interrupts()?;
        given.device.enable_memory();
        if is_nvme && nvme::has_memory(&given.device).map_err(GiveError::Nvme)? {
            return Err(GiveError::OwnMemory);
        }
        given.clear_memory()?;
        given.device.enable_bus_master();
        Ok(given)
    }
}
