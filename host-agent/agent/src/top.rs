// SPDX-License-Identifier: Apache-2.0
//! `host-agent top`: a live view of the daemon's guests.

mod view;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::manage::{self, SocketArgs};
use view::Screen;

#[derive(Debug, Args)]
#[command(
    after_help = "Keys: q quits, arrows choose a guest. Without a terminal the table of `status` is printed once. Example:\n  host-agent top"
)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    daemon: SocketArgs,
}

/// Shows guests until `q`. Without a terminal: once, as `status` does.
pub(crate) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let first = manage::fetch(&args.daemon.socket)?;
    if args.daemon.json {
        println!("{}", serde_json::to_string(&first)?);
        return Ok(ExitCode::SUCCESS);
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        print!("{}", manage::table(&first));
        return Ok(ExitCode::SUCCESS);
    }
    let mut terminal = ratatui::try_init().context("terminal")?;
    let result = follow(&mut terminal, args, Screen::new(first));
    ratatui::try_restore().context("terminal")?;
    result.map(|()| ExitCode::SUCCESS)
}

fn follow(terminal: &mut ratatui::DefaultTerminal, args: &TopArgs, mut screen: Screen) -> anyhow::Result<()> {
    let mut asked = Instant::now();
    loop {
        terminal.draw(|frame| screen.draw(frame)).context("terminal")?;
        if event::poll(REFRESH.saturating_sub(asked.elapsed())).context("terminal")?
            && let Event::Key(key) = event::read().context("terminal")?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Up | KeyCode::Char('k') => screen.choose(-1),
                KeyCode::Down | KeyCode::Char('j') => screen.choose(1),
                _ => {}
            }
        }
        if asked.elapsed() >= REFRESH {
            // An agent that restarts is away for a moment; what was known stays on the screen, and says so.
            screen.update(manage::fetch(&args.daemon.socket).map_err(|error| format!("{error:#}")));
            asked = Instant::now();
        }
    }
}

const REFRESH: Duration = Duration::from_secs(1);
