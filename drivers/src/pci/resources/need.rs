//! What needs addresses behind a port: registers, and windows of bridges that hold what is behind them.

use alloc::vec::Vec;
use core::cmp::Reverse;

use iommu::PciAddress;

use super::{
    super::{
        bar::{Bar, BarKind},
        config::{Config, ConfigSpace, command},
        function::{Function, Layout},
        slot::has_slot,
    },
    ResourceError,
    window::{WINDOW_BYTES, Window, close_ports},
};

/// Most functions behind one port that are given addresses.
const MAX_FUNCTIONS: usize = 256;

/// A run of addresses that `function` needs.
pub(super) struct Need {
    /// The bridge that passes them on to the function.
    pub parent: PciAddress,
    pub function: PciAddress,
    /// A multiple of `align`.
    pub bytes: u64,
    /// A power of two.
    pub align: u64,
    pub taker: Taker,
    /// Where it was placed.
    pub base: u64,
}

/// What takes the addresses.
pub(super) enum Taker {
    Register(Bar),
    /// The memory window of a bridge.
    Window,
}

impl Need {
    /// Which of its port's windows it goes into. Only registers of 64 bits go into the prefetchable one, if it is used,
    /// because it may lie above 4 GiB. Behind further bridges everything is in their memory windows: the addresses that
    /// are given are below 4 GiB, and reading ahead is no more than allowed.
    pub fn window(&self, read_ahead: bool) -> Window {
        match &self.taker {
            Taker::Register(Bar { kind: BarKind::Memory { wide: true, prefetchable: true }, .. })
                if read_ahead =>
            {
                Window::Prefetchable
            }
            _ => Window::Memory,
        }
    }

    /// The window that it opened for `bridge`.
    pub fn window_of(&self, bridge: PciAddress) -> Option<(u64, u64)> {
        let is_its = self.function == bridge && matches!(self.taker, Taker::Window);
        is_its.then(|| (self.base, self.base + (self.bytes - 1)))
    }

    /// Moves it to `base`.
    pub fn place<C: ConfigSpace + ?Sized>(&mut self, space: &C, base: u64) -> Result<(), ResourceError> {
        self.base = base;
        let Self { function, bytes, .. } = *self;
        let config = Config::new(space, function);
        match &self.taker {
            Taker::Register(bar) if bar.place(config, base) => Ok(()),
            Taker::Register(bar) => Err(ResourceError::NotPlaced { function, index: bar.index }),
            Taker::Window if Window::Memory.write(config, Some((base, base + (bytes - 1)))) => Ok(()),
            Taker::Window => Err(ResourceError::NoWindow { bridge: function, window: Window::Memory }),
        }
    }
}

/// What `functions`, sorted by address and all behind `port`, need: bridge by bridge from the port down, and of each
/// bridge from the largest alignment to the smallest, in which order they are packed without gaps; a bridge with a slot
/// `slot_bytes` at least. Nothing decodes, forwards or masters the bus then, whatever was left on: what is behind a
/// bridge that nobody has configured is nobody's.
pub(super) fn needs<C: ConfigSpace + ?Sized>(
    space: &C,
    port: PciAddress,
    functions: &[Function],
    slot_bytes: u64,
) -> Result<Vec<Need>, ResourceError> {
    if functions.len() > MAX_FUNCTIONS {
        return Err(ResourceError::TooManyFunctions { port, functions: functions.len() });
    }
    let mut needs: Vec<Need> = Vec::new();
    // A bridge is on a lower bus than what is behind it, so that this is known when its turn comes.
    for found in functions.iter().rev() {
        let function = found.address;
        let parent = found.parent.unwrap_or(port);
        let config = Config::new(space, function);
        config.change_command(0, command::MEMORY | command::PORT | command::BUS_MASTER);
        if let Layout::Bridge(_) = found.layout {
            close(config);
            let least = if has_slot(config) { slot_bytes } else { 0 };
            if let Some((bytes, align)) = sum(needs.iter().filter(|need| need.parent == function), least) {
                needs.try_reserve(1)?;
                needs.push(Need { parent, function, bytes, align, taker: Taker::Window, base: 0 });
            }
        }
        for bar in Bar::all(config, found.layout).filter(|bar| bar.kind != BarKind::Port) {
            let (bytes, align) = (bar.bytes, bar.bytes);
            needs.try_reserve(1)?;
            needs.push(Need { parent, function, bytes, align, taker: Taker::Register(bar), base: 0 });
        }
    }
    needs.sort_unstable_by_key(|need| (need.parent, Reverse(need.align)));
    Ok(needs)
}

/// Length and alignment of a window that holds all of `needs`, and is no shorter than `least`; `None` for no window. A
/// length too large for any window is the largest there is.
fn sum<'a>(needs: impl Iterator<Item = &'a Need> + Clone, least: u64) -> Option<(u64, u64)> {
    let align = needs.clone().map(|need| need.align).max().unwrap_or(0).max(WINDOW_BYTES);
    let bytes = needs.fold(0_u64, |sum, need| sum.saturating_add(need.bytes)).max(least);
    (bytes > 0).then_some((bytes.checked_next_multiple_of(align).unwrap_or(!(align - 1)), align))
}

/// Closes all windows of a bridge.
pub(super) fn close<C: ConfigSpace + ?Sized>(bridge: Config<'_, C>) {
    // A window that it lacks is not there to be closed, and one that is to be opened is checked then.
    let _ = Window::Memory.write(bridge, None);
    let _ = Window::Prefetchable.write(bridge, None);
    close_ports(bridge);
}
