//! What a unit can do that it should not.

/// The ways in which one unit misbehaves; none at power-on.
#[derive(Clone, Debug)]
pub struct Misbehaviour {
    /// Reads give all ones and writes do nothing: the unit is gone.
    pub gone: bool,
    /// Bits of GCMD that are never acted on.
    pub deaf_to: u32,
    /// The queue fetches nothing.
    pub queue_stalled: bool,
    /// QIES stays 1 when the queue is turned off.
    pub queue_stays_on: bool,
    /// Waits complete, but their status is written only so many nanoseconds later.
    pub status_delay_ns: u64,
    /// Waits complete, but their status is never written.
    pub statuses_lost: bool,
    /// So many of the next descriptors are refused as malformed.
    pub refused_descriptors: u32,
    /// The next invalidation completes with an error.
    pub completion_error: bool,
    /// Register-based invalidations never finish.
    pub registers_stalled: bool,
    /// Register-based invalidations are refused.
    pub registers_refuse: bool,
    /// CAP and ECAP read as these.
    pub capability: Option<(u64, u64)>,
    /// How long a device may take to answer a device-TLB invalidation.
    pub device_limit_ns: u64,
}

impl Default for Misbehaviour {
    fn default() -> Self {
        const MINUTE_NS: u64 = 60_000_000_000;
        Self {
            gone: false,
            deaf_to: 0,
            queue_stalled: false,
            queue_stays_on: false,
            status_delay_ns: 0,
            statuses_lost: false,
            refused_descriptors: 0,
            completion_error: false,
            registers_stalled: false,
            registers_refuse: false,
            capability: None,
            device_limit_ns: MINUTE_NS,
        }
    }
}
