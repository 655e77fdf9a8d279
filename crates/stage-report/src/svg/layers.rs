//! Layered layout of a small directed acyclic graph, left to right.
//!
//! Vertices stand in columns by the longest path that leads to them (Sugiyama, Tagawa and Toda 1981).
//! Between two columns of vertices stands a column of lanes: an edge runs along one lane in every
//! column between its ends, and a label takes the place of a lane. So nothing can overlap: whatever
//! stands in one column keeps its distance. Lanes are ordered for few crossings (barycentres, then
//! exchanges of neighbours), and moved to where edges are straight.

/// An edge between two vertices, the first before the second in the order of the vertices.
pub(crate) struct Edge {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Width and height of its label, which stands just before `to`.
    pub(crate) label: Option<[f64; 2]>,
}

/// Where everything goes.
pub(crate) struct Layout {
    pub(crate) width: f64,
    pub(crate) height: f64,
    /// The middle of each vertex.
    pub(crate) vertices: Vec<[f64; 2]>,
    /// The way of each edge.
    pub(crate) routes: Vec<Route>,
}

/// The way of an edge between its vertices.
pub(crate) struct Route {
    /// The horizontal runs through the columns that have a width: left end, right end, height.
    pub(crate) runs: Vec<[f64; 3]>,
    /// The middle of its label.
    pub(crate) label: Option<[f64; 2]>,
}

/// Room between two columns, for the bends.
const COLUMN_GAP: f64 = 28.0;
/// Room between two things in a column.
const LANE_GAP: f64 = 7.0;
/// The height of a lane without a label.
const LANE_HEIGHT: f64 = 8.0;
/// Room around the drawing.
const MARGIN: f64 = 6.0;

/// Something in a column.
struct Item {
    column: usize,
    size: [f64; 2],
    /// Neighbours in the columns before and after, and how straight the way there should be.
    links: [Vec<(usize, f64)>; 2],
}

/// Lays out a graph of vertices with these sizes.
pub(crate) fn lay_out(sizes: &[[f64; 2]], edges: &[Edge]) -> Layout {
    let mut ranks = vec![0; sizes.len()];
    for vertex in 0..sizes.len() {
        for edge in edges.iter().filter(|edge| edge.to == vertex) {
            ranks[vertex] = ranks[vertex].max(ranks[edge.from] + 1);
        }
    }

    // Vertices are the first items, in their order; then come the lanes of each edge.
    let item = |column, size| Item {
        column,
        size,
        links: [Vec::new(), Vec::new()],
    };
    let mut items: Vec<Item> = sizes
        .iter()
        .zip(&ranks)
        .map(|(&size, rank)| item(2 * rank, size))
        .collect();
    let mut lanes: Vec<Vec<usize>> = Vec::with_capacity(edges.len());
    for edge in edges {
        let last = 2 * ranks[edge.to] - 1;
        let mut before = edge.from;
        let mut own = Vec::new();
        for column in 2 * ranks[edge.from] + 1..=last {
            let label = edge.label.filter(|_| column == last);
            let lane = items.len();
            items.push(item(column, label.unwrap_or([0.0, LANE_HEIGHT])));
            // From lane to lane an edge should be straighter than from vertex to lane.
            link(
                &mut items,
                before,
                lane,
                if before < sizes.len() { 1.0 } else { 8.0 },
            );
            own.push(lane);
            before = lane;
        }
        link(&mut items, before, edge.to, 1.0);
        lanes.push(own);
    }

    let columns = order(&items);
    let y = heights(&items, &columns);
    let top = extreme(
        &items,
        |index, item| y[index] - item.size[1] / 2.0,
        f64::min,
    );
    let bottom = extreme(
        &items,
        |index, item| y[index] + item.size[1] / 2.0,
        f64::max,
    );
    let y: Vec<f64> = y.into_iter().map(|y| y - top + MARGIN).collect();

    let mut x = MARGIN;
    let spans: Vec<[f64; 2]> = columns
        .iter()
        .map(|column| {
            let width = column
                .iter()
                .map(|&index| items[index].size[0])
                .fold(0.0, f64::max);
            let span = [x, x + width];
            x += width + COLUMN_GAP;
            span
        })
        .collect();

    let middle = |index: usize| {
        let [left, right] = spans[items[index].column];
        [(left + right) / 2.0, y[index]]
    };
    let run = |&index: &usize| {
        let [left, right] = spans[items[index].column];
        [left, right, y[index]]
    };
    Layout {
        width: x - COLUMN_GAP + MARGIN,
        height: bottom - top + 2.0 * MARGIN,
        vertices: (0..sizes.len()).map(middle).collect(),
        routes: edges
            .iter()
            .zip(&lanes)
            .map(|(edge, lanes)| Route {
                runs: lanes
                    .iter()
                    .map(run)
                    .filter(|[left, right, _]| left < right)
                    .collect(),
                label: edge.label.and(lanes.last()).map(|&lane| middle(lane)),
            })
            .collect(),
    }
}

fn link(items: &mut [Item], left: usize, right: usize, weight: f64) {
    items[left].links[1].push((right, weight));
    items[right].links[0].push((left, weight));
}

fn extreme(items: &[Item], of: impl Fn(usize, &Item) -> f64, choose: fn(f64, f64) -> f64) -> f64 {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| of(index, item))
        .reduce(choose)
        .unwrap_or(0.0)
}

/// The items of each column, from top to bottom, with few crossings between the columns.
fn order(items: &[Item]) -> Vec<Vec<usize>> {
    let n_columns = items.iter().map(|item| item.column + 1).max().unwrap_or(0);
    let mut columns: Vec<Vec<usize>> = (0..n_columns)
        .map(|column| {
            (0..items.len())
                .filter(|&index| items[index].column == column)
                .collect()
        })
        .collect();
    let mut best = columns.clone();
    for sweep in 0..24 {
        let side = sweep % 2;
        for step in 1..n_columns {
            let column = if side == 0 {
                step
            } else {
                n_columns - 1 - step
            };
            let place = places(items, &columns);
            columns[column].sort_by(|&a, &b| {
                let [a, b] =
                    [a, b].map(|index| barycentre(&items[index], side, &place, place[index]));
                a.total_cmp(&b)
            });
        }
        exchange_neighbours(items, &mut columns);
        if n_crossings(items, &columns) < n_crossings(items, &best) {
            best.clone_from(&columns);
        }
    }
    best
}

/// The position of each item within its column.
fn places(items: &[Item], columns: &[Vec<usize>]) -> Vec<f64> {
    let mut places = vec![0.0; items.len()];
    for column in columns {
        for (place, &index) in column.iter().enumerate() {
            places[index] = place as f64;
        }
    }
    places
}

fn barycentre(item: &Item, side: usize, places: &[f64], otherwise: f64) -> f64 {
    let links = &item.links[side];
    if links.is_empty() {
        return otherwise;
    }
    links.iter().map(|&(index, _)| places[index]).sum::<f64>() / links.len() as f64
}

/// Exchanges neighbours as long as that removes crossings.
fn exchange_neighbours(items: &[Item], columns: &mut [Vec<usize>]) {
    let mut fewest = n_crossings(items, columns);
    loop {
        let before = fewest;
        for column in 0..columns.len() {
            for place in 1..columns[column].len() {
                columns[column].swap(place - 1, place);
                let now = n_crossings(items, columns);
                if now < fewest {
                    fewest = now;
                } else {
                    columns[column].swap(place - 1, place);
                }
            }
        }
        if fewest == before {
            return;
        }
    }
}

fn n_crossings(items: &[Item], columns: &[Vec<usize>]) -> usize {
    let places = places(items, columns);
    let mut n = 0;
    for column in columns {
        let links: Vec<(f64, f64)> = column
            .iter()
            .flat_map(|&left| {
                items[left].links[1]
                    .iter()
                    .map(move |&(right, _)| (left, right))
            })
            .map(|(left, right)| (places[left], places[right]))
            .collect();
        for (index, a) in links.iter().enumerate() {
            n += links[..index]
                .iter()
                .filter(|b| (a.0 - b.0) * (a.1 - b.1) < 0.0)
                .count();
        }
    }
    n
}

/// The height of each item's middle: as near to its neighbours' as order and distances allow.
fn heights(items: &[Item], columns: &[Vec<usize>]) -> Vec<f64> {
    let mut y = vec![0.0; items.len()];
    for sweep in 0..60 {
        for step in 0..columns.len() {
            let column = &columns[if sweep % 2 == 0 {
                step
            } else {
                columns.len() - 1 - step
            }];
            let wishes: Vec<(f64, f64)> = column
                .iter()
                .map(|&index| {
                    let links = || items[index].links.iter().flatten();
                    let weight: f64 = links().map(|(_, weight)| weight).sum();
                    let sum: f64 = links().map(|&(other, weight)| weight * y[other]).sum();
                    if weight > 0.0 {
                        (sum / weight, weight)
                    } else {
                        (y[index], 0.1)
                    }
                })
                .collect();
            let sizes: Vec<f64> = column.iter().map(|&index| items[index].size[1]).collect();
            for (&index, height) in column.iter().zip(spread(&wishes, &sizes)) {
                y[index] = height;
            }
        }
    }
    y
}

/// The middles of things of these heights, in this order and [`LANE_GAP`] apart, that are nearest to the
/// wishes (place, weight) in the weighted mean square: isotonic regression by pooling neighbours.
fn spread(wishes: &[(f64, f64)], heights: &[f64]) -> Vec<f64> {
    // With the least distances taken away, the answer need only not decrease.
    let mut offsets = vec![0.0; heights.len()];
    for index in 1..heights.len() {
        offsets[index] =
            offsets[index - 1] + (heights[index - 1] + heights[index]) / 2.0 + LANE_GAP;
    }
    // Blocks of things that touch: (mean wish, weight, how many).
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    for (&(wish, weight), offset) in wishes.iter().zip(&offsets) {
        let mut block = (wish - offset, weight, 1);
        while let Some(&above) = blocks.last()
            && above.0 > block.0
        {
            blocks.pop();
            let weight = above.1 + block.1;
            block = (
                (above.0 * above.1 + block.0 * block.1) / weight,
                weight,
                above.2 + block.2,
            );
        }
        blocks.push(block);
    }
    let middles = blocks
        .iter()
        .flat_map(|&(middle, _, n)| std::iter::repeat_n(middle, n));
    middles
        .zip(offsets)
        .map(|(middle, offset)| middle + offset)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: usize, to: usize) -> Edge {
        Edge {
            from,
            to,
            label: Some([50.0, 16.0]),
        }
    }

    #[test]
    fn vertices_stand_behind_all_that_leads_to_them() {
        // 0 → 1 → 2 → 3, and 0 → 3 past them.
        let edges = [edge(0, 1), edge(1, 2), edge(2, 3), edge(0, 3)];
        let layout = lay_out(&[[30.0, 30.0]; 4], &edges);
        for edge in &edges {
            assert!(layout.vertices[edge.from][0] < layout.vertices[edge.to][0]);
        }
        let past = &layout.routes[3];
        assert_eq!(past.runs.len(), 5, "a lane in each column between");
        for (vertex, run) in [(1, past.runs[1]), (2, past.runs[3])] {
            assert!(
                (layout.vertices[vertex][1] - run[2]).abs() >= 15.0,
                "the lane keeps clear"
            );
        }
    }

    #[test]
    fn needless_crossings_are_removed() {
        // Drawn in the order of the vertices, the two edges would cross.
        let layout = lay_out(&[[20.0, 20.0]; 4], &[edge(0, 3), edge(1, 2)]);
        let y = |vertex: usize| layout.vertices[vertex][1];
        assert_eq!(y(0) < y(1), y(3) < y(2));
    }

    #[test]
    fn a_chain_is_straight() {
        let layout = lay_out(&[[20.0, 20.0]; 3], &[edge(0, 1), edge(1, 2)]);
        let first = layout.vertices[0][1];
        assert!(
            layout
                .vertices
                .iter()
                .all(|[_, y]| (y - first).abs() < 1e-6)
        );
    }

    #[test]
    fn spreading_keeps_order_and_distance_and_stays_near() {
        let heights = [10.0, 20.0, 10.0];
        // All want the same place: they touch, symmetrically about it.
        let middles = spread(&[(0.0, 1.0); 3], &heights);
        let gap = 15.0 + LANE_GAP;
        for (middle, expected) in middles.iter().zip([-gap, 0.0, gap]) {
            assert!((middle - expected).abs() < 1e-9);
        }
        // Far apart, everyone gets what it wants.
        let wishes = [(0.0, 1.0), (100.0, 2.0), (200.0, 1.0)];
        assert_eq!(spread(&wishes, &heights), [0.0, 100.0, 200.0]);
    }
}
