//! Architectures of NAS-Bench-201 (Dong and Yang 2020) in their published form, such as
//! `|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|`.

use thiserror::Error;

/// The primitives in the order of the codes.
pub const PRIMITIVES: [&str; 5] = [
    "none",
    "skip_connect",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "avg_pool_3x3",
];

/// The code of an architecture: 6 edges by 5 primitives, a 1 at the primitive of each edge, 0
/// elsewhere. Edges stand by the node that they feed, then by the one that they read.
///
/// # Errors
/// If the text is no architecture of this space.
pub fn encode(text: &str) -> Result<Vec<f32>, ParseError> {
    let error = |reason: String| ParseError {
        text: text.to_owned(),
        reason,
    };
    let nodes: Vec<&str> = text.trim().split('+').collect();
    if nodes.len() != 3 {
        return Err(error(format!("{} nodes joined by `+`", nodes.len())));
    }
    let mut code = Vec::with_capacity(30);
    for (index, node) in nodes.into_iter().enumerate() {
        let genes: Vec<&str> = node
            .strip_prefix('|')
            .and_then(|node| node.strip_suffix('|'))
            .ok_or_else(|| error(format!("`{node}` does not stand between `|`")))?
            .split('|')
            .collect();
        if genes.len() != index + 1 {
            let n = genes.len();
            return Err(error(format!("node {} has {n} operations", index + 1)));
        }
        for (source, gene) in genes.into_iter().enumerate() {
            let primitive = gene
                .strip_suffix(&format!("~{source}"))
                .and_then(|name| PRIMITIVES.iter().position(|&known| known == name))
                .ok_or_else(|| error(format!("`{gene}` where node {source} is read")))?;
            code.extend((0..PRIMITIVES.len()).map(|index| f32::from(u8::from(index == primitive))));
        }
    }
    Ok(code)
}

/// Why a text is no architecture of NAS-Bench-201.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is no architecture of NAS-Bench-201 ({reason}); expected `|OP~0|+|OP~0|OP~1|+|OP~0|OP~1|OP~2|` \
     with OP one of none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3"
)]
pub struct ParseError {
    text: String,
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|skip_connect~1|nor_conv_3x3~2|";

    #[test]
    fn a_published_architecture_becomes_its_code() {
        let code = encode(TEXT).unwrap();
        let ones: Vec<usize> = (0..30).filter(|&index| code[index] == 1.0).collect();
        assert_eq!(ones, [4, 5 + 2, 10 + 1, 15, 20 + 1, 25 + 3]);
        assert_eq!(code.iter().sum::<f32>(), 6.0);
    }

    #[test]
    fn what_is_no_architecture_is_refused() {
        let reason = |text: &str| encode(text).unwrap_err().reason;
        assert_eq!(reason("|none~0|"), "1 nodes joined by `+`");
        assert_eq!(
            reason(&TEXT.replace("|nor_conv_1x1~0|skip", "|skip")),
            "node 2 has 1 operations"
        );
        assert_eq!(
            reason(&TEXT.replace("none~0", "conv~0")),
            "`conv~0` where node 0 is read"
        );
        assert_eq!(
            reason(&TEXT.replace("none~0", "none~1")),
            "`none~1` where node 0 is read"
        );
        assert_eq!(
            reason(&TEXT[1..]),
            "`avg_pool_3x3~0|` does not stand between `|`"
        );
    }
}
