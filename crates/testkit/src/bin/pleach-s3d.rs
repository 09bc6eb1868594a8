//! The S3 server of the tests as a process of its own, for tests in other languages and for kill tests. Prints one
//! line of JSON with its endpoint when it accepts connections.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use pleach_testkit::s3::{S3Options, S3Server};

const USAGE: &str =
    "pleach-s3d [--port N] [--root FOLDER] [--bucket NAME] [--access-key KEY] [--secret-key KEY] [--ignore-conditions]";

fn options(mut args: impl Iterator<Item = String>) -> anyhow::Result<S3Options> {
    let mut options = S3Options::default();
    while let Some(flag) = args.next() {
        let mut value = || args.next().with_context(|| format!("{flag} needs a value; usage: {USAGE}"));
        match flag.as_str() {
            "--port" => options.port = value()?.parse().context("--port is a number")?,
            "--root" => options.root = Some(PathBuf::from(value()?)),
            "--bucket" => options.bucket = value()?,
            "--access-key" => options.access_key = value()?,
            "--secret-key" => options.secret_key = value()?,
            "--ignore-conditions" => options.ignore_conditions = true,
            _ => bail!("unknown argument `{flag}`; usage: {USAGE}"),
        }
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut server = S3Server::start(options(std::env::args().skip(1))?).await?;
    let line = serde_json::json!({
        "endpoint": server.endpoint(),
        "bucket": server.bucket(),
        "access_key": server.access_key(),
        "root": server.root(),
    });
    writeln!(std::io::stdout(), "{line}")?;
    server.run().await;
    Ok(())
}
