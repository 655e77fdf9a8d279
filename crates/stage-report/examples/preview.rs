//! Prints the page of an invented run, for whoever works on its looks:
//! `cargo run --release -p stage-report --example preview > page.html`.

use artifact::stage::EVALUATE;
use stage_report::{Config, Inputs};

#[path = "../tests/fixture/mod.rs"]
mod fixture;

fn main() {
    let store = tempfile::tempdir().expect("a folder for temporary files");
    let store = store.path();
    let (dataset, model) = fixture::publish_model(store, fixture::latency_model());
    // Two published genotypes stand for the found ones; give others by name.
    let mut names = std::env::args().skip(1);
    let mut evaluation = |name: &str, lambda, accuracy, target| {
        let name = names.next().unwrap_or_else(|| name.to_owned());
        let evaluation = fixture::evaluation(&name, lambda, accuracy, target);
        fixture::publish_with_search(store, &model, evaluation)
    };
    let (first, baseline) = evaluation("PC_DARTS_cifar", 0.0, 0.882, None);
    let (second, aware) = evaluation("DARTS_V2", 0.5, 0.8805, Some(1.02));
    let front = fixture::publish(store, &EVALUATE, fixture::front());
    let comparison = fixture::publish(store, &EVALUATE, fixture::comparison());
    let inputs = Inputs::open(
        &dataset,
        &model,
        &[first, second],
        &[baseline, aware],
        Some(&front),
        Some(&comparison),
    )
    .expect("artifacts just made");
    let config = Config {
        title: "Latency-aware search on Fashion-MNIST".to_owned(),
    };
    let page = stage_report::run(&config, &inputs).expect("a page");
    print!("{}", page.html);
}
