//! The candidate operations of an edge.

use std::fmt;

/// A candidate operation of an edge (DARTS, section 2.1 and the original code's `PRIMITIVES`).
///
/// The order is the column order of every code and architecture parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Primitive {
    /// Zeros: the edge is absent. Only the search knows it; a genotype never keeps it.
    None,
    /// 3x3 max pooling, padding 1.
    MaxPool3x3,
    /// 3x3 average pooling, padding 1, which the mean leaves out.
    AvgPool3x3,
    /// The identity at stride 1, a factorized reduction at stride 2.
    SkipConnect,
    /// Twice (ReLU, depthwise 3x3, pointwise, BN).
    SepConv3x3,
    /// Twice (ReLU, depthwise 5x5, pointwise, BN).
    SepConv5x5,
    /// ReLU, depthwise 3x3 with dilation 2, pointwise, BN.
    DilConv3x3,
    /// ReLU, depthwise 5x5 with dilation 2, pointwise, BN.
    DilConv5x5,
}

impl Primitive {
    /// Every primitive, in the order of the codes.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::MaxPool3x3,
        Self::AvgPool3x3,
        Self::SkipConnect,
        Self::SepConv3x3,
        Self::SepConv5x5,
        Self::DilConv3x3,
        Self::DilConv5x5,
    ];

    /// What a genotype may keep: every primitive but [`Primitive::None`], in the order of the codes.
    pub const KEPT: [Self; 7] = {
        let [_, kept @ ..] = Self::ALL;
        kept
    };

    /// The name in the original code, such as `sep_conv_3x3`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::MaxPool3x3 => "max_pool_3x3",
            Self::AvgPool3x3 => "avg_pool_3x3",
            Self::SkipConnect => "skip_connect",
            Self::SepConv3x3 => "sep_conv_3x3",
            Self::SepConv5x5 => "sep_conv_5x5",
            Self::DilConv3x3 => "dil_conv_3x3",
            Self::DilConv5x5 => "dil_conv_5x5",
        }
    }

    /// The primitive of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|primitive| primitive.name() == name)
    }

    /// The position in [`Primitive::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether the operation holds convolution weights at every stride. A skip does so at stride 2
    /// only, and counts as having none.
    pub const fn has_parameters(self) -> bool {
        matches!(
            self,
            Self::SepConv3x3 | Self::SepConv5x5 | Self::DilConv3x3 | Self::DilConv5x5
        )
    }
}

impl fmt::Display for Primitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_and_name_lead_back() {
        for (index, primitive) in Primitive::ALL.into_iter().enumerate() {
            assert_eq!(primitive.index(), index);
            assert_eq!(Primitive::from_name(primitive.name()), Some(primitive));
        }
        assert_eq!(Primitive::from_name("sep_conv_7x7"), None);
    }

    #[test]
    fn a_genotype_may_keep_all_but_none() {
        let kept = Primitive::ALL
            .into_iter()
            .filter(|&primitive| primitive != Primitive::None);
        assert_eq!(kept.collect::<Vec<_>>(), Primitive::KEPT);
    }
}
