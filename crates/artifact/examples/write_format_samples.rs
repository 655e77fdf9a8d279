//! Writes one small artifact of every kind in its present format to `tests/formats`, where there is none
//! yet. Run it after a format's version was raised, and commit what it writes.

#[path = "../tests/suite/samples.rs"]
mod samples;

use std::path::Path;

use artifact::Store;
use samples::{Sample, for_every_kind};

fn write<A: Sample>(formats: &Path) {
    let dir = formats.join(format!("{}-{}", A::KIND, A::FORMAT));
    if dir.exists() {
        println!("{} is there already", dir.display());
        return;
    }
    let scratch = tempfile::tempdir_in(formats).expect("a folder beside the samples");
    let opened = samples::publish::<A>(&Store::at(scratch.path()));
    std::fs::rename(&opened.dir, &dir).expect("on one disk");
    println!("wrote {}", dir.display());
}

fn main() {
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/formats");
    std::fs::create_dir_all(&formats).expect("the repository can be written to");
    for_every_kind!(write(&formats));
}
