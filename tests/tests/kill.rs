//! Every stage that takes long, killed at random moments and started again, ends with the bytes of a run that nobody disturbed.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use artifact::LatencyDataset;
use pipeline_tests::{command, root, stdout, tiny};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tempfile::TempDir;

/// Kills that must have hit a stage at work.
const N_KILLS: usize = 4;
/// Runs of a stage after which that many must have hit.
const MAX_RUNS: usize = 100;

/// A stage of the tiny preset.
struct Work<'a> {
    stage: &'a str,
    input: Option<(&'a str, &'a Path)>,
    sets: &'a [&'a str],
}

impl Work<'_> {
    fn command(&self, store: &Path) -> Command {
        let mut command = command(self.stage, store, &["run", "--threads", "2"]);
        command.arg("--config").arg(tiny(self.stage));
        if let Some((name, dir)) = self.input {
            command.arg(format!("--{name}")).arg(dir);
        }
        for set in self.sets {
            command.args(["--set", set]);
        }
        command
    }

    fn run(&self, store: &Path) -> PathBuf {
        root().join(stdout(self.command(store)).trim())
    }

    /// Runs it, and kills it after so long if it has not ended; whether it was killed.
    fn is_killed_after(&self, store: &Path, moment: Duration) -> bool {
        let mut command = self.command(store);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (ends, end) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).unwrap();
            // Nobody listens any more if it was killed.
            let _ = ends.send(());
            said
        });
        let _ = end.recv_timeout(moment);
        // SIGKILL: no code of the process runs any more.
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let said = reader.join().unwrap();
        assert!(status.success() || status.code().is_none(), "{said}");
        !status.success()
    }

    /// Its artifact, which `same` holds against that of runs that were killed.
    fn survives(&self, scratch: &Path, same: impl Fn(&Path, &Path)) -> PathBuf {
        let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        eprintln!("{}: seed {seed}", self.stage);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let store = |name: &str| scratch.join(self.stage).join(name);
        let started = Instant::now();
        let undisturbed = self.run(&store("undisturbed"));
        let whole = started.elapsed();
        let (mut n_kills, mut n_ends) = (0, 0);
        for _ in 0..MAX_RUNS {
            let place = store(&format!("killed-{n_ends}"));
            let share = f64::from(rng.next_u32()) / f64::from(u32::MAX);
            let is_killed = self.is_killed_after(&place, whole.mul_f64(share));
            n_kills += usize::from(is_killed);
            if !is_killed || n_kills == N_KILLS {
                let killed = self.run(&place);
                assert_eq!(killed.file_name(), undisturbed.file_name());
                same(&undisturbed, &killed);
                n_ends += 1;
            }
            if n_kills == N_KILLS {
                return undisturbed;
            }
        }
        panic!("{}: {n_kills} kills hit in {MAX_RUNS} runs", self.stage)
    }
}

/// Every file of an artifact but the manifest, which holds times, and what was measured.
fn bytes(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(&path).unwrap())
    });
    let others = ["manifest.json", "latency.json", "verdict.json"];
    files
        .filter(|(name, _)| !others.contains(&name.as_str()))
        .collect()
}

fn same_bytes(one: &Path, other: &Path) {
    let (one, other) = (bytes(one), bytes(other));
    assert!(!one.is_empty() && one.keys().eq(other.keys()));
    for (name, bytes) in &one {
        assert!(bytes == &other[name], "{name} differs");
    }
}

/// Latencies are measured; which networks and cells were timed, and how often, is not.
fn same_but_for_the_clock(one: &Path, other: &Path) {
    let untimed = |dir: &Path| {
        let set = artifact::open::<LatencyDataset>(dir).unwrap().value;
        let samples = set.samples.into_iter().map(|row| {
            let is_repeated = row.repeat_median_millis.is_some();
            (row.genotype, row.n_repeats, is_repeated)
        });
        let cells = set
            .cells
            .into_iter()
            .map(|row| (row.sample_index, row.kind, row.cell, row.channels));
        (samples.collect::<Vec<_>>(), cells.collect::<Vec<_>>())
    };
    let (one, other) = (untimed(one), untimed(other));
    assert!(!one.0.is_empty() && !one.1.is_empty());
    assert!(one == other, "other networks or cells were timed");
}

#[test]
fn stages_that_are_killed_at_random_moments_end_with_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    let scratch = dir.path();
    let profile = Work {
        stage: "profile",
        input: None,
        sets: &["n_architectures=60"],
    };
    let dataset = profile.survives(scratch, same_but_for_the_clock);
    let predictor = Work {
        stage: "predictor",
        input: Some(("latency-dataset", &dataset)),
        sets: &["mlp.n_epochs=200"],
    };
    let model = predictor.survives(scratch, same_bytes);
    let search = Work {
        stage: "search",
        input: Some(("latency-model", &model)),
        sets: &["n_epochs=8", "guards.policy=roll-back", "bridge=sampled"],
    };
    let found = search.survives(scratch, same_bytes);
    let evaluate = Work {
        stage: "evaluate",
        input: Some(("search-result", &found)),
        sets: &["n_epochs=4", "drop_path=0.2"],
    };
    evaluate.survives(scratch, same_bytes);
}
