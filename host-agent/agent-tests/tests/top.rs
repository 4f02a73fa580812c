// SPDX-License-Identifier: Apache-2.0
//! The live view in a real terminal: driven by keys through tmux, its screen read back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rig::{Rig, program};

#[test]
fn the_view_fits_small_and_large_terminals_and_follows_keys() {
    if Command::new("tmux").arg("-V").output().is_err() {
        println!("SKIPPED: no tmux on this machine");
        return;
    }
    let mut rig = Rig::new(&["a", "b"]);
    rig.start();
    rig.wait_serving();
    let terminal = Terminal::new(&rig, 80, 24);
    // The terminal gets a screen in pieces: it is whole when its last line is there.
    let whole =
        |screen: &str, height: usize| screen.lines().nth(height - 1).is_some_and(|last| last.starts_with("q quit"));
    let small = terminal.wait("both guests", |screen| screen.matches(" serving ").count() == 2 && whole(screen, 24));
    check(&rig, &small, 80, 24);
    // The first guest is chosen, then the second, and no more than the last.
    assert!(small.contains("┌ a ─"), "{small}");
    terminal.keys(&["Down", "Down", "j"]);
    let second = terminal.wait("the second guest", |screen| screen.contains("┌ b ─") && whole(screen, 24));
    check(&rig, &second, 80, 24);
    terminal.keys(&["Up", "k"]);
    terminal.wait("the first guest", |screen| screen.contains("┌ a ─"));
    // A larger window is used at once, and a smaller one, too.
    for (width, height) in [(200, 50), (80, 24), (200, 50)] {
        terminal.resize(width, height);
        let screen = terminal.wait("the new size", |screen| {
            let lines: Vec<&str> = screen.lines().collect();
            lines.len() == height
                && whole(screen, height)
                && lines[2].trim_end().chars().count() == width
                && screen.contains("┌ a ─")
        });
        check(&rig, &screen, width, height);
    }
    // The view follows what happens.
    assert_eq!(rig.tell(&["stop", "b"]).0, 0);
    terminal.wait("the end of b", |screen| screen.contains(" stopped ") && screen.contains("1 of 2 guests serve"));
    // A daemon that is away is said to be; what was known stays.
    rig.signal_daemon(nix::sys::signal::Signal::SIGKILL);
    let away = terminal.wait("the daemon's absence", |screen| screen.contains("c.sock"));
    assert!(away.contains(" serving "), "{away}");
    rig.start();
    terminal.wait("the next daemon", |screen| !screen.contains("c.sock"));
    // Its own screen, without a cursor; and the shell's again at the end.
    assert_eq!(terminal.modes(), "alternate 1, cursor 0");
    terminal.keys(&["q"]);
    terminal.wait("the shell", |screen| screen.contains("ENDED WITH 0"));
    assert_eq!(terminal.modes(), "alternate 0, cursor 1");
}

/// What every screen shows, whatever its size: nothing is cut in the middle.
fn check(rig: &Rig, screen: &str, width: usize, height: usize) {
    let lines: Vec<&str> = screen.lines().collect();
    assert_eq!(lines.len(), height, "{screen}");
    assert!(lines.iter().all(|line| line.chars().count() <= width), "{screen}");
    assert!(lines[0].starts_with("Chrysalis host agent ") && lines[0].contains("2 of 2 guests serve"), "{screen}");
    assert!(lines[0].trim_end().ends_with("HARDWARE SIMULATED"), "{screen}");
    assert!(lines[1].starts_with("cache 0 MiB of 1024 MiB, 1 packs"), "{screen}");
    let titles = lines.iter().find(|line| line.contains("guest ")).unwrap();
    for title in ["guest", "state", "listens", "gen", "serves", "restarts", "clients"] {
        assert!(titles.contains(title), "{title} is cut:\n{screen}");
    }
    for guest in &rig.guests {
        let row = lines.iter().find(|line| line.starts_with(&format!("│{} ", guest.name))).unwrap();
        assert!(row.contains(" serving ") && row.contains(&format!("127.0.0.1:{}", guest.port)), "{screen}");
    }
    assert!(screen.contains("active: generation 1, attempt 1, QEMU "), "{screen}");
    assert!(screen.contains("release r, model m"), "{screen}");
    // The last phase, wherever its line is broken.
    let words: Vec<&str> =
        screen.split(|c: char| c.is_whitespace() || c == '│').filter(|word| !word.is_empty()).collect();
    assert!(words.windows(2).any(|pair| pair[0] == "serve" && pair[1].ends_with('s')), "{screen}");
    assert!(lines[height - 1].starts_with("q quit"), "{screen}");
}

/// A terminal of tmux, with a server of its own that ends with it.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// `top` in a shell that says how it ended.
    fn new(rig: &Rig, width: usize, height: usize) -> Self {
        let terminal = Self { socket: rig.root.join("tmux") };
        let top = format!("{} top --socket {}", program("agent-under-test").display(), rig.socket().display());
        let (width, height) = (width.to_string(), height.to_string());
        let shell = format!("{top}; echo ENDED WITH $?; exec sleep 600");
        let size = ["-x", &width, "-y", &height];
        let output = terminal.tmux(&[&["new-session", "-d"], &size[..], &["sh", "-c", &shell]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        terminal
    }

    fn keys(&self, keys: &[&str]) {
        assert!(self.tmux(&[&["send-keys"], keys].concat()).status.success());
    }

    fn resize(&self, width: usize, height: usize) {
        let (width, height) = (width.to_string(), height.to_string());
        assert!(self.tmux(&["resize-window", "-x", &width, "-y", &height]).status.success());
    }

    /// Which of the terminal's two screens is shown, and whether its cursor is.
    fn modes(&self) -> String {
        let output = self.tmux(&["display-message", "-p", "alternate #{alternate_on}, cursor #{cursor_flag}"]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The screen, once it is as `wanted`.
    fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.tmux(&["capture-pane", "-p"]).stdout;
            let screen = String::from_utf8(screen).unwrap();
            if wanted(&screen) {
                return screen;
            }
            assert!(start.elapsed() < PATIENCE, "{what} did not come:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        // UTF-8 whatever the locale; no configuration of the user's.
        command.args(["-u", "-f", "/dev/null", "-S"]).arg(&self.socket).args(words);
        command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("TMUX").output().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

const PATIENCE: Duration = Duration::from_secs(40);
