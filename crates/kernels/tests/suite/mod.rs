//! What every operation must satisfy, on any device. A test file per device calls [`on_device!`].

// The crate whose operations are tested.
pub(crate) use ::kernels;

pub(crate) mod cases;
pub(crate) mod cells;
pub(crate) mod errors;
pub(crate) mod laws;
pub(crate) mod values;

/// Declares every test of the suite for one device.
macro_rules! on_device {
    ($device:expr) => {
        $crate::suite::on_device!($device =>
            laws::agrees_with_the_oracle_in_f32,
            laws::agrees_with_the_oracle_in_f64,
            laws::gradients_are_those_of_finite_differences,
            laws::linear_operations_have_adjoint_gradients,
            laws::views_are_as_good_as_copies,
            laws::untracked_arguments_get_no_gradient,
            laws::results_do_not_depend_on_the_number_of_threads,
            laws::empty_batches_pass,
            values::relu_is_flat_at_zero,
            values::max_pool_prefers_the_first_maximum,
            values::max_pool_hands_on_nan,
            values::average_leaves_the_padding_out,
            values::batch_norm_normalises_each_channel,
            values::batch_norm_is_exact_far_from_zero,
            values::batch_norm_of_one_value_is_its_bias,
            values::bf16_products_round_their_factors,
            values::out_sizes_are_those_of_the_search_space,
            cells::activated_depthwise_is_relu_and_depthwise,
            cells::a_channel_norm_is_a_batch_norm,
            cells::a_node_is_a_mix,
            cells::gradients_of_groups_come_from_their_nodes,
            cells::a_gate_stops_what_a_relu_stops,
            cells::halves_are_every_second_pixel,
            cells::grouped_products_are_pointwise_convolutions,
            cells::pieces_change_all_tensors_alike,
            errors::name_the_operation_and_the_shapes,
        );
    };
    ($device:expr => $($module:ident::$test:ident),+ $(,)?) => {
        $(#[test]
        fn $test() -> candle_core::Result<()> {
            $crate::suite::$module::$test(&$device)
        })+
    };
}
pub(crate) use on_device;
