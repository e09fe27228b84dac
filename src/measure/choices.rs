//! Multiple choice: which of given answers a model finds most probable.

use super::order::spread;
use super::tasks::{self, Format, Task};
use super::text::tokenizer;
use super::{MeasureError, Options, Subject};
use crate::eval::{Asked, Sequences, continuations, mean};
use crate::monitor::Monitor;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How models answer.
#[derive(Clone, Debug, Serialize)]
pub struct Choices {
    /// The file of tasks.
    pub file: PathBuf,
    /// How it is written.
    pub format: Format,
    /// Tasks that were asked.
    pub tasks: usize,
    /// The models, the reference first.
    pub models: Vec<Answers>,
}

/// How a model answers.
#[derive(Clone, Debug, Serialize)]
pub struct Answers {
    /// The model.
    pub model: PathBuf,
    /// Share of tasks that it answers right.
    pub accuracy: f64,
    /// Its standard error, tasks taken as independent.
    pub error: f64,
    /// Mean negative log-likelihood of a token of the right answers, in nats: the mean over tasks.
    pub nll: f64,
    /// Its standard error, tasks taken as independent.
    pub nll_error: f64,
    /// Share of tasks that it answers as the first model does.
    pub same_as_first: f64,
    /// The same in parts, where the file names them.
    pub domains: BTreeMap<String, Share>,
    /// What it answers, as numbers from 0.
    #[serde(skip)]
    pub answers: Vec<usize>,
}

/// A share of some tasks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Tasks.
    pub tasks: usize,
    /// Share of them that were answered right.
    pub accuracy: f64,
    /// Its standard error.
    pub error: f64,
}

impl Share {
    /// Of answers that are right or not.
    fn of(right: &[bool]) -> Self {
        let n = right.len() as f64;
        let accuracy = right.iter().filter(|&&right| right).count() as f64 / n;
        let error = (accuracy * (1.0 - accuracy) / (n - 1.0).max(1.0)).sqrt();
        Self { tasks: right.len(), accuracy, error }
    }
}

/// Has models answer the tasks of a file, or some of them from all over it, by llama-perplexity's rules: an
/// answer is as good as the mean log-probability of its tokens, from the first on in which answers differ.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// A file of another kind, a vocabulary or a forward pass that a model does not allow, too little memory.
pub fn choices(
    subjects: &[Subject],
    file: &Path,
    most: Option<usize>,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Choices, MeasureError> {
    options.check()?;
    let (format, mut tasks) = tasks::read(file)?;
    if let Some(most) = most.filter(|&most| most < tasks.len()) {
        let mut chosen = spread(tasks.len(), options.seed)[..most].to_vec();
        chosen.sort_unstable();
        tasks = chosen.into_iter().map(|i| tasks[i].clone()).collect();
    }
    let asked = subjects.iter().map(|subject| Questions::new(*subject, file, &tasks, options));
    let asked = asked.collect::<Result<Vec<_>, _>>()?;
    let work = subjects.iter().zip(&asked).map(|(subject, questions)| {
        let layers = u64::from(subject.model.hparams().n_layer) + 1;
        questions.sequences.n_tokens() as u64 * layers
    });
    monitor.expect(work.sum());
    let mut models: Vec<Answers> = Vec::new();
    for (subject, questions) in subjects.iter().zip(&asked) {
        let nll = questions.ask(*subject, options, monitor)?;
        let first = models.first().map(|first| first.answers.as_slice());
        models.push(Answers::new(subject.path, &tasks, &nll, first));
    }
    Ok(Choices { file: file.to_owned(), format, tasks: tasks.len(), models })
}

impl Answers {
    /// From how improbable a token of each answer of each task is.
    fn new(model: &Path, tasks: &[Task], nll: &[Vec<f64>], first: Option<&[usize]>) -> Self {
        let answers: Vec<usize> = nll.iter().map(|of_answers| least(of_answers)).collect();
        let pairs = tasks.iter().zip(&answers);
        let right: Vec<bool> = pairs.map(|(task, &answer)| task.right[answer]).collect();
        let mut domains: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for (task, &right) in tasks.iter().zip(&right) {
            if let Some(domain) = &task.domain {
                domains.entry(domain.clone()).or_default().push(right);
            }
        }
        let of_right = tasks.iter().zip(nll).filter_map(|(task, nll)| {
            let right = task.right.iter().zip(nll).filter(|(right, _)| **right);
            right.map(|(_, nll)| *nll).reduce(f64::min)
        });
        let (nll, nll_error) = mean(&of_right.collect::<Vec<_>>());
        let Share { accuracy, error, .. } = Share::of(&right);
        let same = first.unwrap_or(&answers).iter().zip(&answers).filter(|(a, b)| a == b).count();
        Self {
            model: model.to_owned(),
            accuracy,
            error,
            nll,
            nll_error,
            same_as_first: same as f64 / tasks.len() as f64,
            domains: domains.into_iter().map(|(name, right)| (name, Share::of(&right))).collect(),
            answers,
        }
    }
}

/// Tasks as a model reads them.
struct Questions {
    sequences: Sequences,
    /// Of each task and each of its answers, how many of what is asked decide on it, one after the other.
    decide: Vec<Vec<usize>>,
}

impl Questions {
    fn new(
        subject: Subject,
        file: &Path,
        tasks: &[Task],
        options: &Options,
    ) -> Result<Self, MeasureError> {
        let bad = |error| MeasureError::Tokenizer { path: subject.path.to_owned(), error };
        let tokenizer = tokenizer(subject.model, options.tokenizer_pre.as_deref()).map_err(bad)?;
        let encode = |text: String| tokenizer.encode(&text).map_err(bad);
        let mut all = Self { sequences: Sequences::default(), decide: Vec::new() };
        for (i, task) in tasks.iter().enumerate() {
            let whole = |choice: &String| match &task.rest {
                Some(rest) => encode(format!("{}{choice}{rest}", task.context)),
                None => encode(format!("{} {choice}", task.context)),
            };
            let tokens = task.choices.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
            let asked = match &task.rest {
                None => from_where_they_differ(&tokens),
                Some(_) => {
                    let base = |choice: &String| encode(format!("{}{choice}", task.context));
                    let bases = task.choices.iter().map(base).map(|tokens| Ok(tokens?.len()));
                    of_the_rest(&tokens, &bases.collect::<Result<Vec<_>, MeasureError>>()?)
                }
            };
            if asked.iter().any(Vec::is_empty) {
                let what = format!(
                    "task {}: an answer is how another one begins, or all are equal",
                    i + 1
                );
                return Err(MeasureError::Tasks { path: file.to_owned(), what });
            }
            let first = all.sequences.tokens.len();
            all.decide.push(asked.iter().map(Vec::len).collect());
            let asked = asked.into_iter().flatten();
            let asked = asked.map(|asked| Asked { sequence: first + asked.sequence, ..asked });
            all.sequences.asked.extend(asked);
            all.sequences.tokens.extend(tokens);
        }
        Ok(all)
    }

    /// How improbable a token of each answer of each task is to the model: the mean over its tokens.
    fn ask(
        &self,
        subject: Subject,
        options: &Options,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Vec<f64>>, MeasureError> {
        let options = Options { chunks: None, ctx: 1, ..options.clone() };
        let settings = options.settings(&[subject], self.sequences.n_tokens(), None)?;
        let runner = subject.runner(&options)?;
        let nll = options
            .on_threads(|| continuations(&runner, &self.sequences, &settings, monitor))?
            .map_err(|error| MeasureError::of(subject.path, error))?;
        let mut nll = nll.into_iter();
        let mut mean = |&n: &usize| nll.by_ref().take(n).sum::<f64>() / n as f64;
        Ok(self.decide.iter().map(|decide| decide.iter().map(&mut mean).collect()).collect())
    }
}

/// The first of the least.
fn least(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] < values[best] { i } else { best })
}

/// Tokens that all answers begin with.
fn common(tokens: &[Vec<u32>]) -> usize {
    let same = |place: &usize| {
        tokens.iter().all(|t| t.get(*place).is_some_and(|x| *x == tokens[0][*place]))
    };
    (0..tokens[0].len()).take_while(same).count()
}

/// All tokens of each answer that not all begin with (`multiple_choice_score`, `hellaswag_score`).
fn from_where_they_differ(tokens: &[Vec<u32>]) -> Vec<Vec<Asked>> {
    let first = common(tokens).max(1);
    let of = |(sequence, tokens): (usize, &Vec<u32>)| {
        (first..tokens.len()).map(|i| Asked { sequence, place: i - 1, token: tokens[i] }).collect()
    };
    tokens.iter().enumerate().map(of).collect()
}

/// The tokens after each of two choices but for the last, or, where few follow, from where they differ; then the
/// first token of the second choice is asked where llama-perplexity asks for it: after the whole first sentence
/// (`winogrande_score`).
fn of_the_rest(tokens: &[Vec<u32>], bases: &[usize]) -> Vec<Vec<Asked>> {
    /// Tokens after which the rest of a sentence decides.
    const FEW: usize = 3;
    let first = common(tokens).max(1);
    let skips = tokens.iter().all(|tokens| tokens.len() > first + FEW);
    let of = |(sequence, tokens_of): (usize, &Vec<u32>)| {
        let begin = if skips { bases[sequence].max(1) } else { first };
        let last = usize::from(tokens_of.len() > begin + 1);
        let asked = (begin..tokens_of.len().saturating_sub(last)).map(|i| {
            match sequence == 1 && i == first && !skips {
                true => Asked { sequence: 0, place: tokens[0].len() - 1, token: tokens_of[i] },
                false => Asked { sequence, place: i - 1, token: tokens_of[i] },
            }
        });
        asked.collect()
    };
    tokens.iter().enumerate().map(of).collect()
}
