//! Ranks on threads, over TCP on this machine.

use std::sync::Arc;
use std::thread;

use candle_core::{Device, Tensor};
use collective::{Collective, Error, Rendezvous, Share, Sockets, agree, sum_all};

/// Runs `work` as every rank of a group; the results by rank.
fn together<R: Send>(n_ranks: usize, work: impl Fn(Arc<dyn Collective>) -> R + Sync) -> Vec<R> {
    let rendezvous = Rendezvous::open("127.0.0.1:0").unwrap();
    let at = rendezvous.address().unwrap().to_string();
    thread::scope(|scope| {
        let mut ranks = vec![scope.spawn(|| {
            let first = rendezvous.wait(n_ranks, "a test", || Ok(())).unwrap();
            work(Arc::new(first))
        })];
        for rank in 1..n_ranks {
            let (at, work) = (&at, &work);
            ranks.push(scope.spawn(move || {
                work(Arc::new(
                    Sockets::join(at, rank, n_ranks, "a test").unwrap(),
                ))
            }));
        }
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn every_rank_gets_what_all_brought_in_the_order_of_ranks() {
    for n_ranks in [2, 3, 5] {
        let gathered = together(n_ranks, |ranks| {
            ranks
                .gather(&vec![ranks.rank() as u8; ranks.rank()])
                .unwrap()
        });
        let expected: Vec<Vec<u8>> = (0..n_ranks).map(|rank| vec![rank as u8; rank]).collect();
        assert!(gathered.iter().all(|all| *all == expected));
    }
}

#[test]
fn sums_are_the_same_bytes_everywhere() {
    // 1e8 + 1 - 1e8 in f32 depends on the order.
    let own = [[1e8f32, 0.5], [1.0, 0.25], [-1e8, 0.125]];
    let sums = together(3, |ranks| {
        let x = Tensor::new(&own[ranks.rank()], &Device::Cpu).unwrap();
        ranks.sum(&x).unwrap().to_vec1::<f32>().unwrap()
    });
    assert_eq!(sums[0], [(1e8f32 + 1.0) - 1e8, 0.875]);
    assert!(sums.iter().all(|sum| *sum == sums[0]));
}

#[test]
fn many_tensors_are_summed_in_one_exchange_and_keep_their_shapes() {
    let sums = together(2, |ranks| {
        let x = |value: f64, shape: &[usize]| Tensor::full(value, shape, &Device::Cpu).unwrap();
        let rank = ranks.rank() as f64;
        sum_all(
            &*ranks,
            &[x(rank, &[2, 3]), x(10.0, &[]), x(2.0 * rank, &[1])],
        )
        .unwrap()
    });
    for sums in sums {
        assert_eq!(sums[0].to_vec2::<f64>().unwrap(), [[1.0; 3]; 2]);
        assert_eq!(sums[1].to_scalar::<f64>().unwrap(), 20.0);
        assert_eq!(sums[2].to_vec1::<f64>().unwrap(), [2.0]);
    }
}

#[test]
fn rows_are_those_of_the_ranks() {
    let tables = together(3, |ranks| {
        let own = Tensor::new(&[ranks.rank() as f64, 0.1], &Device::Cpu).unwrap();
        let table = Share::of(&ranks, 3).rows(&own).unwrap();
        table.to_vec2::<f64>().unwrap()
    });
    for table in tables {
        assert_eq!(table, [[0.0, 0.1], [1.0, 0.1], [2.0, 0.1]]);
    }
}

#[test]
fn who_comes_to_something_else_is_named_on_every_rank() {
    let answers = together(3, |ranks| {
        agree(&*ranks, "the number", "1").unwrap();
        let own = if ranks.rank() == 2 { "3" } else { "1" };
        agree(&*ranks, "the number", own).unwrap_err().to_string()
    });
    for answer in answers {
        assert!(
            answer.contains("disagree on the number: rank 0 has 1, rank 2 has 3"),
            "{answer}"
        );
    }
}

#[test]
fn a_rank_that_ends_is_an_error_for_the_others() {
    let errors = together(2, |ranks| match ranks.rank() {
        0 => Some(
            ranks
                .sum(&Tensor::new(&[1f32], &Device::Cpu).unwrap())
                .unwrap_err(),
        ),
        _ => None,
    });
    let error = errors[0].as_ref().unwrap();
    assert!(
        matches!(Error::of(error), Some(Error::Lost { rank: 1, .. })),
        "{error}"
    );
}

#[test]
fn ranks_at_different_steps_are_told_so() {
    let errors = together(2, |ranks| {
        let x = Tensor::zeros(1 + ranks.rank(), candle_core::DType::F32, &Device::Cpu).unwrap();
        ranks.sum(&x).unwrap_err().to_string()
    });
    assert!(
        errors.iter().all(|error| error.contains("another step")),
        "{errors:?}"
    );
}

#[test]
fn a_rank_that_makes_something_else_is_turned_away() {
    let rendezvous = Rendezvous::open("127.0.0.1:0").unwrap();
    let at = rendezvous.address().unwrap().to_string();
    thread::scope(|scope| {
        let stranger = scope.spawn(|| Sockets::join(&at, 1, 2, "bread").map(drop));
        let error = rendezvous
            .wait(2, "cake", || Ok(()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("rank 1 makes bread, rank 0 makes cake"),
            "{error}"
        );
        stranger.join().unwrap().unwrap();
    });
}

#[test]
fn a_rank_without_a_first_one_says_where_it_looked() {
    // A port that was free a moment ago.
    let at = Rendezvous::open("127.0.0.1:0")
        .unwrap()
        .address()
        .unwrap()
        .to_string();
    let error = Sockets::join(&at, 1, 2, "a test").unwrap_err().to_string();
    assert!(error.contains(&at), "{error}");
}
