//! The figures of one update of one tensor.

/// The figures that a rule's inner loop needs, from settings and step, in the precision that it computes in.
#[derive(Clone, Copy, Debug)]
pub(super) enum UpdateCoefficients {
    Sgd { lr: f32, momentum: f32, decay: f32, scale: f32 },
    AdamW { keep: f32, beta1: f32, beta2: f32, step_size: f32, root_scale: f32, eps: f32, scale: f32 },
}
