//! Tables as `sky` prints them: a heading, then rows, columns two spaces apart, no lines.

use super::paint::{Paint, Tone};

/// A table to be printed.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<(String, Tone)>>,
}

/// What an empty cell shows.
const EMPTY: &str = "-";

impl Table {
    pub(super) fn new(headings: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            headings: headings.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, one cell per heading.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = (String, Tone)>) {
        let cells: Vec<_> = cells.into_iter().map(tidy).collect();
        assert_eq!(cells.len(), self.headings.len(), "one cell per heading");
        self.rows.push(cells);
    }

    /// The table as text, ending in a newline. No line ends in spaces.
    pub(super) fn render(&self, paint: Paint) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].0.chars().count());
            cells
                .chain([self.headings[column].len()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut text = String::new();
        let headings = self
            .headings
            .iter()
            .map(|heading| ((*heading).to_owned(), Tone::Strong));
        line(&mut text, &headings.collect::<Vec<_>>(), &widths, paint);
        for row in &self.rows {
            line(&mut text, row, &widths, paint);
        }
        text
    }
}

/// A cell is one line without control characters, whatever a replica's error message held.
fn tidy((text, tone): (String, Tone)) -> (String, Tone) {
    match text.is_empty() {
        true => (EMPTY.to_owned(), tone),
        false => (text.replace(char::is_control, " "), tone),
    }
}

fn line(text: &mut String, cells: &[(String, Tone)], widths: &[usize], paint: Paint) {
    let last = cells.len() - 1;
    for (column, (cell, tone)) in cells.iter().enumerate() {
        text.push_str(&paint.tone(*tone, cell));
        if column < last {
            let gap = widths[column] - cell.chars().count() + 2;
            text.extend(std::iter::repeat_n(' ', gap));
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["NAME", "STATUS", "ENDPOINT"]);
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        table.row([plain("web"), ("READY".into(), Tone::Good), plain("")]);
        table.row([plain("längst"), plain("NOT_READY"), plain("a\x1b\nb")]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_spaces() {
        assert_eq!(
            table().render(Paint::fixed(false)),
            "NAME    STATUS     ENDPOINT\n\
             web     READY      -\n\
             längst  NOT_READY  a  b\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let painted = table().render(Paint::fixed(true));
        assert!(
            painted.contains("web     \x1b[32mREADY\x1b[0m      -\n"),
            "{painted}"
        );
    }
}
