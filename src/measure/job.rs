//! What is measured, chunks upon chunks: all of them, a machine's share, or as many as it takes.

use super::chunks::{Chunks, fingerprint, fingerprint_of_file};
use super::deadline::Deadline;
use super::order::spread;
use super::part::{Compared, Head, Kind, Measured, Stored};
use super::text::heed;
use super::values::{OfModel, Values};
use super::{
    Against, Beside, Extras, Inputs, MeasureError, Options, Part, Subject, Terms, Text, gate,
};
use crate::convert::Shard;
use crate::eval::{
    self, BaseReader, BaseWriter, Collector, EvalError, Model, Observer, PerplexityOptions,
    Reference, TensorErrors, collect, comparison_work, looks,
};
use crate::io::{LocalDisk, memory};
use crate::monitor::Monitor;
use crate::source::TensorMeta;
use crate::warning::{Topic, Warning};
use ndarray::ArrayView2;
use std::path::Path;
use std::time::Instant;

/// A measurement.
#[derive(Clone, Copy)]
pub enum Job<'a> {
    /// How well a model predicts texts.
    Perplexity(Subject<'a>),
    /// How far models are from a reference.
    Compare {
        /// The reference.
        reference: Against<'a>,
        /// The models.
        candidates: &'a [Subject<'a>],
        /// What is given beside the result.
        extras: Extras<'a>,
    },
    /// Whether models keep within limits.
    Gate {
        /// The reference.
        reference: Against<'a>,
        /// The models.
        candidates: &'a [Subject<'a>],
        /// What is given beside the verdict.
        extras: Extras<'a>,
        /// The limits.
        terms: Terms,
    },
    /// Sums of squares of a model's inputs.
    Importances {
        /// The model.
        subject: Subject<'a>,
        /// Whose are wanted beside those of the layers.
        beside: Beside,
    },
}

/// The output matrix, where it is not the token embedding.
const OUTPUT: &str = "output.weight";

/// Chunks that are taken first, where an error decides how many are enough.
const FIRST: usize = 8;

impl<'a> Job<'a> {
    /// The models that run, the reference first.
    pub fn subjects(&self) -> Vec<Subject<'a>> {
        match *self {
            Self::Perplexity(subject) | Self::Importances { subject, .. } => vec![subject],
            Self::Compare { reference, candidates, .. }
            | Self::Gate { reference, candidates, .. } => match reference {
                Against::Model(reference) => [&[reference], candidates].concat(),
                Against::Base(_) => candidates.to_vec(),
            },
        }
    }

    fn base(&self) -> Option<&'a Path> {
        match *self {
            Self::Compare { reference: Against::Base(path), .. }
            | Self::Gate { reference: Against::Base(path), .. } => Some(path),
            _ => None,
        }
    }

    pub(super) fn extras(&self) -> Extras<'a> {
        match *self {
            Self::Compare { extras, .. } | Self::Gate { extras, .. } => extras,
            _ => Extras::default(),
        }
    }

    fn kind(&self) -> Kind {
        match *self {
            Self::Perplexity(_) => Kind::Perplexity,
            Self::Compare { .. } => Kind::Compare,
            Self::Gate { terms, .. } => Kind::Gate(terms),
            Self::Importances { .. } => Kind::Imatrix,
        }
    }

    /// Chunks that a text must have.
    fn least(&self) -> usize {
        match self {
            Self::Importances { .. } => 1,
            _ => 2,
        }
    }

    /// What belongs to the values, before there are any.
    fn head(&self, chunks: &Chunks, options: &Options) -> Result<Head, MeasureError> {
        let subjects = self.subjects();
        let compared = match self {
            Self::Perplexity(_) | Self::Importances { .. } => &[],
            _ => &subjects[usize::from(self.base().is_none())..],
        };
        let reference = self.base().unwrap_or_else(|| subjects[0].path).to_owned();
        let by_tensor = self.extras().by_tensor;
        let of = |subject: &Subject| Compared {
            path: subject.path.to_owned(),
            bits_per_weight: subject.bits_per_weight(),
            bytes: subject.size().0,
            stored: if by_tensor { stored(*subject) } else { Vec::new() },
        };
        let mut head = Head::new(self.kind(), reference, chunks, options);
        (head.models, head.by_tensor) = (compared.iter().map(of).collect(), by_tensor);
        if options.share.is_some() {
            head.identity = self.identity(chunks, options, &head)?;
        }
        Ok(head)
    }

    /// What shares of the same measurement have in common.
    fn identity(
        &self,
        chunks: &Chunks,
        options: &Options,
        head: &Head,
    ) -> Result<Vec<(String, String)>, MeasureError> {
        let with = match self {
            Self::Importances { beside, .. } => match (beside.output, beside.prediction) {
                (false, false) => "",
                (true, false) => " with the output matrix",
                (false, true) => " with the prediction layer",
                (true, true) => " with the output matrix and the prediction layer",
            },
            _ if head.by_tensor => " with tensors",
            _ => "",
        };
        let mut identity = common(format!("{}{with}", self.kind().name()), chunks, options);
        let mut is = |what: &str, value: String| identity.push((what.to_owned(), value));
        if let Kind::Gate(Terms { limits, confidence }) = self.kind() {
            is("limits", format!("{limits:?} at {confidence}, seed {}", options.seed));
        }
        is("text", chunks.fingerprint());
        if let Some(base) = self.base() {
            is("base", fingerprint_of_file(base)?);
        }
        for (i, subject) in (1..).zip(self.subjects()) {
            is(&format!("model {i}"), fingerprint(subject)?);
        }
        Ok(identity)
    }
}

/// What shares of the same measurement have in common, whatever is measured.
pub(super) fn common(
    measurement: String,
    chunks: &Chunks,
    options: &Options,
) -> Vec<(String, String)> {
    let counts = [("tokens per chunk", chunks.ctx), ("number of chunks", chunks.len())];
    let counts = counts.map(|(what, n)| (what.to_owned(), n.to_string()));
    of_run(measurement, options).into_iter().chain(counts).collect()
}

/// What measurements of any kind have in common.
pub(super) fn of_run(measurement: String, options: &Options) -> Vec<(String, String)> {
    let common = [
        ("measurement", measurement),
        ("program", format!("requant {}", env!("CARGO_PKG_VERSION"))),
        ("number of shares", options.share.map_or(1, Shard::count).to_string()),
        ("activations", format!("{:?}", options.activations).to_lowercase()),
        ("instructions", options.simd.name().to_owned()),
    ];
    common.map(|(what, value)| (what.to_owned(), value)).to_vec()
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Compare => "comparison",
            Self::Gate(_) => "gate",
            Self::Imatrix => "importances",
            Self::Sensitivities => "sensitivities",
            Self::Choices => "answers",
        }
    }
}

/// Measures all chunks of texts, or the share that options ask for.
///
/// The monitor counts tokens times layers, as if all chunks were needed.
///
/// # Errors
/// A vocabulary or a forward pass that a model does not allow, a text too short, too little memory,
/// weights that cannot be read, results that are not finite.
pub fn measure(
    job: Job,
    texts: &[Text],
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Part, MeasureError> {
    Ok(measure_unless(job, texts, options, |_| false, monitor)?.1)
}

/// As [`measure`], unless `done` finds that the part, in which there is nothing yet but what it is of, has been
/// measured before. Says whether that is so.
///
/// # Errors
/// As [`measure`].
pub fn measure_unless(
    job: Job,
    texts: &[Text],
    options: &Options,
    done: impl FnOnce(&Part) -> bool,
    monitor: &dyn Monitor,
) -> Result<(bool, Part), MeasureError> {
    let deadline = Deadline::new(monitor, options.time_limit);
    let mut chosen = Chosen::new(&job, texts, options, monitor)?;
    let mut head = job.head(&chosen.chunks, &chosen.options)?;
    if head.share.is_some() {
        head.inputs = Some(Inputs::of(texts, &job.subjects())?);
    }
    let measured = Measured::Values(Values::none(head.models.len()));
    let mut part = Part { head, measured, stopped: false };
    if done(&part) {
        return Ok((true, part));
    }
    match job {
        Job::Importances { subject, beside } => {
            part.measured = squares(subject, beside, &chosen, monitor)?;
        }
        _ => {
            let base = chosen.base.take();
            let pass = Pass { job, chosen: &chosen };
            let (values, stopped) = pass.values(&part.head, base, &deadline)?;
            (part.measured, part.stopped) = (Measured::Values(values), stopped);
        }
    }
    Ok((false, part))
}

/// Texts that were read, and what of them is this machine's.
pub(super) struct Chosen {
    pub chunks: Chunks,
    pub own: Vec<usize>,
    base: Option<BaseReader>,
    /// Options that say nothing any more about how much of a text is taken.
    pub options: Options,
    pub settings: PerplexityOptions,
}

impl Chosen {
    pub fn new(
        job: &Job,
        texts: &[Text],
        options: &Options,
        monitor: &dyn Monitor,
    ) -> Result<Self, MeasureError> {
        options.check()?;
        let subjects = job.subjects();
        if !matches!(job, Job::Importances { .. }) {
            for (text, &subject) in texts.iter().flat_map(|t| subjects.iter().map(move |s| (t, s)))
            {
                text.heed_calibration(subject, monitor)?;
            }
        }
        let base = job.base().map(BaseReader::open).transpose()?;
        let chunks = match (&base, subjects.first()) {
            (None, Some(&first)) => options
                .on_threads(|| Chunks::of_texts(texts, first, options, job.least(), monitor))??,
            (Some(base), first) => Chunks::of_base(base, first.copied(), options, monitor)?,
            (None, None) => return Err(EvalError::NothingToScore.into()),
        };
        let own: Vec<usize> = chunks.share(options.share).collect();
        let options = Options { ctx: chunks.ctx, chunks: None, ..options.clone() };
        let settings = options.settings(&subjects, own.len() * chunks.ctx, chunks.bos)?;
        Ok(Self { chunks, own, base, options, settings })
    }
}

/// How a model stores its tensors.
fn stored(subject: Subject) -> Vec<Stored> {
    let of = |tensor: &TensorMeta| Stored {
        name: tensor.name.clone(),
        ty: tensor.dtype.to_string(),
        weights: tensor.n_elements(),
        bytes: tensor.n_bytes(),
    };
    subject.model.source().tensors().iter().map(of).collect()
}

/// Sums of squares over some chunks.
fn squares(
    subject: Subject,
    beside: Beside,
    chosen: &Chosen,
    monitor: &dyn Monitor,
) -> Result<Measured, MeasureError> {
    let Chosen { chunks, own, options, settings, .. } = chosen;
    let source = subject.model.source();
    let output = match beside.output {
        true => source.find(OUTPUT),
        false => None,
    };
    if beside.output && output.is_none() {
        let what = format!(
            "{} has no {OUTPUT}, so that nothing is collected of it",
            subject.path.display()
        );
        heed(&[Warning::new(Topic::Imatrix, what)], monitor)?;
    }
    let collector = Collector::new(source);
    let mut runner = subject.runner(options)?;
    runner.keep_compressed();
    runner.observe(&collector);
    let tokens = chunks.tokens(own);
    monitor.expect(settings.work(tokens.len(), subject.model.hparams()));
    if !own.is_empty() {
        options
            .on_threads(|| {
                let prediction = beside.prediction;
                collect(&runner, &collector, output, prediction, &tokens, settings, monitor)
            })?
            .map_err(|error| MeasureError::of(subject.path, chunks.placed(error, own)))?;
    }
    Ok(Measured::Squares(collector.finish()))
}

/// Models on their way through chunks.
struct Pass<'p> {
    job: Job<'p>,
    chosen: &'p Chosen,
}

/// What runs, and where values go beside the result.
struct Runners<'a> {
    own: Option<Model<'a>>,
    others: Vec<Model<'a>>,
    base: Option<BaseReader>,
    save: Option<BaseWriter<'static>>,
}

impl Pass<'_> {
    /// Values of the chunks that are this machine's, or of as many as it takes; and whether it was stopped
    /// before.
    fn values(
        &self,
        head: &Head,
        base: Option<BaseReader>,
        monitor: &Deadline,
    ) -> Result<(Values, bool), MeasureError> {
        let Chosen { chunks, own, options, settings, .. } = self.chosen;
        let subjects = self.job.subjects();
        let extras = self.job.extras();
        let (reference, candidates) = match self.job.base() {
            None => (Some(subjects[0]), &subjects[1..]),
            Some(_) => (None, &subjects[..]),
        };
        let errors = Together(match reference {
            Some(reference) if extras.by_tensor => {
                candidates.iter().map(|other| self.errors(reference, *other)).collect()
            }
            _ => Vec::new(),
        });
        let mut own_runner = reference.map(|subject| subject.runner(options)).transpose()?;
        if let Some(runner) = own_runner.as_mut().filter(|_| extras.by_tensor) {
            runner.keep_compressed();
            runner.observe(&errors);
        }
        let others = candidates.iter().map(|subject| subject.runner(options));
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let save = match (extras.save_base, reference) {
            (Some(path), Some(_)) if options.takes_some() => {
                return Err(MeasureError::Sampled(path.to_owned()));
            }
            (Some(path), Some(reference)) => {
                let (used, ctx) = (chunks.tokens(own), chunks.ctx as u32);
                let n_vocab = reference.model.hparams().n_vocab;
                Some(BaseWriter::create(&LocalDisk, path, ctx, n_vocab, &used)?)
            }
            _ => None,
        };
        let together: Vec<&Model> = own_runner.iter().chain(&others).collect();
        let n_tokens = own.len() * chunks.ctx;
        monitor.expect(comparison_work(&together, n_tokens, settings));
        let mut runners = Runners { own: own_runner, others, base, save };
        let (mut values, stopped) = self.looks(head, &mut runners, monitor)?;
        runners.save.map(BaseWriter::finish).transpose()?;
        for (model, errors) in values.models.iter_mut().zip(&errors.0) {
            model.tensors = errors.sums();
        }
        Ok((values, stopped))
    }

    fn errors<'e>(&self, reference: Subject, other: Subject<'e>) -> TensorErrors<'e> {
        let (reference, other) = (reference.model.source(), other.model.source());
        let Options { simd, activations, .. } = self.chosen.options;
        TensorErrors::new(reference, other, simd, activations)
    }

    /// Takes chunks until there are enough, or work is asked to end; says whether that was so.
    fn looks(
        &self,
        head: &Head,
        runners: &mut Runners,
        monitor: &Deadline,
    ) -> Result<(Values, bool), MeasureError> {
        let own = &self.chosen.own;
        let mut values = Values::none(head.models.len());
        let gate = match head.kind {
            Kind::Gate(terms) if head.share.is_none() => Some(terms),
            _ => None,
        };
        let order = match gate.is_some() || self.chosen.options.takes_some() {
            true => spread(own.len(), head.seed),
            false => own.clone(),
        };
        let (mut last, doubles) = (None, self.may_double(runners));
        while values.chunks.len() < order.len() {
            let done = values.chunks.len();
            let next = match (gate, head.until_error) {
                (Some(_), _) => looks(order.len()).into_iter().find(|&look| look > done),
                (None, Some(wanted)) => Some(enough(done, values.relative_error(), wanted)),
                (None, None) if doubles => Some((2 * done).max(FIRST)),
                (None, None) => None,
            };
            let mut next = next.unwrap_or(order.len()).min(order.len());
            if gate.is_none() {
                next = next.min(done.saturating_add(monitor.fitting(last)));
            }
            if next == done {
                return Ok((values, true));
            }
            let began = Instant::now();
            match self.pass(&order[done..next], runners, monitor) {
                Ok(found) => values.add(found),
                // A gate says also of no chunk what is known.
                Err(error) if error.is_cancelled() && (done > 0 || gate.is_some()) => {
                    return Ok((values, true));
                }
                Err(error) if error.is_cancelled() && monitor.is_over() => {
                    return Err(MeasureError::NoTime);
                }
                Err(error) => return Err(error),
            }
            last = Some((next - done, began.elapsed()));
            let decided = match gate {
                Some(terms) => gate::are_decided(&gate::judge(&values, head, terms)?),
                None => false,
            };
            let small = |wanted| values.chunks.len() >= FIRST && values.relative_error() <= wanted;
            if decided || head.until_error.is_some_and(small) {
                break;
            }
        }
        Ok((values, false))
    }

    /// Whether passes of ever twice as many chunks cost hardly more than one, since the models' weights stay in
    /// memory: then half of the chunks at least have values when the work is asked to end. Where states are kept
    /// in a file, or log-probabilities, all chunks pass at once.
    fn may_double(&self, runners: &Runners) -> bool {
        let bytes = self.job.subjects().iter().map(|subject| subject.size().0).sum::<u64>();
        let in_memory = memory().usable().is_some_and(|all| bytes <= all / 2);
        in_memory && self.chosen.options.scratch.is_none() && runners.save.is_none()
    }

    /// Passes some chunks through all models.
    fn pass(
        &self,
        chunks: &[usize],
        runners: &mut Runners,
        monitor: &dyn Monitor,
    ) -> Result<Values, MeasureError> {
        let Chosen { chunks: all, options, settings, .. } = self.chosen;
        let tokens = all.tokens(chunks);
        let others: Vec<&Model> = runners.others.iter().collect();
        let alone = matches!(self.job, Job::Perplexity(_));
        let found = options.on_threads(|| match (&runners.own, runners.base.as_mut()) {
            (Some(own), None) if alone => {
                Ok((eval::perplexity(own, &tokens, settings, monitor)?, Vec::new()))
            }
            (Some(own), None) => {
                let (own, save) = (Reference::Model(own), runners.save.as_mut());
                eval::compare(own, &others, &tokens, settings, save, monitor)
            }
            (_, Some(base)) => {
                base.choose(chunks);
                eval::compare(Reference::Base(base), &others, &tokens, settings, None, monitor)
            }
            (None, None) => Err(EvalError::NothingToScore),
        })?;
        let paths = self.job.base().into_iter();
        let paths = paths.chain(self.job.subjects().into_iter().map(|subject| subject.path));
        let (own, comparisons) = found.map_err(|error| match alone {
            true => MeasureError::of(self.job.subjects()[0].path, all.placed(error, chunks)),
            false => MeasureError::of_several(all.placed(error, chunks), paths),
        })?;
        let models = comparisons.into_iter().map(|comparison| OfModel {
            tokens: comparison.tokens,
            layers: comparison.layers,
            tensors: Vec::new(),
        });
        Ok(Values { chunks: chunks.to_vec(), nll: own.nll, models: models.collect() })
    }
}

/// Chunks that will probably be enough, with an error after so many: it falls with their root.
fn enough(done: usize, error: f64, wanted: f64) -> usize {
    /// Above what is expected, since errors are not known exactly.
    const MARGIN: f64 = 1.1;
    if done == 0 {
        return FIRST;
    }
    let times = (error / wanted).powi(2) * MARGIN;
    // An error that is known from few chunks is not trusted further.
    (done as f64 * times.min(4.0)).ceil().max(done as f64 + 1.0) as usize
}

/// Several observers as one.
struct Together<'a>(Vec<TensorErrors<'a>>);

impl Observer for Together<'_> {
    fn product(
        &self,
        tensor: usize,
        matrix: usize,
        x: ArrayView2<f32>,
        y: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        self.0.iter().try_for_each(|one| one.product(tensor, matrix, x, y))
    }

    fn embedded(
        &self,
        tensor: usize,
        tokens: &[u32],
        states: ArrayView2<f32>,
    ) -> Result<(), EvalError> {
        self.0.iter().try_for_each(|one| one.embedded(tensor, tokens, states))
    }

    fn seen(&self, layer: u32) -> Vec<u8> {
        self.0.iter().flat_map(|one| one.seen(layer)).collect()
    }

    /// All have the reference's tensors, so each takes as many bytes.
    fn take_up(&self, layer: u32, seen: &[u8]) -> Result<(), EvalError> {
        let parts = seen.chunks((seen.len() / self.0.len().max(1)).max(1));
        self.0.iter().zip(parts).try_for_each(|(one, seen)| one.take_up(layer, seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_chunks_are_taken_as_the_error_asks_for() {
        assert_eq!(enough(0, f64::INFINITY, 0.02), FIRST);
        assert_eq!(enough(8, f64::INFINITY, 0.02), 32);
        assert_eq!(enough(32, 0.03, 0.02), 80);
        assert_eq!(enough(32, 0.02, 0.02), 36);
    }
}
