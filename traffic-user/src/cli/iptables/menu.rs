//! `traffic iptables` on a terminal: the small menu that users of multi-v2ray know. The same functions as
//! behind the verbs.

use std::{
    io::{self, BufRead as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use super::{
    super::{Common, print, reset},
    clean, show,
};

const MENU: &str = "\n\
    Traffic counted by rules\n\n\
    \x20 1  see statistics\n\
    \x20 2  see statistics by user\n\
    \x20 3  reset one port\n\
    \x20 4  clean one port\n\
    \x20 0  leave\n\n";

pub(super) fn run(common: &Common) -> Result<ExitCode> {
    loop {
        print(MENU)?;
        let Some(choice) = ask("choose: ")? else {
            return Ok(ExitCode::SUCCESS);
        };
        let plain = show::Args::default();
        let done = match choice.as_str() {
            "1" => show::run(common, show::Part::Port, &plain).map(drop),
            "2" => show::run(common, show::Part::User, &plain).map(drop),
            "3" => with_port(|port| reset::port(common, port)),
            "4" => with_port(|port| clean::port(common, port)),
            "" | "0" | "q" => return Ok(ExitCode::SUCCESS),
            _ => {
                print("choose 0 to 4\n")?;
                continue;
            }
        };
        // What could not be done is said, and the menu goes on.
        if let Err(error) = done {
            print(&format!("{error:#}\n"))?;
        }
    }
}

fn with_port(act: impl FnOnce(u16) -> Result<()>) -> Result<()> {
    match ask("port: ")?.as_deref().map(str::parse) {
        Some(Ok(port)) if port != 0 => act(port),
        Some(_) => print("a port is a number from 1 to 65535\n"),
        None => Ok(()),
    }
}

/// One line from the terminal; `None` at its end.
fn ask(question: &str) -> Result<Option<String>> {
    let mut stdout = io::stdout();
    write!(stdout, "{question}").and_then(|()| stdout.flush()).context("cannot ask")?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok((read > 0).then(|| answer.trim().to_owned()))
}
