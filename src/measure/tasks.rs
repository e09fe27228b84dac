//! Files of questions with given answers, in a form of their own and in those of llama-perplexity.

use super::MeasureError;
use crate::io::IoError;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How a file of tasks is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A JSON object a line: `{"context": …, "choices": […], "answer": 0}`, and perhaps a `domain`.
    Jsonl,
    /// What llama-perplexity takes with `--multiple-choice`.
    MultipleChoice,
    /// With `--hellaswag`: six lines a task.
    Hellaswag,
    /// With `--winogrande`: `number,sentence with a _,choice,choice,answer from 1`.
    Winogrande,
}

/// A question with answers, of which some are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// What belongs together in a table.
    pub domain: Option<String>,
    /// What comes before the answer.
    pub context: String,
    /// The answers.
    pub choices: Vec<String>,
    /// What comes after the answer, which decides then.
    pub rest: Option<String>,
    /// Which are right.
    pub right: Vec<bool>,
}

/// A line of a file.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "question", alias = "query", alias = "ctx")]
    context: String,
    #[serde(alias = "answers", alias = "endings")]
    choices: Vec<String>,
    #[serde(alias = "label", alias = "gold")]
    answer: usize,
    #[serde(alias = "subject")]
    domain: Option<String>,
}

/// Answers that a question may have; a larger number is taken for damage, as in llama-perplexity.
const MOST_CHOICES: u32 = 100;

/// Reads a file, of the format that its content shows.
pub(super) fn read(path: &Path) -> Result<(Format, Vec<Task>), MeasureError> {
    let bytes = std::fs::read(path).map_err(|error| IoError::new(path, error))?;
    let bad = |what: String| MeasureError::Tasks { path: path.to_owned(), what };
    let (format, tasks) = match std::str::from_utf8(&bytes) {
        Ok(text) if !text.contains('\0') => {
            let format = format_of(text);
            let tasks = match format {
                Format::Jsonl => jsonl(text),
                Format::Winogrande => winogrande(text),
                _ => hellaswag(text),
            };
            (format, tasks.map_err(bad)?)
        }
        _ => {
            let what = "neither text nor a file of tasks of llama-perplexity --multiple-choice";
            let tasks = multiple_choice(&bytes).ok_or_else(|| bad(what.to_owned()))?;
            (Format::MultipleChoice, tasks)
        }
    };
    let wrong = |task: &Task| {
        task.choices.len() < 2
            || task.context.is_empty()
            || task.choices.iter().any(String::is_empty)
    };
    if let Some(i) = tasks.iter().position(wrong) {
        return Err(bad(format!(
            "task {} has no context, fewer than two answers, or an empty one",
            i + 1
        )));
    }
    match tasks.is_empty() {
        true => Err(bad("holds no tasks".to_owned())),
        false => Ok((format, tasks)),
    }
}

fn format_of(text: &str) -> Format {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let csv = |line: &str| line.ends_with(",1") || line.ends_with(",2");
    match text.trim_start().starts_with('{') {
        true => Format::Jsonl,
        false if lines.clone().next().is_some() && lines.all(csv) => Format::Winogrande,
        false => Format::Hellaswag,
    }
}

fn jsonl(text: &str) -> Result<Vec<Task>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let line: Line =
                serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))?;
            let n = line.choices.len();
            if line.answer >= n {
                let answer = line.answer;
                return Err(format!("line {}: answer {answer} of {n}, counted from 0", i + 1));
            }
            Ok(Task {
                domain: line.domain,
                context: line.context,
                right: (0..n).map(|choice| choice == line.answer).collect(),
                choices: line.choices,
                rest: None,
            })
        })
        .collect()
}

fn hellaswag(text: &str) -> Result<Vec<Task>, String> {
    let lines: Vec<&str> = text.lines().collect();
    let (tasks, rest) = lines.as_chunks::<6>();
    if !rest.is_empty() {
        return Err(format!(
            "{} lines, where HellaSwag tasks have six each; other forms are JSON lines, Winogrande's \
             and llama-perplexity's for --multiple-choice",
            lines.len()
        ));
    }
    let task = |(i, [context, answer, choices @ ..]): (usize, &[&str; 6])| {
        let answer: usize =
            answer.trim().parse().ok().filter(|&answer| answer < 4).ok_or_else(|| {
                format!("line {}: `{answer}` is no answer from 0 to 3", 6 * i + 2)
            })?;
        Ok(Task {
            domain: None,
            context: (*context).to_owned(),
            choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
            rest: None,
            right: (0..4).map(|choice| choice == answer).collect(),
        })
    };
    tasks.iter().enumerate().map(task).collect()
}

/// `load_winogrande_from_csv` in `perplexity.cpp`.
fn winogrande(text: &str) -> Result<Vec<Task>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let bad =
                || format!("line {}: not `number,sentence with a _,choice,choice,answer`", i + 1);
            let mut quoted = false;
            let commas = line.char_indices().filter(|&(_, c)| {
                quoted ^= c == '"';
                c == ',' && !quoted
            });
            let commas: Vec<usize> = commas.take(4).map(|(at, _)| at).collect();
            let &[a, b, c, d] = commas.as_slice() else { return Err(bad()) };
            let sentence = line[a + 1..b].trim_matches('"');
            let (context, rest) = sentence.split_once('_').ok_or_else(bad)?;
            let answer = line[d + 1..].trim();
            let right = match answer {
                "1" => vec![true, false],
                "2" => vec![false, true],
                _ => return Err(bad()),
            };
            Ok(Task {
                domain: None,
                context: context.to_owned(),
                choices: vec![line[b + 1..c].to_owned(), line[c + 1..d].to_owned()],
                rest: Some(rest.to_owned()),
                right,
            })
        })
        .collect()
}

/// `multiple_choice_task::deserialize` in `perplexity.cpp`: the number of tasks, where each begins, and the
/// tasks, each with two lists of answers, of which the first has one right answer.
fn multiple_choice(bytes: &[u8]) -> Option<Vec<Task>> {
    let mut rest = bytes;
    let n = word(&mut rest)? as usize;
    rest = rest.get(n.checked_mul(4)?..)?;
    // A damaged number may be anything: there is no more than the file holds.
    let mut tasks = Vec::new();
    for _ in 0..n {
        let context = string(&mut rest)?;
        let (choices, labels) = answers(&mut rest)?;
        answers(&mut rest)?;
        let right = labels.iter().map(|&label| label == 1).collect();
        tasks.push(Task { domain: None, context, choices, rest: None, right });
    }
    Some(tasks)
}

fn word(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

fn string(rest: &mut &[u8]) -> Option<String> {
    let n = word(rest)? as usize;
    let (bytes, after) = rest.split_at_checked(n)?;
    *rest = after;
    String::from_utf8(bytes.to_vec()).ok()
}

fn answers(rest: &mut &[u8]) -> Option<(Vec<String>, Vec<u32>)> {
    let n = word(rest).filter(|&n| n <= MOST_CHOICES)?;
    let texts = (0..n).map(|_| string(rest)).collect::<Option<_>>()?;
    let labels = (0..n).map(|_| word(rest)).collect::<Option<_>>()?;
    Some((texts, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<(Format, Vec<Task>), MeasureError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    #[test]
    fn every_format_is_known_by_its_content() {
        let task = |context: &str, choices: &[&str], right: usize| Task {
            domain: None,
            context: context.to_owned(),
            choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
            rest: None,
            right: (0..choices.len()).map(|choice| choice == right).collect(),
        };
        let lines = "{\"question\": \"Q\", \"choices\": [\"a\", \"b\"], \"label\": 1}\n\n";
        assert_eq!(of(lines.as_bytes()).unwrap(), (Format::Jsonl, vec![task("Q", &["a", "b"], 1)]));
        let found = of(b"Cooking: A man\n2\nw\nx\ny\nz\n").unwrap();
        let expected = task("Cooking: A man", &["w", "x", "y", "z"], 2);
        assert_eq!(found, (Format::Hellaswag, vec![expected]));
        let found = of(b"0,Sarah and _ met.,Ann,Eve,2\n1,\"Now, _ left.\",Tom,Tim,1\n").unwrap();
        let rest = |text: &str| Some(text.to_owned());
        let first = Task { rest: rest(" met."), ..task("Sarah and ", &["Ann", "Eve"], 1) };
        let second = Task { rest: rest(" left."), ..task("Now, ", &["Tom", "Tim"], 0) };
        assert_eq!(found, (Format::Winogrande, vec![first, second]));
        let mut bytes = [1u32, 8].map(u32::to_le_bytes).concat();
        let text = |text: &str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        bytes.extend(text("Q"));
        bytes.extend([&2u32.to_le_bytes()[..], &text("a"), &text("bc")].concat());
        bytes.extend([0u32, 1, 0].map(u32::to_le_bytes).concat());
        let expected = (Format::MultipleChoice, vec![task("Q", &["a", "bc"], 1)]);
        assert_eq!(of(&bytes).unwrap(), expected);
        for n in 0..bytes.len() {
            assert!(of(&bytes[..n]).is_err(), "{n} bytes");
        }
        bytes[..4].fill(255);
        assert!(of(&bytes).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let says = |text: &str, expected: &str| {
            let error = of(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        says("{\"context\": \"Q\", \"choices\": [\"a\", \"b\"], \"answer\": 2}", "answer 2 of 2");
        says("{\"context\": \"Q\", \"choices\": [\"a\"], \"answer\": 0}", "fewer than two");
        says("{\"context\": \"Q\"}", "line 1: missing field");
        says("a\nb\n", "2 lines");
        says("a\n9\nb\nc\nd\ne\n", "line 2: `9`");
        says("0,no gap,a,b,1\n", "line 1");
        says("", "no tasks");
    }
}
