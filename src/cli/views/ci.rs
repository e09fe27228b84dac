//! A verdict as what runs checks of changes shows it: a summary in Markdown, and JUnit's XML.

use super::markup::escape;
use super::measured::{verdict, with_need};
use crate::eval::{Check, Verdict};
use crate::measure::{Judged, Judgement};
use std::fmt::Write;

/// A table for the page of a job.
pub fn summary(judged: &Judgement) -> String {
    let mut out = format!(
        "### requant gate: {}\n\n\
         | model | bits | limit on | measured | limit | verdict |\n|---|--:|---|--:|--:|---|\n",
        verdict(judged.verdict)
    );
    for model in &judged.models {
        for check in &model.checks {
            let _ = writeln!(
                out,
                "| {} | {:.3} | {} | {:.6} ± {:.6} | {} | {} |",
                name(model).replace('|', "\\|"),
                model.bits_per_weight,
                check.what.name(),
                check.value,
                check.error,
                check.limit,
                with_need(check)
            );
        }
    }
    let Judgement { confidence, chunks, chunks_available, ctx, .. } = judged;
    let stopped = if judged.complete { "" } else { ", where it was stopped" };
    let _ = writeln!(
        out,
        "\nAt confidence {confidence} after {chunks} of {chunks_available} chunks of {ctx} tokens{stopped}.\n"
    );
    out
}

/// A test suite with a case for each limit of each model. What is undecided is an error, as its exit code is
/// not 0.
pub fn junit(judged: &Judgement) -> String {
    let all =
        || judged.models.iter().flat_map(|model| model.checks.iter().map(move |c| (model, c)));
    let count = |wanted| all().filter(|(_, check)| check.verdict == wanted).count();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites><testsuite name=\"requant gate\" tests=\"{}\" failures=\"{}\" errors=\"{}\">\n",
        all().count(),
        count(Verdict::Fail),
        count(Verdict::Undecided)
    );
    for (model, check) in all() {
        let (class, what) = (escape(&name(model)), check.what.name());
        let _ = write!(out, "<testcase classname=\"{class}\" name=\"{what}\">");
        let element = match check.verdict {
            Verdict::Pass => None,
            Verdict::Fail => Some("failure"),
            Verdict::Undecided => Some("error"),
        };
        if let Some(element) = element {
            let kind = verdict(check.verdict).to_lowercase();
            let message = message(check);
            let _ = write!(out, "<{element} type=\"{kind}\" message=\"{message}\"/>");
        }
        out += "</testcase>\n";
    }
    out + "</testsuite></testsuites>\n"
}

fn message(check: &Check) -> String {
    let Check { value, error, limit, .. } = check;
    format!("{value:.6} ± {error:.6}, limit {limit}: {}", with_need(check))
}

fn name(model: &Judged) -> String {
    model.path.file_name().unwrap_or(model.path.as_os_str()).to_string_lossy().into_owned()
}
