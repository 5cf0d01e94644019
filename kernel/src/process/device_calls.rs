//! The calls about devices that the process was given.

use abi::{Call, DeviceAccess, Error};

use super::{Given, Running};

impl Running {
    /// Does what the program asks for of one of its devices, whose number every one of these calls has first.
    pub(super) fn serve_device(&mut self, call: Call, arguments: [u64; 5]) -> Result<u64, Error> {
        let [device, second, third, fourth, fifth] = arguments;
        let number = usize::try_from(device).map_err(|_| Error::NoSuchDevice)?;
        let device: &mut Given = self.devices.get_mut(number).ok_or(Error::NoSuchDevice)?;
        match call {
            Call::ConfigRead => device.config_read(second),
            Call::BarBytes => device.bar_bytes(second),
            Call::MapBar => device.map_bar(second, &mut self.space),
            Call::HasSpace => Ok(device.has_space().into()),
            Call::Share => {
                let way = DeviceAccess::from_number(fourth).ok_or(Error::BadAddress)?;
                device.share(second, third, way, &mut self.space).map(|()| 0)
            }
            Call::Unshare => device.unshare(second, &mut self.space).map(|()| 0),
            Call::Interrupts => Ok(device.interrupts()),
            Call::Await => device.wait(&self.process, second, third),
            Call::Serve => device.serve(second, &self.space, &self.process),
            Call::TakeRequest => device.take_request(second, third, &mut self.space),
            Call::CompleteRequest => device.complete_request(second, third, fourth, fifth, &self.space),
            Call::Exit
            | Call::Log
            | Call::MapMemory
            | Call::UnmapMemory
            | Call::ProtectMemory
            | Call::Now
            | Call::SleepUntil => Err(Error::NoSuchCall),
        }
    }
}
