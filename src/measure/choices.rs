//! Multiple choice: which of given answers a model finds most probable.

use super::chunks::fingerprint;
use super::job::of_run;
use super::order::spread;
use super::part::{Head, Measured};
use super::tasks::{self, Format, Task};
use super::text::tokenizer;
use super::{Estimate, MeasureError, Options, Part, Subject};
use crate::eval::{Asked, Sequences, continuations, mean, memory_of, trial, trial_of_scores};
use crate::io::IoError;
use crate::monitor::Monitor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

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

/// Tasks of a file.
#[derive(Clone, Copy, Debug)]
pub struct Tasks<'a> {
    /// The file.
    pub file: &'a Path,
    /// How many of them, from all over it; all without.
    pub most: Option<usize>,
}

/// The tasks of a share, or all.
struct Own {
    format: Format,
    /// Of all shares.
    all: usize,
    /// Those of shares before.
    first: usize,
    tasks: Vec<Task>,
}

impl Tasks<'_> {
    fn own(self, options: &Options) -> Result<Own, MeasureError> {
        options.check()?;
        let (format, mut tasks) = tasks::read(self.file)?;
        if let Some(most) = self.most.filter(|&most| most < tasks.len()) {
            let mut chosen = spread(tasks.len(), options.seed)[..most].to_vec();
            chosen.sort_unstable();
            tasks = chosen.into_iter().map(|i| tasks[i].clone()).collect();
        }
        let all = tasks.len();
        let own = options.share.map_or(0..all, |share| share.of(all));
        Ok(Own { format, all, first: own.start, tasks: tasks[own].to_vec() })
    }
}

/// Has models answer tasks, by llama-perplexity's rules: an answer is as good as the mean log-probability of its
/// tokens, from the first on in which answers differ.
///
/// The monitor counts tokens times layers.
///
/// # Errors
/// A file of another kind, a vocabulary or a forward pass that a model does not allow, too little memory.
pub fn choices(
    subjects: &[Subject],
    tasks: Tasks,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Choices, MeasureError> {
    let own = tasks.own(options)?;
    Ok(Answered::find(subjects, tasks.file, &own, options, monitor)?.choices())
}

/// The same, or the share that options ask for, unless `done` says of it, with nothing found yet, that it is not needed.
///
/// # Errors
/// As [`choices`].
pub fn choices_unless(
    subjects: &[Subject],
    tasks: Tasks,
    options: &Options,
    done: impl FnOnce(&Part) -> bool,
    monitor: &dyn Monitor,
) -> Result<Part, MeasureError> {
    let own = tasks.own(options)?;
    let reference = subjects.first().map_or_else(PathBuf::new, |subject| subject.path.to_owned());
    let mut head = Head::of_tasks(tasks.file, own.all, reference, options);
    head.identity = of_run(head.kind.name().to_owned(), options);
    let bytes = std::fs::read(tasks.file).map_err(|error| IoError::new(tasks.file, error))?;
    head.identity.push(("number of tasks".to_owned(), format!("{} by {}", own.all, options.seed)));
    head.identity.push(("file of tasks".to_owned(), format!("{:032x}", xxh3_128(&bytes))));
    for (i, &subject) in subjects.iter().enumerate() {
        head.identity.push((format!("model {}", i + 1), fingerprint(subject)?));
    }
    let measured = Measured::Answers(Answered::nothing(tasks.file, &own));
    let mut part = Part { head, measured, stopped: false };
    if !done(&part) {
        let found = Answered::find(subjects, tasks.file, &own, options, monitor)?;
        part.measured = Measured::Answers(found);
    }
    Ok(part)
}

/// What it will take that models answer tasks, or the share of them that options ask for, from a short trial.
///
/// # Errors
/// As [`choices`].
pub fn estimate_choices(
    subjects: &[Subject],
    tasks: Tasks,
    options: &Options,
) -> Result<Estimate, MeasureError> {
    let own = tasks.own(options)?;
    let (mut tokens, mut seconds, mut read_bytes, mut memory_bytes) = (0, 0.0, 0, 0);
    for &subject in subjects {
        let Questions { sequences, .. } = Questions::new(subject, tasks.file, &own.tasks, options)?;
        let runner = subject.runner(options)?;
        let failed = |error| MeasureError::of(subject.path, error);
        tokens = tokens.max(sequences.n_tokens());
        for (ctx, together) in sequences.rooms() {
            let n = ctx * together.len();
            let options = Options { chunks: None, ctx, ..options.clone() };
            let settings = options.settings(&[subject], n, None)?;
            let mut chunk = vec![0; ctx];
            let first = &sequences.tokens[together[0]];
            chunk[..first.len()].copy_from_slice(first);
            let of_room = || trial(&runner, &chunk, n, &settings, false, false);
            seconds += options.on_threads(of_room)?.map_err(failed)?;
            let memory = options.on_threads(|| memory_of(&[&runner], n, &settings))?;
            memory_bytes = memory_bytes.max(memory);
            read_bytes += subject.size().0;
        }
        let asked = sequences.asked.len();
        let scores = options.on_threads(|| trial_of_scores(&runner, &[0], asked))?;
        seconds += scores.map_err(failed)?;
    }
    let threads = options.on_threads(rayon::current_num_threads)?;
    Ok(Estimate::of(subjects, options, (tokens, seconds, threads), (read_bytes, memory_bytes)))
}

/// Tasks as models have answered them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answered {
    file: PathBuf,
    format: Format,
    models: Vec<PathBuf>,
    tasks: Vec<OfTask>,
}

/// What is right of a task, and how improbable a token of each answer is to each model: the mean over its tokens, in
/// nats.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OfTask {
    /// Which of all shares' tasks it is.
    number: usize,
    domain: Option<String>,
    right: Vec<bool>,
    nll: Vec<Vec<f64>>,
}

impl Answered {
    fn find(
        subjects: &[Subject],
        file: &Path,
        own: &Own,
        options: &Options,
        monitor: &dyn Monitor,
    ) -> Result<Self, MeasureError> {
        let mut found = Self::nothing(file, own);
        let questions = |subject: &Subject| Questions::new(*subject, file, &own.tasks, options);
        let asked = subjects.iter().map(questions).collect::<Result<Vec<_>, _>>()?;
        let work = subjects.iter().zip(&asked).map(|(subject, questions)| {
            let layers = u64::from(subject.model.hparams().n_layer) + 1;
            questions.sequences.n_tokens() as u64 * layers
        });
        monitor.expect(work.sum());
        for (subject, questions) in subjects.iter().zip(&asked) {
            let nll = questions.ask(*subject, options, monitor)?;
            found.tasks.iter_mut().zip(nll).for_each(|(task, nll)| task.nll.push(nll));
            found.models.push(subject.path.to_owned());
        }
        Ok(found)
    }

    /// Tasks that nobody has answered yet.
    fn nothing(file: &Path, own: &Own) -> Self {
        let of = |(i, task): (usize, &Task)| OfTask {
            number: own.first + i,
            domain: task.domain.clone(),
            right: task.right.clone(),
            nll: Vec::new(),
        };
        let tasks = own.tasks.iter().enumerate().map(of).collect();
        Self { file: file.to_owned(), format: own.format, models: Vec::new(), tasks }
    }

    /// Whether a file that somebody may have changed holds the answers to so many tasks.
    pub fn is_sound(&self, tasks: usize) -> bool {
        let answered = |task: &OfTask| {
            let answers = |nll: &Vec<f64>| !nll.is_empty() && nll.len() == task.right.len();
            task.nll.len() == self.models.len() && task.nll.iter().all(answers)
        };
        self.tasks.len() == tasks && self.tasks.iter().all(answered)
    }

    /// Adds the tasks of another share.
    pub fn add(&mut self, other: Self) {
        self.tasks.extend(other.tasks);
        self.tasks.sort_by_key(|task| task.number);
    }

    /// What follows.
    pub fn choices(&self) -> Choices {
        let mut models: Vec<Answers> = Vec::new();
        for (i, path) in self.models.iter().enumerate() {
            let first = models.first().map(|first| first.answers.as_slice());
            models.push(Answers::new(path, &self.tasks, i, first));
        }
        Choices { file: self.file.clone(), format: self.format, tasks: self.tasks.len(), models }
    }
}

impl Answers {
    /// Those of a model, by its number.
    fn new(path: &Path, tasks: &[OfTask], model: usize, first: Option<&[usize]>) -> Self {
        let answers: Vec<usize> = tasks.iter().map(|task| least(&task.nll[model])).collect();
        let pairs = tasks.iter().zip(&answers);
        let right: Vec<bool> = pairs.map(|(task, &answer)| task.right[answer]).collect();
        let mut domains: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for (task, &right) in tasks.iter().zip(&right) {
            if let Some(domain) = &task.domain {
                domains.entry(domain.clone()).or_default().push(right);
            }
        }
        let of_right = tasks.iter().filter_map(|task| {
            let right = task.right.iter().zip(&task.nll[model]).filter(|(right, _)| **right);
            right.map(|(_, nll)| *nll).reduce(f64::min)
        });
        let (nll, nll_error) = mean(&of_right.collect::<Vec<_>>());
        let Share { accuracy, error, .. } = Share::of(&right);
        let same = first.unwrap_or(&answers).iter().zip(&answers).filter(|(a, b)| a == b).count();
        Self {
            model: path.to_owned(),
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
