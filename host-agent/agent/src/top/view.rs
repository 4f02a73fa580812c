// SPDX-License-Identifier: Apache-2.0
//! What `top` shows: a line for each guest, phases and reasons of the one that is chosen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table, TableState, Wrap};

use crate::daemon::status::{GenerationStatus, GuestStatus, GuestWord, Status};
use crate::daemon::tcb::TcbWord;

/// The last status, and what is chosen.
pub(super) struct Screen {
    status: Status,
    /// Why the status is old.
    away: Option<String>,
    chosen: usize,
}

impl Screen {
    pub(super) const fn new(status: Status) -> Self {
        Self { status, away: None, chosen: 0 }
    }

    pub(super) fn update(&mut self, status: Result<Status, String>) {
        match status {
            Ok(status) => (self.status, self.away) = (status, None),
            Err(reason) => self.away = Some(reason),
        }
        self.choose(0);
    }

    pub(super) fn choose(&mut self, by: isize) {
        let last = self.status.guests.len().saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(by).min(last);
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let rows = u16::try_from(self.status.guests.len()).unwrap_or(u16::MAX);
        let [head, guests, detail, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(rows.saturating_add(3).min(frame.area().height / 2)),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let narrow = frame.area().width < WIDE;
        frame.render_widget(self.head(narrow), head);
        let mut state = TableState::default().with_selected(Some(self.chosen));
        frame.render_stateful_widget(self.table(narrow), guests, &mut state);
        if let Some(guest) = self.status.guests.get(self.chosen) {
            let title = format!(" {} ", guest.name);
            let detail_text = Paragraph::new(describe(guest)).wrap(Wrap { trim: false });
            frame.render_widget(detail_text.block(Block::bordered().title(title)), detail);
        }
        frame.render_widget(Line::from("q quit   ↑↓ choose").style(Style::new().add_modifier(Modifier::DIM)), foot);
    }

    fn head(&self, narrow: bool) -> Paragraph<'_> {
        let Status { version, pid, simulated, guests, cache, tcb, reasons, .. } = &self.status;
        let serving = guests.iter().filter(|guest| guest.state == GuestWord::Serving).count();
        let mut first = vec![
            Span::styled(format!("Chrysalis host agent {version}"), Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(if narrow { String::new() } else { format!("  process {pid}") }),
            Span::raw(format!("  {serving} of {} guests serve", guests.len())),
        ];
        if *simulated {
            first.push(Span::styled("  HARDWARE SIMULATED", Style::new().fg(Color::Black).bg(Color::Yellow)));
        }
        let used = format!("cache {} of {}, {} packs", size(cache.bytes), size(cache.quota), cache.packs);
        let used = match tcb {
            Some(tcb) => format!(
                "{used}  TCB {}{}",
                tcb.state.as_str(),
                tcb.days_left.map_or(String::new(), |days| format!(", {days} days left"))
            ),
            None => used,
        };
        let tcb_alert = tcb.as_ref().filter(|tcb| matches!(tcb.state, TcbWord::FallsOut | TcbWord::Out));
        let tcb_alert = tcb_alert.and_then(|tcb| tcb.reasons.first());
        let alert = self.away.clone().or_else(|| reasons.first().or(tcb_alert).map(ToString::to_string));
        let second = match alert {
            Some(alert) => Line::from(format!("{used}  {alert}")).style(Style::new().fg(Color::Red)),
            None => Line::from(used),
        };
        Paragraph::new(vec![Line::from(first), second])
    }

    /// A narrow one leaves out release and model, which stand below, rather than the end of an address.
    fn table(&self, narrow: bool) -> Table<'_> {
        let long = if narrow { 0 } else { 2 };
        let rows = self.status.guests.iter().map(|guest| {
            let listen = guest.listen.map_or("-".to_owned(), |listen| listen.to_string());
            let generation = guest.active.as_ref().map_or("-".to_owned(), |active| active.number.to_string());
            let since = guest.active.as_ref().and_then(|active| active.serving_ms);
            let first = [
                Span::raw(guest.name.to_string()),
                Span::styled(guest.state.as_str(), Style::new().fg(colour(guest.state))),
                Span::raw(listen),
            ];
            let of = [&guest.release, &guest.model].map(|name| Span::raw(name.clone().unwrap_or_default()));
            let last = [
                Span::raw(generation),
                Span::raw(since.map_or("-".to_owned(), span)),
                Span::raw(guest.restarts.to_string()),
                Span::raw(guest.connections.to_string()),
            ];
            Row::new(first.into_iter().chain(of.into_iter().take(long)).chain(last))
        });
        let columns = COLUMNS.into_iter().filter(|(title, _)| !narrow || !matches!(*title, "release" | "model"));
        let (titles, widths): (Vec<_>, Vec<_>) = columns.unzip();
        Table::new(rows, widths)
            .header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::bordered())
    }
}

/// Everything of one guest that a line has no room for.
fn describe(guest: &GuestStatus) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let (Some(release), Some(model)) = (&guest.release, &guest.model) {
        lines.push(Line::from(format!("release {release}, model {model}")));
    }
    for (word, generation) in [("active", &guest.active), ("candidate", &guest.candidate)] {
        lines.extend(generation.iter().flat_map(|generation| generation_lines(word, generation)));
    }
    if !guest.retiring.is_empty() {
        let numbers: Vec<String> = guest.retiring.iter().map(ToString::to_string).collect();
        lines.push(Line::from(format!("draining or stopping: generation {}", numbers.join(", "))));
    }
    if !guest.finishing.is_empty() {
        let numbers: Vec<String> = guest.finishing.iter().map(ToString::to_string).collect();
        lines.push(Line::from(format!("answers what runs, then closes: generation {}", numbers.join(", "))));
    }
    for reason in &guest.reasons {
        lines.push(Line::from(format!("{}: {}", reason.code, reason.detail)).style(Style::new().fg(Color::Red)));
        lines.push(Line::from(format!("  fix: {}", reason.fix)));
    }
    lines
}

fn generation_lines(word: &str, generation: &GenerationStatus) -> Vec<Line<'static>> {
    let mut text = format!("{word}: generation {}, attempt {}", generation.number, generation.attempt);
    if let Some(pid) = generation.qemu_pid {
        text.push_str(&format!(", QEMU {pid}"));
    }
    if let Some(kib) = generation.memory_kib {
        text.push_str(&format!(", guest memory {}", size(kib.saturating_mul(1024))));
    }
    if !generation.notes.is_empty() {
        text.push_str(&format!(", {}", generation.notes.join(", ")));
    }
    if let Some((done, total)) = generation.fetched {
        text.push_str(&format!(", fetching the model: {} of {}", size(done), size(total)));
    }
    if let Some(left) = generation.retry_ms {
        text.push_str(&format!(", next attempt in {}", span(left)));
    }
    let mut lines = vec![Line::from(text)];
    if !generation.phases.is_empty() {
        let phases =
            generation.phases.iter().map(|phase| format!("{} {:.1}s", phase.phase, seconds(phase.milliseconds)));
        lines.push(Line::from(format!("  {}", phases.collect::<Vec<_>>().join(" › "))));
    }
    lines
}

const fn colour(word: GuestWord) -> Color {
    match word {
        GuestWord::Serving => Color::Green,
        GuestWord::Upgrading | GuestWord::Booting | GuestWord::Preparing => Color::Cyan,
        GuestWord::Waiting | GuestWord::Refused => Color::Red,
        GuestWord::Stopping | GuestWord::Stopped => Color::DarkGray,
    }
}

fn size(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// Title and width of each column.
const COLUMNS: [(&str, Constraint); 9] = [
    ("guest", Constraint::Min(8)),
    ("state", Constraint::Length(10)),
    ("listens", Constraint::Length(21)),
    ("release", Constraint::Min(8)),
    ("model", Constraint::Min(8)),
    ("gen", Constraint::Length(4)),
    ("serves", Constraint::Length(8)),
    ("restarts", Constraint::Length(8)),
    ("clients", Constraint::Length(7)),
];
/// From this width on there is room for all of them.
const WIDE: u16 = 100;

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use types::{EventName, Refusal};

    use super::*;
    use crate::daemon::status::{CacheStatus, PhaseStatus};

    fn generation(number: u64) -> GenerationStatus {
        GenerationStatus {
            number,
            attempt: 1,
            failures: 0,
            alive: true,
            serving: true,
            silent: false,
            serving_ms: Some(3_725_000),
            retry_ms: None,
            keeper_pid: Some(4),
            qemu_pid: Some(5),
            memory_kib: Some(49_152),
            phases: vec![PhaseStatus { phase: EventName::Keys, milliseconds: 5_512 }],
            notes: vec!["gpu_not_compared".to_owned()],
            fetched: None,
        }
    }

    fn guest(name: &str, state: GuestWord) -> GuestStatus {
        GuestStatus {
            name: name.parse().unwrap(),
            state,
            listen: Some("198.51.100.4:443".parse().unwrap()),
            release: Some("cpu-11".to_owned()),
            model: Some("smol".to_owned()),
            active: Some(generation(3)),
            candidate: None,
            retiring: vec![2],
            finishing: vec![2],
            restarts: 7,
            connections: 12,
            accepted: 100,
            turned_away: 0,
            reasons: Vec::new(),
        }
    }

    fn shown(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn screen() -> Screen {
        let mut second = guest("chat-2", GuestWord::Waiting);
        second.reasons = vec![Refusal::new("key_refused", "guest", "the service refused", "ask the model's owner")];
        second.active.as_mut().unwrap().retry_ms = Some(61_000);
        Screen::new(Status {
            schema: "chrysalis/agent-status/v1".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 42,
            simulated: true,
            guests: vec![guest("chat-1", GuestWord::Serving), second],
            cache: CacheStatus { bytes: 20 << 30, quota: 500 << 30, packs: 2 },
            tcb: None,
            reasons: Vec::new(),
        })
    }

    #[test]
    fn guests_phases_and_reasons_are_shown() {
        let mut screen = screen();
        let text = shown(&screen, 110, 20);
        for words in [
            "1 of 2 guests serve",
            "HARDWARE SIMULATED",
            "cache 20 GiB of 500 GiB, 2 packs",
            "chat-1",
            "198.51.100.4:443",
            "1h02m",
            "keys 5.5s",
            "guest memory 48 MiB",
            "draining or stopping: generation 2",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        assert!(!text.contains("key_refused"));
        screen.choose(1);
        let text = shown(&screen, 110, 20);
        assert!(text.contains("key_refused: the service refused") && text.contains("next attempt in 1m01s"), "{text}");
        screen.choose(5);
        screen.choose(-9);
        screen.update(Err("no agent answers".to_owned()));
        assert!(shown(&screen, 110, 20).contains("no agent answers"));
    }

    #[test]
    fn a_host_that_falls_out_is_shown_as_long_as_nothing_is_worse() {
        let mut screen = screen();
        screen.status.tcb = Some(crate::daemon::tcb::TcbStatus {
            state: TcbWord::FallsOut,
            fmspc: None,
            falls_out: Some(0),
            days_left: Some(13),
            reasons: vec![Refusal::new("tcb_falls_out", "tcb", "on a day", "update the microcode")],
        });
        let text = shown(&screen, 160, 20);
        assert!(text.contains("TCB falls-out, 13 days left") && text.contains("update the microcode"), "{text}");
        screen.status.reasons = vec![Refusal::new("state_not_written", "s", "full", "make room")];
        let text = shown(&screen, 160, 20);
        assert!(text.contains("TCB falls-out, 13 days left") && text.contains("make room"), "{text}");
    }

    #[test]
    fn any_size_and_no_guest_can_be_shown() {
        let mut screen = screen();
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            shown(&screen, width, height);
        }
        screen.status.guests.clear();
        screen.choose(1);
        assert!(shown(&screen, 80, 24).contains("0 of 0"));
    }
}
