//! What a terminal shows: lines that stay, and below them a page that is redrawn. Pure.
//!
//! No line is as wide as the terminal, so each takes exactly the rows that are counted here.

/// Terminals with fewer columns are treated as if they had this many: they break words.
const NARROWEST: usize = 20;
/// The column where the text begins, after the name of a line.
const INDENT: usize = 10;

#[derive(Clone, Copy)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

#[derive(Default)]
pub struct Screen {
    page: String,
    drawn: Vec<String>,
}

impl Screen {
    /// One line that stays, above the page.
    pub fn say(&mut self, line: &str, size: Size) -> String {
        let erased = self.erased(size);
        format!("{erased}{}{}", joined(&fitted(line, size.columns)), self.drawn_page(size))
    }

    /// Another page, in place of the previous one.
    pub fn draw(&mut self, page: String, size: Size) -> String {
        let erased = self.erased(size);
        self.page = page;
        format!("{erased}{}", self.drawn_page(size))
    }

    /// The page stays as it is; what follows is below it.
    pub fn leave(&mut self) {
        *self = Screen::default();
    }

    /// Rows are counted as they are now: a terminal that became narrower has wrapped what was drawn.
    fn erased(&self, size: Size) -> String {
        let rows: usize = self.drawn.iter().map(|line| line.chars().count().div_ceil(size.columns.max(1)).max(1)).sum();
        if rows == 0 { String::new() } else { format!("\x1b[{rows}A\r\x1b[J") }
    }

    /// No more of the page than fits above the cursor: what scrolled away cannot be redrawn.
    fn drawn_page(&mut self, size: Size) -> String {
        self.drawn = self.page.lines().flat_map(|line| fitted(line, size.columns)).collect();
        self.drawn.truncate(size.rows.saturating_sub(1));
        joined(&self.drawn)
    }
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// A line in pieces that fit, broken at blanks; what follows the first piece is indented.
fn fitted(line: &str, columns: usize) -> Vec<String> {
    let width = columns.max(NARROWEST) - 1;
    let leading = line.chars().take_while(|c| *c == ' ').count();
    let indent = if leading == 0 { INDENT } else { leading + 2 }.min(width / 2);
    let mut rest: Vec<char> = line.trim_end().chars().collect();
    let mut lines = Vec::new();
    while rest.len() > width {
        let begin = rest.iter().take_while(|c| **c == ' ').count();
        let blank = (begin + 1..=width).rev().find(|at| rest[*at] == ' ' && *at > indent);
        let tail = rest.split_off(blank.unwrap_or(width));
        lines.push(rest.iter().collect::<String>().trim_end().to_owned());
        rest = [' '].repeat(indent).into_iter().chain(tail.into_iter().skip_while(|c| *c == ' ')).collect();
    }
    lines.push(rest.iter().collect());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(usize, usize); 5] = [(40, 12), (80, 24), (100, 40), (105, 30), (160, 50)];

    /// A terminal: what it shows, and what scrolled out of it.
    struct Terminal {
        size: Size,
        lines: Vec<String>,
        row: usize,
        column: usize,
    }

    impl Terminal {
        fn new((columns, rows): (usize, usize)) -> Terminal {
            Terminal { size: Size { columns, rows }, lines: vec![String::new()], row: 0, column: 0 }
        }

        fn queue_kind(&mut self, text: &str) {
            let mut rest = text.chars();
            while let Some(c) = rest.next() {
                match c {
                    '\x1b' => {
                        let mut sequence = String::new();
                        while !sequence.ends_with(|c: char| c.is_ascii_alphabetic()) {
                            sequence.push(rest.next().unwrap());
                        }
                        self.obey(&sequence);
                    }
                    '\r' => self.column = 0,
                    '\n' => self.go_down(),
                    c => self.show(c),
                }
            }
        }

        fn obey(&mut self, sequence: &str) {
            let top = self.lines.len().saturating_sub(self.size.rows);
            match sequence.strip_prefix('[').unwrap().split_at(sequence.len() - 2) {
                (up, "A") => self.row = self.row.saturating_sub(up.parse().unwrap()).max(top),
                ("", "J") => {
                    self.lines.truncate(self.row);
                    self.lines.push(String::new());
                }
                other => panic!("not known here: {other:?}"),
            }
        }

        fn go_down(&mut self) {
            (self.row, self.column) = (self.row + 1, 0);
            self.lines.resize(self.lines.len().max(self.row + 1), String::new());
        }

        fn show(&mut self, c: char) {
            if self.column == self.size.columns {
                self.go_down();
            }
            self.lines[self.row].push(c);
            self.column += 1;
        }
    }

    fn page(count: usize) -> String {
        let reasons =
            "event_deleted 2, no_identifier 2, other_regulation 2, pending 2, unwanted_type 2, user_deleted 2";
        let profiles: String = (0..10).map(|n| format!("          person-{n}@example.com  OPTIN_NEWS=Y\n")).collect();
        format!("published {count} messages\nskipped   12  ({reasons})\n{profiles}")
    }

    #[test]
    fn a_page_that_is_drawn_anew_leaves_nothing_of_the_one_before() {
        for size in SIZES {
            let mut terminal = Terminal::new(size);
            let mut screen = Screen::default();
            terminal.queue_kind(&screen.say("stream    people change their choices", terminal.size));
            for count in 0..40 {
                terminal.queue_kind(&screen.draw(page(count), terminal.size));
                if count == 20 {
                    let long =
                        "outage    a firewall answers 200 with a page, the gate 503; eleven more people switch it off";
                    terminal.queue_kind(&screen.say(long, terminal.size));
                }
            }
            let shown = terminal.lines.join("\n");
            assert_eq!(shown.matches("published ").count(), 1, "{size:?}\n{shown}");
            assert!(shown.contains("published 39 messages"), "{size:?}\n{shown}");
            assert!(shown.starts_with("stream    people"), "{size:?}\n{shown}");
            assert!(shown.find("outage    a firewall") < shown.find("published "), "{size:?}\n{shown}");
            assert!(terminal.lines.iter().all(|line| line.chars().count() < size.0), "{size:?}\n{shown}");
        }
    }

    #[test]
    fn what_is_said_after_the_page_was_left_is_below_it() {
        let mut terminal = Terminal::new((80, 24));
        let mut screen = Screen::default();
        terminal.queue_kind(&screen.draw(page(1), terminal.size));
        screen.leave();
        terminal.queue_kind(&screen.say("result    right", terminal.size));
        let shown = terminal.lines.join("\n");
        assert!(shown.starts_with("published 1 messages\n"), "{shown}");
        assert!(shown.trim_end().ends_with("result    right"), "{shown}");
    }

    #[test]
    fn a_terminal_that_became_narrower_is_counted_as_it_is() {
        let mut screen = Screen::default();
        screen.draw("a line of thirty-one characters\nshort\n".to_owned(), Size { columns: 80, rows: 24 });
        assert!(screen.draw(String::new(), Size { columns: 20, rows: 24 }).starts_with("\x1b[3A"));
    }

    #[test]
    fn lines_are_broken_at_blanks_and_what_follows_is_indented() {
        assert_eq!(fitted("short", 80), ["short"]);
        assert_eq!(fitted("named     one two three four", 21), ["named     one two", "          three four"]);
        assert_eq!(fitted("  cell  cell  cell  cell", 20), ["  cell  cell  cell", "    cell"]);
        assert_eq!(fitted(&"x".repeat(30), 20).concat().replace(' ', ""), "x".repeat(30));
    }

    #[test]
    fn no_width_loses_a_word_or_makes_a_line_too_wide() {
        for columns in 0..200 {
            let lines = fitted(page(7).lines().nth(1).unwrap(), columns);
            assert!(lines.iter().all(|line| line.chars().count() < columns.max(NARROWEST)), "{columns}: {lines:?}");
            let joined: String = lines.concat().split_whitespace().collect();
            assert_eq!(joined, page(7).lines().nth(1).unwrap().split_whitespace().collect::<String>());
        }
    }
}
