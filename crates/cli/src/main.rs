//! Entry point.

fn main() -> std::process::ExitCode {
    pleach_cli::main()
}
