//! The handle that a kernel holds: bring-up, claims, events, and what the shell shows.

mod control;
mod hands;
mod unprotected;

use alloc::sync::Arc;
use core::fmt;

use mm::PhysRange;

pub(crate) use self::control::{Control, Trust};
use self::unprotected::{NoUnit, Unprotected};
use crate::{
    Iova, Options, PciAddress, Platform,
    checks::Checks,
    dma::{DmaDevice, reaper::Reaper},
    dump::Visitor,
    group::ClaimError,
    interrupts::{self, InterruptError, MessageInterrupts, MessageSource, NotRemapped, WiredInterrupt},
    options::Mode,
    platform::Event,
    policy::Limits,
    protection::{HotplugError, Protection, StartError},
    topology,
};

/// What firmware and enumeration say about the machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The bytes of the ACPI DMAR table, header included, if there is one.
    pub dmar: Option<&'a [u8]>,
    /// Every PCI function that was found.
    pub functions: &'a [topology::Function],
    /// Ids of the I/O APICs in the MADT.
    pub io_apics: &'a [u8],
    /// RAM, as far as drivers may lend it, in whole pages: what a group reaches that is claimed as
    /// [trusted with memory](Iommu::claim_identity), or with `iommu=passthrough`.
    pub memory: &'a [PhysRange],
    /// Addresses at which something else than memory answers, as far as the host knows: BARs, windows of bridges,
    /// configuration space, I/O APICs. A request for one of them may be passed on to it without coming to a unit, so
    /// that none is an IOVA; and firmware cannot reserve them for a device (RMRR). Registers of the units need not be
    /// among them.
    pub registers: &'a [PhysRange],
    /// The local APICs are in x2APIC mode. Interrupts reach CPUs with ids above 255 only then, and only if all units
    /// that remap interrupts report EIM.
    pub x2apic: bool,
}

/// The IOMMU subsystem of one machine. Clones are the same.
///
/// # Examples
/// ```no_run
/// use std::sync::Arc;
///
/// use iommu::{Iommu, Machine, Options, Platform, StartError};
///
/// /// A kernel's start: units up, everything blocked, and the two threads that the subsystem wants.
/// fn start<P: Platform>(platform: Arc<P>, machine: &Machine<'_>) -> Result<Iommu, StartError> {
///     let iommu = Iommu::start(platform, machine, Options::default())?;
///     let (faults, reaper) = (iommu.clone(), iommu.clone());
///     // Each is woken by `Platform::wake`, and at the time that it names itself.
///     std::thread::spawn(move || loop { faults.process_faults() });
///     std::thread::spawn(move || loop { reaper.reap() });
///     Ok(iommu)
/// }
/// ```
#[derive(Clone)]
pub struct Iommu {
    control: Arc<dyn Control>,
}

impl Iommu {
    /// Brings every unit of the machine up, with all functions blocked but for their reserved memory, and turns
    /// translation on.
    ///
    /// # Errors
    /// [`StartError`] names what was wrong and where. With [`Mode::On`] a machine without a unit is no error: claims
    /// are refused then.
    pub fn start<P: Platform>(
        platform: Arc<P>,
        machine: &Machine<'_>,
        options: Options,
    ) -> Result<Self, StartError> {
        let reaper = Arc::new(Reaper::new(platform.clone(), options.flush));
        let control: Arc<dyn Control> = match (options.mode, machine.dmar) {
            (Mode::Off, _) => {
                interrupts::warn_of(NotRemapped::NoUnit);
                let checks = options.debug.then(|| Arc::new(Checks::new(platform.clone())));
                Arc::new(Unprotected { platform, reaper, checks })
            }
            (Mode::On, None) => {
                interrupts::warn_of(NotRemapped::NoUnit);
                Arc::new(NoUnit)
            }
            (Mode::Force, None) => return Err(StartError::NoUnit),
            (_, Some(dmar)) => Arc::new(Protection::start(platform, reaper, dmar, machine, options)?),
        };
        Ok(Self { control })
    }

    /// Gives `function` to a driver. From now on it reaches what the driver maps, and nothing else.
    ///
    /// # Errors
    /// See [`ClaimError`]; the function stays blocked.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{ClaimError, DmaDevice, Iommu, PciAddress};
    ///
    /// fn disk(iommu: &Iommu) -> Result<DmaDevice, ClaimError> {
    ///     iommu.claim(PciAddress::from_devfn(0, 0, 3 << 3))
    /// }
    /// ```
    pub fn claim(&self, function: PciAddress) -> Result<DmaDevice, ClaimError> {
        self.control.claim(function, Trust::Nothing)
    }

    /// As [`claim`](Self::claim), for a function that the caller trusts not to lie about the addresses it sends: it may
    /// use a TLB of its own (ATS) where there is one and everything else permits it.
    ///
    /// A function with its TLB on sends physical addresses that no unit checks, so this gives up all isolation against
    /// a malicious device; it is for devices soldered to the board, not for those in a slot or on a cable. Unmapping
    /// still means what it does: it waits until the TLB is empty, and a device that does not empty it is stopped, its
    /// group blocked, its memory pinned.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{ClaimError, DmaDevice, Iommu, PciAddress};
    ///
    /// /// A controller on the board keeps its translations to itself; the same in a slot would be claimed like any other.
    /// fn on_board(iommu: &Iommu, function: PciAddress, is_soldered: bool) -> Result<DmaDevice, ClaimError> {
    ///     if is_soldered { iommu.claim_trusted(function) } else { iommu.claim(function) }
    /// }
    /// ```
    pub fn claim_trusted(&self, function: PciAddress) -> Result<DmaDevice, ClaimError> {
        self.control.claim(function, Trust::Translations)
    }

    /// As [`claim`](Self::claim), for a function that is trusted with all of RAM ([`Machine::memory`]): its group's
    /// domain maps it one to one, and an IOVA is a physical address. Other devices are out of its reach, and so are
    /// others' interrupts unless it means harm: the tables of the units themselves are in RAM. What it does beyond is
    /// recorded, and it is taken back as any other.
    ///
    /// With `iommu=passthrough` every claim is one like this.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, PageBuffer, PciAddress, ToDevice};
    ///
    /// /// Where the device finds the page: at its physical address.
    /// fn in_place(iommu: &Iommu, function: PciAddress, page: PageBuffer) -> Result<u64, Box<dyn std::error::Error>> {
    ///     let device = iommu.claim_identity(function)?;
    ///     Ok(device.dma_map(page, ToDevice)?.iova().as_u64())
    /// }
    /// ```
    pub fn claim_identity(&self, function: PciAddress) -> Result<DmaDevice, ClaimError> {
        self.control.claim(function, Trust::Memory)
    }

    /// Takes functions in that were plugged in. Like those of [`Machine::functions`] they are blocked until somebody
    /// claims them, and can be claimed from now on. All functions of one device come together. Their access control
    /// services are on by then, as far as they have any.
    ///
    /// # Errors
    /// See [`HotplugError`]. The functions are not known then, and reach nothing.
    pub fn functions_appeared(&self, functions: &[topology::Function]) -> Result<(), HotplugError> {
        self.control.functions_appeared(functions)
    }

    /// Takes functions out that were pulled out, or are about to be. All functions behind a bridge go with it.
    ///
    /// Their groups are taken from their drivers as by [`release`](Self::release), and the drivers are told
    /// ([`Incident::Removed`](crate::Incident::Removed)). `quiet` says of each function of these groups whether it will
    /// never touch memory again; one that has no power any more does not. Then their memory comes back, and whatever is
    /// plugged in at their place finds nothing of their rights.
    ///
    /// # Errors
    /// See [`HotplugError`]. What could not be taken from its drivers is in quarantine; the call can be made again.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{HotplugError, Iommu, PciAddress, topology::Function};
    ///
    /// /// What is in a slot is replaced: nothing of the old function's rights is the new one's.
    /// fn replace(iommu: &Iommu, old: PciAddress, new: &Function, power_off: impl Fn() -> bool) -> Result<(), HotplugError> {
    ///     iommu.functions_gone(&[old], |_| power_off())?;
    ///     iommu.functions_appeared(std::slice::from_ref(new))
    /// }
    /// ```
    pub fn functions_gone(
        &self,
        functions: &[PciAddress],
        mut quiet: impl FnMut(PciAddress) -> bool,
    ) -> Result<(), HotplugError> {
        self.control.functions_gone(functions, &mut quiet)
    }

    /// `count` interrupts in a row, a power of two up to [`MAX_MESSAGES`](interrupts::MAX_MESSAGES), that `source` and
    /// nobody else can raise once they are routed.
    ///
    /// # Errors
    /// [`InterruptError`].
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{
    ///     Iommu, PciAddress,
    ///     interrupts::{Destination, InterruptError, MessageInterrupts, MessageSource},
    /// };
    ///
    /// /// Two MSI-X vectors, one for each of two CPUs; `program` writes an entry of the function's table.
    /// fn two(
    ///     iommu: &Iommu,
    ///     function: PciAddress,
    ///     program: impl Fn(u16, u64, u32),
    /// ) -> Result<MessageInterrupts, InterruptError> {
    ///     let interrupts = iommu.message_interrupts(MessageSource::Function(function), 2)?;
    ///     for number in 0..interrupts.count() {
    ///         let message = interrupts.route(number, Destination { apic: number.into(), vector: 0x40 })?;
    ///         program(number, message.address, message.data);
    ///     }
    ///     Ok(interrupts)
    /// }
    /// ```
    pub fn message_interrupts(
        &self,
        source: MessageSource,
        count: u16,
    ) -> Result<MessageInterrupts, InterruptError> {
        self.control.message_interrupts(source, count)
    }

    /// The interrupt of one input of the I/O APIC with the id `io_apic` in the MADT.
    ///
    /// # Errors
    /// [`InterruptError`].
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, interrupts::{Destination, InterruptError, WireMode, WiredInterrupt}};
    ///
    /// /// An input of I/O APIC 0; `program` writes its redirection entry, high half first.
    /// fn serial(iommu: &Iommu, program: impl Fn(u32, u32)) -> Result<WiredInterrupt, InterruptError> {
    ///     let wire = iommu.wired_interrupt(0)?;
    ///     let mode = WireMode { active_low: false, level_triggered: false };
    ///     let entry = wire.route(mode, Destination { apic: 0, vector: 0x41 })?;
    ///     program(entry.high, entry.low);
    ///     Ok(wire)
    /// }
    /// ```
    pub fn wired_interrupt(&self, io_apic: u8) -> Result<WiredInterrupt, InterruptError> {
        self.control.wired_interrupt(io_apic)
    }

    /// Says how many faults of one group are put up with from now on. Returns what was said before.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, policy::Limits};
    ///
    /// /// Strict: throttled after 4 faults, in quarantine after 16; a second without one halves the count.
    /// fn be_strict(iommu: &Iommu) -> Option<Limits> {
    ///     Some(iommu.set_fault_limits(Limits::new(4, 16, 1_000_000_000)?))
    /// }
    /// ```
    pub fn set_fault_limits(&self, limits: Limits) -> Limits {
        self.control.set_fault_limits(limits)
    }

    /// Handles an interrupt that [`Platform::allocate_vector`] was asked for. Called in the interrupt.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, platform::Event};
    ///
    /// /// The handler of the vector that the platform gave out for the first unit's faults.
    /// fn on_interrupt(iommu: &Iommu) {
    ///     iommu.handle_event(Event::Fault { unit: 0 });
    /// }
    /// ```
    pub fn handle_event(&self, event: Event) {
        self.control.handle_event(event);
    }

    /// Logs recorded faults and tells drivers of them, puts groups that fault too much in quarantine, and stops the
    /// devices behind a unit that does not answer any more. Runs in a thread of the host, woken for
    /// [`Work::Faults`](crate::platform::Work::Faults).
    pub fn process_faults(&self) {
        self.control.process_faults();
    }

    /// When [`process_faults`](Self::process_faults) has to run next although nobody asks for it, on the platform's
    /// clock; `u64::MAX` for never. The thread that runs it looks at this before it goes to sleep.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::Iommu;
    ///
    /// /// The body of the host's thread for faults. `sleep` returns at the time, or when somebody asks for the work.
    /// fn serve_faults(iommu: &Iommu, sleep: impl Fn(u64)) -> ! {
    ///     loop {
    ///         iommu.process_faults();
    ///         sleep(iommu.next_faults_ns());
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn next_faults_ns(&self) -> u64 {
        self.control.next_faults_ns()
    }

    /// Flushes and frees mappings that were dropped, and flushes what retired ones wait for when it is due. Runs in a
    /// thread of the host, woken for [`Work::Reap`](crate::platform::Work::Reap).
    pub fn reap(&self) {
        self.control.reap();
    }

    /// When [`reap`](Self::reap) has to run next although nobody asks for it, on the platform's clock; `u64::MAX` for
    /// never. The thread that runs it looks at this before it goes to sleep.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::Iommu;
    ///
    /// /// The body of the host's thread that frees what was dropped.
    /// fn serve_drops(iommu: &Iommu, sleep: impl Fn(u64)) -> ! {
    ///     loop {
    ///         iommu.reap();
    ///         sleep(iommu.next_reap_ns());
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn next_reap_ns(&self) -> u64 {
        self.control.next_reap_ns()
    }

    /// Number of live mappings, dropped ones that wait for the reaper included.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::Iommu;
    ///
    /// /// Whether `work` has left something mapped behind.
    /// fn leaks(iommu: &Iommu, work: impl FnOnce()) -> bool {
    ///     let before = iommu.live_mappings();
    ///     work();
    ///     iommu.reap();
    ///     iommu.live_mappings() > before
    /// }
    /// ```
    #[must_use]
    pub fn live_mappings(&self) -> usize {
        self.control.live_mappings()
    }

    /// Shows `visitor` the way of a request of `function` for `address` through the tables as they are now: for each id
    /// that the function's requests may carry the entries that a unit reads, from the root down to the one where the
    /// translation ends. Without an address it ends with the entry that says which page table it is. Returns whether
    /// a unit covers the function.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, Iova, PciAddress, dump::{Leads, StepReport, Visitor}};
    ///
    /// /// Whether the way ends with memory.
    /// #[derive(Default)]
    /// struct Reaches(bool);
    ///
    /// impl Visitor for Reaches {
    ///     fn step(&mut self, step: &StepReport) {
    ///         self.0 |= matches!(step.leads, Leads::Memory { .. });
    ///     }
    /// }
    ///
    /// fn reaches(iommu: &Iommu, function: PciAddress, address: Iova) -> bool {
    ///     let mut reaches = Reaches::default();
    ///     iommu.trace(function, Some(address), &mut reaches) && reaches.0
    /// }
    /// ```
    pub fn trace(&self, function: PciAddress, address: Option<Iova>, visitor: &mut dyn Visitor) -> bool {
        self.control.trace(function, address, visitor)
    }

    /// Shows `visitor` the units, groups, domains and faults as they are now.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Iommu, dump::{UnitReport, Visitor}};
    ///
    /// /// Prints a line for each unit.
    /// struct Units;
    ///
    /// impl Visitor for Units {
    ///     fn unit(&mut self, unit: &UnitReport) {
    ///         println!("unit {}: {} doorbells", unit.unit, unit.doorbells);
    ///     }
    /// }
    ///
    /// fn print(iommu: &Iommu) {
    ///     iommu.visit(&mut Units);
    /// }
    /// ```
    pub fn visit(&self, visitor: &mut dyn Visitor) {
        self.control.visit(visitor);
    }
}

impl fmt::Debug for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommu").finish_non_exhaustive()
    }
}
