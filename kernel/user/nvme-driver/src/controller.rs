//! The controller's registers, and its admin queue.

use core::ptr::NonNull;

use nvme_spec::{
    Command, Completion, IDENTIFY_BYTES, Identity, Namespace, NamespaceError, bytes_at,
    registers::{CONFIGURATION_ON, Capabilities, ControllerStatus, admin_attributes, offset},
};

use crate::{DEVICE, Problem, memory::Memory, queue::Queue};

/// How long a command may take.
const COMMAND_NS: u64 = 5_000_000_000;
/// Least time that it is given to become ready or quiet, and how often that is looked at: nothing tells.
const READY_NS: u64 = 1_000_000_000;
const READY_STEP_NS: u64 = 1_000_000;

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 16;
/// The interrupts of the admin queue and of the one for requests, which are also their numbers.
const ADMIN: u16 = 0;
pub const REQUESTS: u16 = 1;

/// Bytes that the admin queues take, with the page behind them.
pub const ADMIN_BYTES: usize = 3 * 4096;

/// The controller.
pub struct Controller {
    registers: NonNull<u8>,
    capabilities: Capabilities,
    admin: Queue,
    /// What it is asked for goes there.
    page: Memory,
}

impl Controller {
    /// Maps its registers; `memory` is for its admin queues.
    pub fn open(memory: Memory) -> Result<Self, Problem> {
        if DEVICE.interrupts()? <= REQUESTS.into() {
            return Err(Problem::Unsupported);
        }
        let registers = DEVICE.map_bar(0)?;
        let mut controller = Self {
            registers,
            capabilities: Capabilities(0),
            admin: Queue::new(memory, ADMIN_ENTRIES),
            page: memory.part(2 * 4096, IDENTIFY_BYTES),
        };
        controller.capabilities = Capabilities(controller.read64(offset::CAPABILITIES));
        let capabilities = controller.capabilities;
        // The doorbells of both queues are in the pages that are mapped.
        let reaches = capabilities.doorbell(REQUESTS + 1) <= 2 * 4096;
        let is_one = capabilities.has_nvm_commands() && capabilities.has_4k_pages() && reaches;
        if is_one { Ok(controller) } else { Err(Problem::Unsupported) }
    }

    /// Most entries that a queue may have.
    pub fn queue_limit(&self) -> u32 {
        self.capabilities.queue_limit()
    }

    /// Turns it off and on again. What it had is gone.
    pub fn restart(&mut self) -> Result<(), Problem> {
        self.write32(offset::CONFIGURATION, 0);
        self.await_ready(false)?;
        self.admin.clear();
        self.write32(offset::ADMIN_ATTRIBUTES, admin_attributes(ADMIN_ENTRIES));
        self.write64(offset::ADMIN_SUBMISSION, self.admin.submission.iova);
        self.write64(offset::ADMIN_COMPLETION, self.admin.completion.iova);
        self.write32(offset::CONFIGURATION, CONFIGURATION_ON);
        self.await_ready(true)
    }

    fn await_ready(&self, wanted: bool) -> Result<(), Problem> {
        let deadline_ns = runtime::now_ns() + self.capabilities.ready_ns().max(READY_NS);
        loop {
            let status = ControllerStatus::from_bits_retain(self.read32(offset::STATUS));
            if status.contains(ControllerStatus::READY) == wanted {
                return Ok(());
            }
            let now_ns = runtime::now_ns();
            if now_ns >= deadline_ns {
                return Err(Problem::NotReady);
            }
            runtime::sleep_until(now_ns + READY_STEP_NS);
        }
    }

    /// Who it is.
    pub fn identify(&mut self) -> Result<Identity, Problem> {
        self.execute(Command::identify_controller(self.page.iova))?;
        Ok(Identity::decode(&self.page_read()))
    }

    /// Its first namespace.
    pub fn first_namespace(&mut self, identity: &Identity) -> Result<Namespace, Problem> {
        self.execute(Command::identify_active_namespaces(self.page.iova))?;
        let (id, highest) = (u32::from_le_bytes(bytes_at(&self.page_read(), 0)), identity.namespaces);
        if id == 0 {
            return Err(Problem::NoNamespace);
        }
        if id > highest {
            return Err(Problem::Namespace(NamespaceError::Id { id, highest }));
        }
        self.execute(Command::identify_namespace(id, self.page.iova))?;
        Namespace::decode(id, &self.page_read()).map_err(Problem::Namespace)
    }

    fn page_read(&self) -> [u8; IDENTIFY_BYTES] {
        core::array::from_fn(|index| self.page.read(index))
    }

    /// Makes the queues for requests known to it.
    pub fn create(&mut self, queue: &Queue) -> Result<(), Problem> {
        let (submission, completion) = (queue.submission.iova, queue.completion.iova);
        self.execute(Command::set_queue_count(1))?;
        self.execute(Command::create_completion_queue(REQUESTS, queue.size, completion, REQUESTS))?;
        self.execute(Command::create_submission_queue(REQUESTS, queue.size, submission))?;
        Ok(())
    }

    /// Does an admin command, the only one at its time.
    fn execute(&mut self, command: Command) -> Result<Completion, Problem> {
        const ID: u16 = 0;
        self.admin.push(command.identified(ID));
        self.ring_submission(ADMIN, self.admin.tail);
        let deadline_ns = runtime::now_ns() + COMMAND_NS;
        let entry = loop {
            if let Some(entry) = self.admin.pop() {
                break entry;
            }
            // Interrupts that bring nothing do not put it off.
            if runtime::now_ns() >= deadline_ns {
                return Err(Problem::TimedOut);
            }
            DEVICE.await_interrupt(ADMIN.into(), deadline_ns)?;
        };
        self.ring_completion(ADMIN, self.admin.head);
        if entry.id != ID || entry.queue != ADMIN {
            return Err(Problem::NotInFlight);
        }
        if entry.status.is_success() { Ok(entry) } else { Err(Problem::Refused(entry.status)) }
    }

    /// Tells it where the submission queue ends.
    pub fn ring_submission(&self, queue: u16, tail: u16) {
        self.write32(self.capabilities.doorbell(queue), tail.into());
    }

    /// Tells it how far completions were taken.
    pub fn ring_completion(&self, queue: u16, head: u16) {
        let at = self.capabilities.doorbell(queue) + self.capabilities.doorbell_stride();
        self.write32(at, head.into());
    }

    fn read32(&self, at: usize) -> u32 {
        // SAFETY: a register in the pages that are mapped: `open` looked for the doorbells, and the others are in the
        // first one.
        unsafe { self.registers.add(at).cast().read_volatile() }
    }

    fn read64(&self, at: usize) -> u64 {
        // SAFETY: as in `read32`.
        unsafe { self.registers.add(at).cast().read_volatile() }
    }

    fn write32(&self, at: usize, value: u32) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
        // SAFETY: as in `read32`. What was written to memory before is there before.
        unsafe { self.registers.add(at).cast().write_volatile(value) };
    }

    fn write64(&self, at: usize, value: u64) {
        // SAFETY: as in `read32`.
        unsafe { self.registers.add(at).cast().write_volatile(value) };
    }
}
