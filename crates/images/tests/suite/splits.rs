//! Splits and orders.

use images::{epoch_order, stratified_split};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

#[test]
fn halves_of_balanced_classes_are_halves() {
    let labels: Vec<u32> = (0..1000).map(|i| i % 10).collect();
    let parts = stratified_split(&labels, &[0.5, 0.5], &mut rng(0));
    for part in &parts {
        assert_eq!(part.len(), 500);
        for class in 0..10 {
            assert_eq!(part.iter().filter(|&&i| labels[i] == class).count(), 50);
        }
        assert!(!part.is_sorted(), "the order is random");
        let first = &part[..50];
        assert!(
            first.iter().any(|&i| labels[i] != labels[first[0]]),
            "classes are mixed"
        );
    }
}

#[test]
#[should_panic(expected = "add up to at most 1")]
fn more_than_everything_cannot_be_split_off() {
    stratified_split(&[0, 1], &[0.6, 0.6], &mut rng(0));
}

proptest! {
    #[test]
    fn parts_are_disjoint_and_keep_the_proportions(
        labels in prop::collection::vec(0u32..5, 0..200), a in 0.0f64..0.6, b in 0.0f64..0.4, seed: u64,
    ) {
        let parts = stratified_split(&labels, &[a, b], &mut rng(seed));
        prop_assert_eq!(&parts, &stratified_split(&labels, &[a, b], &mut rng(seed)));
        let mut all: Vec<usize> = parts.concat();
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len(), parts[0].len() + parts[1].len(), "disjoint");
        for class in 0..5 {
            let count = |of: &[usize]| of.iter().filter(|&&i| labels[i] == class).count() as f64;
            let n = labels.iter().filter(|&&label| label == class).count() as f64;
            prop_assert!((count(&parts[0]) - a * n).abs() <= 1.0);
            prop_assert!((count(&parts[1]) - b * n).abs() <= 1.0);
        }
    }

    #[test]
    fn an_epoch_sees_every_image_once(n in 0usize..100, seed: u64) {
        let indices: Vec<usize> = (0..n).map(|i| 3 * i).collect();
        let mut order = epoch_order(&indices, &mut rng(seed));
        prop_assert_eq!(&order, &epoch_order(&indices, &mut rng(seed)));
        order.sort_unstable();
        prop_assert_eq!(order, indices);
    }
}

#[test]
fn epochs_differ() {
    let indices: Vec<usize> = (0..50).collect();
    let mut rng = rng(1);
    assert_ne!(
        epoch_order(&indices, &mut rng),
        epoch_order(&indices, &mut rng)
    );
}
