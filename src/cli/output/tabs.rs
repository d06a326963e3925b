//! Columns: the two ways kubectl lines up text, both fed with rows of cells.
//!
//! `grid` is for `get` and its like: every row has the same columns. `align` is Go's text/tabwriter for the indented prose of
//! `describe`: a column is a run of neighbouring lines that have a cell there, and each run has a width of its own.

/// Remembers the widths of earlier calls, so that the rows of a watch line up with those before them.
#[derive(Debug, Default, Clone)]
pub struct Grid {
    widths: Vec<usize>,
}

/// kubectl's tables: cells at least six wide, three spaces between columns, the last one not padded.
const CELL_CHARS_MIN: usize = 6;
const GAP_CHARS: usize = 3;

impl Grid {
    /// Lines up rows of cells; every line ends with a newline.
    pub fn print(&mut self, rows: &[Vec<String>]) -> String {
        for row in rows {
            // The last cell of a row closes no column.
            for (at, cell) in row.iter().take(row.len().saturating_sub(1)).enumerate() {
                let width = (cell.chars().count() + GAP_CHARS).max(CELL_CHARS_MIN);
                match self.widths.get_mut(at) {
                    Some(known) => *known = width.max(*known),
                    None => self.widths.push(width),
                }
            }
        }
        let mut out = String::new();
        for row in rows {
            for (at, cell) in row.iter().enumerate() {
                out.push_str(cell);
                if at + 1 < row.len() {
                    pad(&mut out, self.widths[at].saturating_sub(cell.chars().count()));
                }
            }
            out.push('\n');
        }
        out
    }
}

/// Lines up rows once.
pub fn grid(rows: &[Vec<String>]) -> String {
    Grid::default().print(rows)
}

fn pad(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// Lines up tab-separated text with `gap` spaces between columns.
pub fn align(text: &str, gap: usize) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut out = String::new();
    block(&lines, &mut Vec::new(), gap, &mut out);
    if !text.ends_with('\n') && out.ends_with('\n') {
        out.pop();
    }
    out
}

/// Prints lines whose columns left of `widths.len()` have known widths, finding the runs of the next column.
fn block(lines: &[Vec<&str>], widths: &mut Vec<usize>, gap: usize, out: &mut String) {
    let column = widths.len();
    let mut at = 0;
    while at < lines.len() {
        if lines[at].len() <= column + 1 {
            print_line(&lines[at], widths, out);
            at += 1;
            continue;
        }
        let run = lines[at..].iter().take_while(|line| line.len() > column + 1).count();
        let longest = lines[at..at + run].iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        widths.push(longest + gap);
        block(&lines[at..at + run], widths, gap, out);
        widths.pop();
        at += run;
    }
}

fn print_line(line: &[&str], widths: &[usize], out: &mut String) {
    for (at, cell) in line.iter().enumerate() {
        out.push_str(cell);
        if at + 1 < line.len() {
            pad(out, widths.get(at).copied().unwrap_or(0).saturating_sub(cell.chars().count()));
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids() {
        let rows: Vec<Vec<String>> = [["NAME", "A", "AGE"], ["web-long-name", "1", "5m"]]
            .iter()
            .map(|row| row.iter().map(|cell| cell.to_string()).collect())
            .collect();
        assert_eq!(grid(&rows), "NAME            A     AGE\nweb-long-name   1     5m\n");
    }

    #[test]
    fn each_run_has_its_own_width() {
        let text = "Name:\tweb\nLabels:\tapp=web\nheading\n  a\tb\tc\n  longer\tb\tc\n";
        expect_test::expect![[r#"
            Name:    web
            Labels:  app=web
            heading
              a       b  c
              longer  b  c
        "#]]
        .assert_eq(&align(text, 2));
    }
}
