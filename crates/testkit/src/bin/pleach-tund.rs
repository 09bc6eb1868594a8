//! Holds back the packets that the kernel routes into a TUN device: `pleach-tund --device NAME --delay-ms N`.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let (mut device, mut delay) = (None, Duration::ZERO);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--device" => device = Some(value),
            "--delay-ms" => delay = Duration::from_millis(value.parse().context("--delay-ms is a number")?),
            _ => bail!("unknown argument `{flag}`; usage: pleach-tund --device NAME --delay-ms N"),
        }
    }
    let device = device.context("--device is missing")?;
    pleach_testkit::net::tun::forward(&device, delay, || {
        let _ = writeln!(std::io::stdout(), "forwarding {device}");
    })
}
