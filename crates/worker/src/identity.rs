//! Who this worker is and what it can do.

use pleach_base::{IdSource, Result, WorkerId, code};
use pleach_proto::v1::RegisterRequest;
use tch::Device;

use crate::cli::Args;

/// What does not change while the process lives.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) id: WorkerId,
    pub(crate) host: String,
    pub(crate) rendezvous_port: u16,
    pub(crate) pulse_port: u16,
    pub(crate) device: Device,
    pub(crate) threads: u32,
}

impl Identity {
    pub(crate) fn new(args: &Args, ids: &dyn IdSource, rendezvous_port: u16) -> Result<Self> {
        let name = args.name.clone().unwrap_or_else(default_name);
        let id = WorkerId { name, incarnation: ids.next_u64() };
        Ok(Self {
            pulse_port: crate::pulse::serve(&args.listen_host, id.incarnation)?,
            id,
            host: args.listen_host.clone(),
            rendezvous_port,
            device: device(&args.device)?,
            threads: args.threads.unwrap_or_else(cores),
        })
    }

    pub(crate) fn request(&self) -> RegisterRequest {
        RegisterRequest {
            pulse_port: u32::from(self.pulse_port),
            worker: self.id.name.clone(),
            incarnation: self.id.incarnation,
            host: self.host.clone(),
            rendezvous_port: u32::from(self.rendezvous_port),
            device: if self.device.is_cuda() { "cuda" } else { "cpu" }.to_owned(),
            threads: self.threads,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            libtorch_version: pleach_comm::libtorch_version(),
            pid: u64::from(std::process::id()),
        }
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}-{}", if host.is_empty() { "worker" } else { host }, std::process::id())
}

fn device(text: &str) -> Result<Device> {
    let device = match text.split_once(':') {
        None if text == "cpu" => Some(Device::Cpu),
        None if text == "cuda" => Some(Device::Cuda(0)),
        Some(("cuda", index)) => index.parse().ok().map(Device::Cuda),
        _ => None,
    };
    let device = device.ok_or_else(|| {
        code::BAD_VALUE.error(format!("--device: `{text}` is not a device")).hint("use `cpu` or `cuda:0`")
    })?;
    match device {
        Device::Cuda(index) if index as i64 >= tch::Cuda::device_count() => Err(code::LIBTORCH
            .error(format!("--device: libtorch sees {} CUDA devices, not `{text}`", tch::Cuda::device_count()))
            .hint("use `--device cpu`, or a CUDA libtorch on a machine with a driver")),
        device => Ok(device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_and_checked() {
        assert_eq!(device("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda:x", "cpu:1", ""] {
            assert_eq!(device(bad).unwrap_err().code(), code::BAD_VALUE, "{bad}");
        }
        assert_eq!(device("cuda:99").unwrap_err().code(), code::LIBTORCH);
    }
}
