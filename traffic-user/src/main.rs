//! The binary `traffic`: exit codes and how errors are printed, nothing else.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use traffic_user::cli;

/// 0 done; 1 done, and a limit or check is over; 2 could not.
fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        // The reader went away, as in `traffic dump | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be left to read it. Names of files and devices are whoever's who chose them.
            let _ = writeln!(io::stderr(), "{}", cli::printable(&format!("traffic: {error:#}")));
            if let Some(remedy) = cli::remedy(&error) {
                let _ = writeln!(io::stderr(), "  remedy: {}", cli::printable(&remedy));
            }
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
