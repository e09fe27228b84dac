//! Work that takes a while: it runs on another thread, while the interpreter is free, progress is told and
//! Ctrl-C is heeded.

use crate::{failed, named, told};
use pyo3::exceptions::{PyUserWarning, PyValueError};
use pyo3::prelude::*;
use requant::cli::place;
use requant::convert::{Importance, Outputs, Plan, RunOptions, Settings};
use requant::eval::Limits;
use requant::imatrix::Imatrix;
use requant::io::LocalDisk;
use requant::measure::{
    self, Against, Beside, Bounds, Extras, Options, Sensitivities, SoFar, Subject, Terms, Text,
    Types,
};
use requant::model::{CheckpointModel, Model, Mtp};
use requant::monitor::Monitor;
use requant::quant::QuantType;
use requant::recipe::{Recipe, RecipeError, Role, TensorType};
use requant::source::Source;
use requant::warning::Warning;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What the interpreter's thread sees of the work.
#[derive(Default)]
struct Watch {
    done: AtomicU64,
    all: AtomicU64,
    cancelled: AtomicBool,
    warnings: Mutex<Vec<Warning>>,
}

impl Monitor for Watch {
    fn expect(&self, amount: u64) {
        self.done.store(0, Relaxed);
        self.all.store(amount, Relaxed);
    }

    fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Relaxed);
    }

    fn warn(&self, warning: Warning) -> bool {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
        true
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }
}

/// Does work, and meanwhile tells `progress` how much is done and of how much, ten times a second.
fn watched<T: Send>(
    py: Python,
    progress: Option<Bound<PyAny>>,
    work: impl FnOnce(&Watch) -> PyResult<T> + Send,
) -> PyResult<T> {
    let watch = Watch::default();
    let ended = (Mutex::new(false), Condvar::new());
    let mut stopped = None;
    let result = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let result = work(&watch);
            *ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            ended.1.notify_all();
            result
        });
        let wait = || {
            let guard = ended.0.lock().unwrap_or_else(PoisonError::into_inner);
            let pause = Duration::from_millis(100);
            let waited = ended.1.wait_timeout_while(guard, pause, |ended| !*ended);
            *waited.unwrap_or_else(PoisonError::into_inner).0
        };
        loop {
            let ended = py.detach(wait) || worker.is_finished();
            let told = match &progress {
                Some(progress) if stopped.is_none() => {
                    progress.call1((watch.done.load(Relaxed), watch.all.load(Relaxed))).map(|_| ())
                }
                _ => Ok(()),
            };
            if let Err(error) = py.check_signals().and(told) {
                watch.cancelled.store(true, Relaxed);
                stopped.get_or_insert(error);
            }
            if ended {
                break;
            }
        }
        py.detach(|| worker.join())
    });
    for warning in watch.warnings.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let text = std::ffi::CString::new(warning.to_string().replace('\0', " "))?;
        PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 1)?;
    }
    match (stopped, result) {
        (Some(error), _) => Err(error),
        (None, Ok(result)) => result,
        (None, Err(panic)) => std::panic::resume_unwind(panic),
    }
}

fn recipe(ty: &str) -> PyResult<Arc<Recipe>> {
    let recipe = Recipe::named(ty).map_err(|error| match error {
        RecipeError::Unknown(error) => PyValueError::new_err(error.to_string()),
        error => failed(error),
    });
    recipe.map(Arc::new)
}

fn settings(ty: &str, imatrix: Option<&Path>, search: bool, threads: usize) -> PyResult<Settings> {
    let recipe = recipe(ty)?;
    let mut settings = Settings { recipe: recipe.clone(), ..Settings::new(recipe.file_type()) };
    if threads > 0 {
        settings.threads = threads;
    }
    settings.search = search;
    settings.importance = importance(imatrix)?;
    settings.options.imatrix = settings.importance.is_some();
    Ok(settings)
}

fn importance(imatrix: Option<&Path>) -> PyResult<Option<Importance>> {
    let Some(path) = imatrix else { return Ok(None) };
    let imatrix = Arc::new(Imatrix::open(path).map_err(failed)?);
    Ok(Some(Importance { imatrix, file: path.to_string_lossy().into_owned() }))
}

/// Opens a checkpoint or a GGUF file, and works with what settings make of it.
fn planned<T>(
    source: &Path,
    settings: &[Settings],
    work: impl FnOnce(Vec<Plan>, &dyn Source) -> PyResult<T>,
) -> PyResult<T> {
    match place::is_gguf(source) {
        true => {
            let file = place::gguf(source).map_err(|error| told(&*error))?;
            let plan = |settings| Plan::of_gguf(&file, settings).map_err(failed);
            work(settings.iter().map(plan).collect::<PyResult<_>>()?, &file)
        }
        false => {
            let folder = place::folder(source).map_err(|error| told(&*error))?;
            let model = CheckpointModel::open_in(folder, Mtp::Usual).map_err(failed)?;
            let plan = |settings| Plan::of_checkpoint(&model, settings).map_err(failed);
            work(settings.iter().map(plan).collect::<PyResult<_>>()?, &model)
        }
    }
}

/// Plans a file, and writes it where there is an output; the plan as JSON.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub fn convert(
    py: Python,
    source: PathBuf,
    output: Option<PathBuf>,
    ty: &str,
    imatrix: Option<PathBuf>,
    search: bool,
    force: bool,
    threads: usize,
    progress: Option<Bound<PyAny>>,
) -> PyResult<String> {
    let settings = settings(ty, imatrix.as_deref(), search, threads)?;
    watched(py, progress, move |watch| {
        planned(&source, &[settings], |plans, from| {
            let plan = &plans[0];
            if let Some(output) = &output {
                watch.expect(plan.n_weights());
                let options = RunOptions { force, ..RunOptions::default() };
                plan.run(from, output, options, watch).map_err(failed)?;
            }
            Ok(described(plan).to_string())
        })
    })
}

/// Writes a file for each type into a folder, in one pass; paths and plans as JSON.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub fn ladder(
    py: Python,
    source: PathBuf,
    folder: PathBuf,
    types: Vec<String>,
    imatrix: Option<PathBuf>,
    search: bool,
    force: bool,
    threads: usize,
    progress: Option<Bound<PyAny>>,
) -> PyResult<String> {
    let Some(first) = types.first() else {
        return Err(PyValueError::new_err("give at least one type"));
    };
    let first = settings(first, imatrix.as_deref(), search, threads)?;
    let of = |ty: &String| -> PyResult<Settings> {
        Ok(Settings { recipe: recipe(ty)?, ..first.clone() })
    };
    let all: Vec<Settings> = types.iter().map(of).collect::<PyResult<_>>()?;
    watched(py, progress, move |watch| {
        planned(&source, &all, |plans, from| {
            let outputs = Outputs::ladder(plans, &folder, &source);
            let ladder = outputs.to_write().map_err(failed)?;
            if !folder.is_dir() {
                std::fs::create_dir(&folder)?;
            }
            watch.expect(ladder.weights(None));
            let options = RunOptions { force, ..RunOptions::default() };
            ladder.run(from, options, watch).map_err(failed)?;
            let written = ladder.rungs().iter().map(
                |rung| serde_json::json!({ "path": rung.output, "plan": described(rung.plan) }),
            );
            Ok(serde_json::Value::from_iter(written).to_string())
        })
    })
}

fn described(plan: &Plan) -> serde_json::Value {
    let tensor = |(i, tensor): (usize, &requant::convert::PlannedTensor)| {
        serde_json::json!({
            "name": tensor.name, "type": tensor.ty.to_string(), "bytes": plan.n_bytes(i),
            "shape": tensor.dims.iter().rev().collect::<Vec<_>>(),
        })
    };
    serde_json::json!({
        "file_bytes": plan.file_size(),
        "bits_per_weight": plan.bits_per_weight(),
        "peak_memory": plan.peak_memory(),
        "tensors": plan.tensors().iter().enumerate().map(tensor).collect::<Vec<_>>(),
    })
}

/// Tokens per chunk, chunks at most, and threads.
type How = (usize, Option<usize>, usize);

fn options((ctx, chunks, threads): How) -> Options {
    Options { ctx, chunks, threads, ..Options::default() }
}

fn opened(path: &Path) -> PyResult<Model> {
    place::open(path).map_err(|error| told(&*error))
}

fn read(texts: &[PathBuf]) -> PyResult<Vec<Text>> {
    texts.iter().map(|path| Text::read(path).map_err(failed)).collect()
}

/// The perplexity of a model on a text, as JSON.
#[pyfunction]
pub fn perplexity(
    py: Python,
    model: PathBuf,
    texts: Vec<PathBuf>,
    how: How,
    progress: Option<Bound<PyAny>>,
) -> PyResult<String> {
    watched(py, progress, move |watch| {
        let (opened, texts) = (opened(&model)?, read(&texts)?);
        let subject = Subject { path: &model, model: &opened };
        let options = options(how);
        let found = measure::perplexity(subject, &texts, &options, watch).map_err(failed)?;
        Ok(serde_json::json!(found.own).to_string())
    })
}

/// Models compared with a reference on a text, as JSON.
#[pyfunction]
pub fn compare(
    py: Python,
    reference: PathBuf,
    models: Vec<PathBuf>,
    texts: Vec<PathBuf>,
    how: How,
    progress: Option<Bound<PyAny>>,
) -> PyResult<String> {
    watched(py, progress, move |watch| {
        let texts = read(&texts)?;
        let paths: Vec<&PathBuf> = std::iter::once(&reference).chain(&models).collect();
        let opened = paths.iter().map(|path| opened(path)).collect::<PyResult<Vec<_>>>()?;
        let subjects: Vec<Subject> =
            paths.iter().zip(&opened).map(|(path, model)| Subject { path, model }).collect();
        let options = options(how);
        let extras = Extras::default();
        let reference = Against::Model(subjects[0]);
        let found = measure::compare(reference, &subjects[1..], &texts, &options, extras, watch);
        let found = found.map_err(failed)?;
        let rows = found.rows.iter().zip(&subjects[1..]).map(|(row, subject)| {
            let (bytes, _) = subject.size();
            serde_json::json!({
                "path": subject.path, "bytes": bytes, "bits_per_weight": subject.bits_per_weight(),
                "comparison": row.comparison,
            })
        });
        let rows: Vec<_> = rows.collect();
        Ok(serde_json::json!({ "reference": found.own, "models": rows }).to_string())
    })
}

/// Collects the importances of a model's weights on a text and writes them as a GGUF file.
#[pyfunction]
pub fn imatrix(
    py: Python,
    model: PathBuf,
    texts: Vec<PathBuf>,
    output: PathBuf,
    how: How,
    progress: Option<Bound<PyAny>>,
) -> PyResult<usize> {
    watched(py, progress, move |watch| {
        let (opened, texts) = (opened(&model)?, read(&texts)?);
        let subject = Subject { path: &model, model: &opened };
        let options = options(how);
        let found = measure::importances(subject, Beside::default(), &texts, &options, watch)
            .map_err(failed)?;
        found.write_gguf(&LocalDisk, &output).map_err(failed)?;
        Ok(found.entries.len())
    })
}

/// Whether a model keeps within limits, as JSON.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub fn gate(
    py: Python,
    reference: PathBuf,
    model: PathBuf,
    texts: Vec<PathBuf>,
    limits: [Option<f64>; 3],
    confidence: f64,
    how: How,
    progress: Option<Bound<PyAny>>,
) -> PyResult<String> {
    watched(py, progress, move |watch| {
        let texts = read(&texts)?;
        let (of_reference, of_model) = (opened(&reference)?, opened(&model)?);
        let reference = Subject { path: &reference, model: &of_reference };
        let candidate = Subject { path: &model, model: &of_model };
        let [kl, perplexity_ratio, same_top] = limits;
        let limits = Limits { kl, perplexity_ratio, same_top };
        let terms = Terms { limits, confidence };
        let options = options(how);
        let reference = Against::Model(reference);
        let found = measure::gate(reference, &[candidate], &texts, terms, &options, watch);
        let found = found.map_err(failed)?;
        let judged = &found.models[0];
        Ok(serde_json::json!({
            "verdict": judged.verdict, "checks": judged.checks, "chunks": judged.chunks,
            "chunks_available": found.chunks_available,
        })
        .to_string())
    })
}

/// What a mix may be made of, by name: types, bytes and least types of roles, types of patterns of names; and
/// whether scales will be searched for.
type Within = (Vec<String>, Vec<(String, u64)>, Vec<(String, String)>, Vec<(String, String)>, bool);

fn bounds((types, budgets, floors, keep, search): Within) -> PyResult<Bounds> {
    let role = |name: &str| {
        let found = Role::ALL.into_iter().find(|role| role.name() == name);
        found.ok_or_else(|| {
            let known = Role::ALL.map(Role::name).join(", ");
            PyValueError::new_err(format!("no role `{name}`: {known}"))
        })
    };
    let kept = |(pattern, ty): &(String, String)| {
        TensorType::new(pattern, named(ty)?)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    };
    Ok(Bounds {
        types: types.iter().map(|ty| named(ty)).collect::<PyResult<_>>()?,
        budgets: budgets
            .iter()
            .map(|(name, bytes)| Ok((role(name)?, *bytes)))
            .collect::<PyResult<_>>()?,
        floors: floors
            .iter()
            .map(|(name, ty)| Ok((role(name)?, named(ty)?)))
            .collect::<PyResult<_>>()?,
        keep: keep.iter().map(kept).collect::<PyResult<_>>()?,
        search,
    })
}

/// Finds the mix that loses least for a size, in bytes or bits per weight, and writes it as a recipe; as JSON.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub fn mix(
    py: Python,
    model: PathBuf,
    text: PathBuf,
    output: PathBuf,
    size: (Option<u64>, Option<f64>),
    within: Within,
    imatrix: Option<PathBuf>,
    sensitivities: Option<PathBuf>,
    how: How,
    progress: Option<Bound<PyAny>>,
) -> PyResult<String> {
    let bounds = bounds(within)?;
    watched(py, progress, move |watch| {
        let opened = opened(&model)?;
        let importance = importance(imatrix.as_deref())?;
        let weights = importance.as_ref().map(|importance| &*importance.imatrix);
        let subject = Subject { path: &model, model: &opened };
        let options = options(how);
        let text = Text::read(&text).map_err(failed)?;
        let parts = text.parts(subject, options.ctx, options.chunks).map_err(failed)?;
        let [search, proof]: [Text; 2] = parts;
        let options = Options { chunks: None, ..options };
        let found = match sensitivities.as_deref().filter(|path| path.exists()) {
            Some(path) => {
                Sensitivities::read(path, &opened, &bounds.types, bounds.search).map_err(failed)?
            }
            None => {
                let known = Default::default();
                let all = &bounds.types[..];
                let types = Types { all, imatrix: weights, known: &known, search: bounds.search };
                let so_far = SoFar::NONE;
                let found =
                    measure::sensitivities(subject, &search, types, so_far, &options, watch);
                let found = found.map_err(failed)?;
                if let Some(path) = &sensitivities {
                    let json = serde_json::json!(found).to_string();
                    requant::io::write(&LocalDisk, path, json.as_bytes()).map_err(failed)?;
                }
                found
            }
        };
        let (_, n) = subject.size();
        let size = match size {
            (Some(bytes), _) => bytes,
            (None, bits) => (bits.unwrap_or_default() * n as f64 / 8.0) as u64,
        };
        let mix = measure::mix(subject, &found, &bounds, importance.as_ref(), size);
        let mix = mix.map_err(failed)?;
        let types = mix.types();
        let proven =
            measure::proof(subject, &proof, &types, weights, bounds.search, &options, watch);
        let divergence = proven.map_err(failed)?.kl_divergence;
        let measured = (divergence.mean.value, divergence.error_by_chunk());
        let recipe = mix.text(&model, &found, Some(measured));
        requant::io::write(&LocalDisk, &output, recipe.as_bytes()).map_err(failed)?;
        let types: std::collections::BTreeMap<&str, &str> =
            types.into_iter().map(|(name, ty): (&str, QuantType)| (name, ty.name())).collect();
        Ok(serde_json::json!({
            "types": types, "file_bytes": mix.bytes, "bits_per_weight": mix.bits_per_weight,
            "expected_kl_divergence": mix.expected, "kl_divergence": measured.0,
            "kl_divergence_error": measured.1,
        })
        .to_string())
    })
}
