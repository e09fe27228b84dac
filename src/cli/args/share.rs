//! How a measurement is carried out: whole, as the share of one of several machines, or not at all, where it is
//! only asked what it would take.

use super::places;
use crate::cli::progress::Progress;
use crate::cli::views::measured;
use crate::cli::{bad_usage, say};
use crate::convert::{BadShard, Shard};
use crate::io::LocalDisk;
use crate::measure::{
    Job, Options, Part, Subject, Tasks, Text, choices_unless, estimate, estimate_choices, measure,
    measure_unless,
};
use anyhow::bail;
use std::path::{Path, PathBuf};

/// How a measurement is carried out.
#[derive(clap::Args)]
#[command(next_help_heading = "Estimates and several machines")]
pub struct Args {
    /// Say how long it will take, how much memory, and what is read, from a short trial, and stop
    #[arg(long)]
    dry_run: bool,
    /// Measure only share K of N of the chunks (tasks, of --choices), so that N machines can share the work; auto takes K
    /// and N from Slurm, Kubernetes, AWS Batch or RANK and WORLD_SIZE. `requant join` puts shares together
    #[arg(long, value_name = "K/N", requires = "part", conflicts_with = "json")]
    shard: Option<String>,
    /// Write what the share has found to NAME.K-of-N
    #[arg(long, value_name = "NAME", requires = "shard")]
    part: Option<PathBuf>,
}

impl Args {
    /// Whether it is the share of one of several machines.
    pub fn is_share(&self) -> bool {
        self.shard.is_some()
    }

    /// Whether all of it is to be measured, here and now.
    pub fn is_whole(&self) -> bool {
        !self.dry_run && self.shard.is_none()
    }

    /// Has models answer a share of the tasks, which is written, or says what it would take.
    pub fn ask(
        &self,
        subjects: &[Subject],
        tasks: Tasks,
        options: &Options,
        json: bool,
    ) -> anyhow::Result<()> {
        let share = self.shard.as_deref().map(shard).transpose()?;
        let options = Options { share, ..options.clone() };
        if self.dry_run {
            measured::estimate(&estimate_choices(subjects, tasks, &options)?, json);
            return Ok(());
        }
        let progress = Progress::start("choices", 0, "token-layers", 0);
        let find = |done: &mut dyn FnMut(&Part) -> bool| {
            Ok(choices_unless(subjects, tasks, &options, done, &progress)?)
        };
        if self.write_unless_there(share, find)? {
            progress.finish();
        }
        Ok(())
    }

    /// Writes a share that `find` finds, unless the part that it shows first is there; whether it was written.
    fn write_unless_there(
        &self,
        share: Option<Shard>,
        find: impl FnOnce(&mut dyn FnMut(&Part) -> bool) -> anyhow::Result<Part>,
    ) -> anyhow::Result<bool> {
        let (Some(share), Some(name)) = (share, &self.part) else { return Ok(false) };
        let path = share.beside(name);
        places::prepare(&path)?;
        let mut there = Ok(false);
        let part = find(&mut |part| {
            there = is_there(&path, part);
            !matches!(there, Ok(false))
        })?;
        let there = there?;
        if !there {
            write(part, &path, share)?;
        }
        Ok(!there)
    }

    /// Measures; what was found, unless it is a share, which is written, or only an estimate was wanted.
    pub fn measure(
        &self,
        what: &'static str,
        job: Job,
        texts: &[Text],
        options: &Options,
        json: bool,
    ) -> anyhow::Result<Option<Part>> {
        if self.dry_run {
            let share = self.shard.as_deref().map(shard).transpose()?;
            let options = Options { share, ..options.clone() };
            measured::estimate(&estimate(job, texts, &options, &())?, json);
            return Ok(None);
        }
        let progress = Progress::start(what, 0, "token-layers", 0);
        let Some(shard) = &self.shard else {
            let part = measure(job, texts, options, &progress)?;
            progress.finish();
            return Ok(Some(part));
        };
        let share = Some(self::shard(shard)?);
        let options = Options { share, ..options.clone() };
        let find = |done: &mut dyn FnMut(&Part) -> bool| {
            Ok(measure_unless(job, texts, &options, done, &progress)?.1)
        };
        if self.write_unless_there(share, find)? {
            progress.finish();
        }
        Ok(None)
    }
}

/// Whether a share has been measured before. Another file of its name is an error.
pub fn is_there(path: &Path, part: &Part) -> anyhow::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    if !Part::open(path).is_ok_and(|old| old.is_same(part)) {
        bail!("{}: exists already and is no such share; give another name", path.display());
    }
    say::info(format!("{}: is there already", path.display()));
    Ok(true)
}

/// Writes what a share has found.
pub fn write(mut part: Part, path: &Path, shard: Shard) -> anyhow::Result<()> {
    say::heed()?;
    part.set_warnings(say::said());
    part.write(&LocalDisk, path)?;
    say::info(format!("{}: share {}/{}", path.display(), shard.number(), shard.count()));
    Ok(())
}

/// The share that an argument names.
pub fn shard(text: &str) -> anyhow::Result<Shard> {
    match text {
        "auto" => shard_of_environment(|name| std::env::var(name).ok())
            .map_err(|error| bad_usage(error.to_string())),
        text => text.parse().map_err(|error: BadShard| bad_usage(error.to_string())),
    }
}

/// The share that an engine gives to this process: a Slurm job array, a Kubernetes indexed job,
/// an AWS Batch array, or the ranks of a distributed launcher.
fn shard_of_environment(get: impl Fn(&str) -> Option<String>) -> anyhow::Result<Shard> {
    let number = |name: &str| -> anyhow::Result<Option<u32>> {
        match get(name) {
            None => Ok(None),
            Some(text) => match text.trim().parse() {
                Ok(n) => Ok(Some(n)),
                Err(_) => bail!("{name} is `{text}`, not a number"),
            },
        }
    };
    let of = |index: &str, first: u32, count: &str| -> anyhow::Result<Option<Shard>> {
        let Some(index_value) = number(index)? else { return Ok(None) };
        let Some(count_value) = number(count)? else {
            bail!("{index} is set, but {count} is not; set it to the number of tasks")
        };
        let k = index_value.checked_sub(first).and_then(|k| k.checked_add(1));
        match k.and_then(|k| Shard::new(k, count_value)) {
            Some(shard) => Ok(Some(shard)),
            None => bail!("{index} = {index_value} does not lie within {count} = {count_value}"),
        }
    };
    if number("SLURM_ARRAY_TASK_ID")?.is_some() {
        let (min, max) = (number("SLURM_ARRAY_TASK_MIN")?, number("SLURM_ARRAY_TASK_MAX")?);
        let (min, count) = (min.unwrap_or(0), number("SLURM_ARRAY_TASK_COUNT")?);
        if let (Some(max), Some(count)) = (max, count)
            && max.checked_sub(min).and_then(|n| n.checked_add(1)) != Some(count)
        {
            bail!("the job array has gaps; use one without a step, such as --array=1-{count}");
        }
        if let Some(shard) = of("SLURM_ARRAY_TASK_ID", min, "SLURM_ARRAY_TASK_COUNT")? {
            return Ok(shard);
        }
    }
    let engines = [
        ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
        ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
        ("RANK", "WORLD_SIZE"),
    ];
    for (index, count) in engines {
        if let Some(shard) = of(index, 0, count)? {
            return Ok(shard);
        }
    }
    bail!(
        "--shard auto finds no engine: none of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, \
         AWS_BATCH_JOB_ARRAY_INDEX and RANK is set; give K/N"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(variables: &[(&str, &str)]) -> Result<String, String> {
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match shard_of_environment(get) {
            Ok(shard) => Ok(format!("{}/{}", shard.number(), shard.count())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn engines_say_which_share_is_meant() {
        let slurm = |id, min, max, count| {
            shard(&[
                ("SLURM_ARRAY_TASK_ID", id),
                ("SLURM_ARRAY_TASK_MIN", min),
                ("SLURM_ARRAY_TASK_MAX", max),
                ("SLURM_ARRAY_TASK_COUNT", count),
                ("RANK", "9"),
            ])
        };
        assert_eq!(slurm("3", "1", "4", "4").unwrap(), "3/4");
        assert_eq!(slurm("0", "0", "3", "4").unwrap(), "1/4");
        assert!(slurm("4", "0", "8", "3").unwrap_err().contains("gaps"));
        assert!(slurm("x", "0", "3", "4").unwrap_err().contains("not a number"));
        let index = [("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "8")];
        assert_eq!(shard(&index).unwrap(), "1/8");
        assert!(shard(&index[..1]).unwrap_err().contains("JOB_COMPLETIONS"));
        let batch = [("AWS_BATCH_JOB_ARRAY_INDEX", "7"), ("AWS_BATCH_JOB_ARRAY_SIZE", "8")];
        assert_eq!(shard(&batch).unwrap(), "8/8");
        assert_eq!(shard(&[("RANK", "2"), ("WORLD_SIZE", "3")]).unwrap(), "3/3");
        assert!(shard(&[("RANK", "3"), ("WORLD_SIZE", "3")]).is_err());
        assert!(shard(&[]).unwrap_err().contains("K/N"));
    }
}
