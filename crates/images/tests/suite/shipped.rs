//! The data set that ships with the project.

use std::path::Path;

use images::{LoadOptions, Split, load};

#[test]
fn fashion_mnist_is_balanced() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/fashion-mnist");
    for (split, n_per_class) in [(Split::Train, 1000), (Split::Test, 200)] {
        let set = load(&dir, split, &LoadOptions::default()).unwrap();
        assert_eq!([set.n_channels(), set.height(), set.width()], [1, 28, 28]);
        assert_eq!(set.n_classes(), 10);
        assert_eq!(set.class_names()[9], "Ankle boot");
        for class in 0..10 {
            let n = set.labels().iter().filter(|&&label| label == class).count();
            assert_eq!(n, n_per_class, "{split} class {class}");
        }
        // The full set of 60,000 has mean 0.2860 and standard deviation 0.3530.
        let statistics = set.channel_statistics().unwrap();
        assert!((statistics.mean[0] - 0.286).abs() < 0.005, "{statistics:?}");
        assert!((statistics.std[0] - 0.353).abs() < 0.005, "{statistics:?}");
    }
}
